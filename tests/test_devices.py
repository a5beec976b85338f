"""One process with 1, 2, 4 and 8 devices: batch jobs and lenses are those of one device, to the last bit where prompts stay whole."""

import functools as ft
import json
import os

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxcirc as jc

from .devices import flags, PROMPTS
from .helpers import assert_close, Child, model_named, REPOSITORY


COUNTS = (2, 4, 8)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The lenses and the table with a number of devices, by a process of its own for each that is asked for."""
    folder = tmp_path_factory.mktemp("devices")

    @ft.cache
    def with_devices(count: int):
        out = folder / str(count)
        child = Child("-m", "tests.devices", str(out), cwd=REPOSITORY, env=os.environ | flags(count))
        status, _, said = child.finish(timeout=400)
        assert status == 0, said
        return np.load(out / "lenses.npz"), out / "tables"

    return with_devices


@pytest.mark.parametrize("count", COUNTS)
def test_lenses_and_tables_are_those_of_one_device(count, found):
    (one, wanted), (many, written) = found(1), found(count)
    assert len(one) == 6
    for name, want in one.items():
        assert np.abs(want).max() > 0.1
        if name.startswith("head"):
            assert_close(many[name], want)
        else:
            assert (many[name] == want).all(), name
    want, got = jc.jobs.read_shards(wanted), jc.jobs.read_shards(written)
    assert want.num_rows > 100
    assert got.equals(want)
    assert json.loads((written / "manifest.json").read_text("utf-8"))["devices"] == count


def test_resumed_on_a_mesh_of_one_device(found):
    model = model_named("gpt2-inverse-layer-scale")
    plain = jc.fit_lens(model, PROMPTS, skip_first=3)
    for layer in plain.layers:
        assert (found(1)[0][f"resumed {layer}"] == np.asarray(plain.J[layer])).all()


def test_meshes_that_there_are_not_are_refused(untyped):
    model = model_named("gpt2")
    with pytest.raises(ValueError, match="with the axes 'data' and 'tangents'"):
        jc.fit_lens(model, [np.arange(9)], skip_first=3, mesh=Mesh(jax.devices()[:1], ("batch",)))
    with pytest.raises(ValueError, match="got 4"):
        jc.fit_lens(model, [np.arange(9)], skip_first=3, mesh=4)
