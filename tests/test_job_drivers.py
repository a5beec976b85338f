"""Batch attribution by several processes, on several devices and on Ray: the tables are those of one process on one device."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from pathlib import Path

import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.jobs import read_shards

from .devices import flags
from .test_jobs import (
    command,
    given as given,  # the fixtures
    place as place,
    SMALL,
    start,
    tables,
    VERB,
    wait_for,
    whole as whole,
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_a_dead_process_harms_no_other(place, whole, tmp_path):
    """Two that meet by `jax.distributed`: one is killed at work, the other does all of its own, and a rerun does the rest."""
    out, together = tmp_path / "out", ("--coordinator", f"localhost:{free_port()}", "--num-processes", "2")
    children = [start(place, out, *together, "--process-id", str(i)) for i in range(2)]
    wait_for(out, 1, children[1])
    children[0].send_signal(signal.SIGKILL)  # the one that all others would else be ended with
    children[0].finish()
    status, _, said = children[1].finish(timeout=120)
    assert status == 0, said
    assert "process 1 of 2" in said
    assert {f"shard-{i:08d}.parquet" for i in (1, 3, 5)} <= {*tables(out)}
    assert json.loads((out / "manifest.json").read_text("utf-8"))["devices"] == 2
    assert main(command(place, out)) == 0
    assert read_shards(out).equals(whole)


def test_dictionaries_that_lie_on_four_devices(place, whole, tmp_path):
    """Two copies on eight devices: the same up to rounding. Copies on one device each are in `test_devices`."""
    child = start(place, tmp_path / "out", "--devices-per-copy", "4", **flags(8))
    status, _, said = child.finish(timeout=400)
    assert status == 0, said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert (manifest["devices"], manifest["settings"]["options"]["devices_per_copy"]) == (8, 4)
    got = read_shards(tmp_path / "out")
    rows = [
        {(row["line"], row["site"], row["pos"], row["unit"]): row["effect"] for row in t.to_pylist()}
        for t in (got, whole)
    ]
    assert len(rows[0].keys() ^ rows[1].keys()) <= 2
    both = rows[0].keys() & rows[1].keys()
    assert max(abs(rows[0][key] - rows[1][key]) for key in both) < 1e-5 * max(map(abs, rows[1].values()))


@pytest.mark.filterwarnings("ignore")  # Ray's of its own settings
def test_ray_with_an_actor_killed(given, place, whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data")
    mark = uuid.uuid4().hex
    monkeypatch.setenv("JAXCIRC_TEST_MARK", mark)  # by which processes of this very Ray are known
    monkeypatch.setenv("PYTHONPATH", str(Path(jc.__file__).parents[1]))
    model, _, tokenizer = given
    saes, out, killed = jc.load_saes(place / "saes"), tmp_path / "out", []
    over = threading.Event()

    def kill_one():
        while not tables(out) and not over.is_set():
            time.sleep(0.02)
        killed.extend(actors(mark)[:1])
        for process in killed:
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        found = jc.attribute(
            model, saes, tokenizer, place / "prompts.jsonl", out, VERB, engine=jc.jobs.Ray("local", actors=2), **SMALL
        )
    finally:
        over.set()
        killer.join()
    assert ray.is_initialized() is False
    assert killed
    assert found.report.done == found.report.lines == 24
    assert json.loads((out / "manifest.json").read_text("utf-8"))["devices"] == 2
    assert found.table().equals(whole)


def actors(mark: str) -> list[int]:
    """The processes of Ray's actors that hold our function, and have this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"MapWorker" in title and mark.encode() in environment:
            found.append(int(folder.name))
    return found


def test_a_cluster_that_is_not_there(place, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    there_is_none = ("--engine", "ray", "--address", f"localhost:{free_port()}")
    assert main(command(place, tmp_path / "out", *there_is_none)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"No Ray cluster is at {there_is_none[-1]}" in said
    assert not tables(tmp_path / "out")
