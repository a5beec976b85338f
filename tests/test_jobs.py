"""Batch attribution: tables that depend on the prompts and the settings, and on nothing that happens on the way."""

import dataclasses
import errno
import itertools
import json
import os
import random
import signal
import threading
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.jobs import _attribute as attributing, _lock, _manifest, _store, JobOfNodes, Part, read_shards, VERBS
from jaxcirc.jobs._source import open_source, Range
from jaxcirc.lens import LensSettings
from jaxcirc.lens._running import nothing

from .helpers import assert_close, Child, counting_programs, REPOSITORY


NOUNS = ("teacher", "doctor", "farmer", "boy", "girl", "king", "judge", "guard")
SITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_post")
SMALL = {"batch_size": 4, "shard_lines": 4}
OPTIONS = ("--batch-size", "4", "--shard-lines", "4", "--node-threshold", "0.001")
VERB = JobOfNodes(node_threshold=0.001)


def pair(noun: str, *, long: bool = False) -> dict[str, str]:
    behind = " that the doctors near the desks like" if long else ""
    return {"clean": f"The {noun}{behind}", "corrupt": f"The {noun}s{behind}", "answer": " is", "foil": " are"}


ROWS = [pair(noun, long=long) for long in (False, True, False) for noun in NOUNS]


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def given():
    saes = jc.load_saes("tiny-gpt-neo")
    few = {jc.Site.parse(site): saes[jc.Site.parse(site)] for site in SITES}
    return jc.from_pretrained("tiny-gpt-neo"), few, jc.load_tokenizer("tiny-gpt-neo")


@pytest.fixture(scope="module")
def place(tmp_path_factory, given):
    """A folder with prompts and dictionaries for commands, and what an undisturbed run makes of them, `whole`."""
    folder = tmp_path_factory.mktemp("jobs")
    write_lines(folder / "prompts.jsonl", ROWS)
    for site, sae in given[1].items():
        jc.save_sae(sae, folder / "saes" / str(site))
    model, _, tokenizer = given
    done = jc.attribute(
        model, jc.load_saes(folder / "saes"), tokenizer, folder / "prompts.jsonl", folder / "whole", VERB, **SMALL
    )
    assert done.table().num_rows > 10 * len(ROWS)
    return folder


@pytest.fixture(scope="module")
def whole(place):
    return read_shards(place / "whole")


def command(place, out, *more: str) -> list[str]:
    given = ("--model", "tiny-gpt-neo", "--saes", str(place / "saes"), "--prompts", str(place / "prompts.jsonl"))
    return ["attribute", *given, "--out", str(out), *OPTIONS, *more]


def start(place, out, *more: str, **environment: str) -> Child:
    """The command as a process, with the numbers of this one."""
    numbers = {
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PYTHONPATH": str(REPOSITORY),
    }
    return Child("-m", "jaxcirc", *command(place, out, *more), cwd=place, env=os.environ | numbers | environment)


def tables(out) -> list[str]:
    return sorted(path.name for path in out.glob("*.parquet")) if out.is_dir() else []


def wait_for(out, count: int, child: Child) -> None:
    """Until so many tables are there, or the process is gone."""
    while len(tables(out)) < count and child.poll() is None:
        time.sleep(0.01)


def test_a_table_has_every_node_above_the_threshold(given, place, whole):
    """As the verb itself finds them, prompt by prompt."""
    model, saes, tokenizer = given
    got = {tuple(row[name] for name in ("line", "site", "pos", "unit")): row["effect"] for row in whole.to_pylist()}
    assert len(got) == whole.num_rows
    prompts = jc.data.load_prompts(place / "prompts.jsonl", tokenizer)
    nodes = jc.node_effects(
        model, saes, prompts.clean, prompts.corrupt, prompts.metric(), method=jc.Gradient(), mask=prompts.mask
    )
    want = {}
    for site, values in nodes.listed.items():
        for (example, pos, unit), effect in zip(*values.instances(), strict=True):
            want[int(example) + 1, str(site), int(pos), int(unit)] = float(effect)
    assert {key for key, effect in want.items() if abs(effect) > 0.002} <= got.keys() <= want.keys()
    assert_close(np.array(list(got.values())), np.array([want[key] for key in got]), tolerance=1e-4)
    assert any(unit == saes[jc.Site.parse(SITES[0])].d_sae for _, site, _, unit in got if site == SITES[0])


def test_the_folder_says_what_it_is(place, whole):
    out = place / "whole"
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    settings = manifest["settings"]
    assert manifest["devices"] == jax.device_count()
    assert settings["verb"] == "node-effects"
    assert settings["options"]["method"] == {"name": "Gradient"}
    assert settings["options"]["node_threshold"] == 0.001
    assert settings["prompts"]["lines"] == len(ROWS)
    assert set(settings["dictionaries"]) == set(SITES)
    assert tables(out) == [f"shard-{i:08d}.parquet" for i in range(6)]
    assert (out / "skipped.jsonl").read_text("utf-8") == ""
    assert whole.column_names == ["line", "site", "pos", "unit", "effect"]
    order = [(row["line"], SITES.index(row["site"]), row["pos"], row["unit"]) for row in whole.to_pylist()]
    assert order == sorted(order)


def test_killed_at_any_moment_and_run_again_it_is_the_same(place, whole, tmp_path, given):
    draw, out = random.Random(time.time_ns()), tmp_path / "out"
    for count in (1, 3):
        child = start(place, out)
        wait_for(out, count, child)
        time.sleep(draw.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        child.finish()
        before = {name: (out / name).stat().st_mtime_ns for name in tables(out)}
        assert all(pa.parquet.read_table(out / name).num_rows for name in before)  # each that is there is whole
    (out / ".shard-00000005.parquet.0123abcd.x.part").touch()  # what it was just writing
    assert main(command(place, out)) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before  # nothing is done twice
    assert read_shards(out).equals(whole)
    assert not list(out.glob(".shard*"))


def test_parts_make_the_whole(place, whole, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(place, out, "--shard", "1/2")) == 0
    assert tables(out) == [f"shard-{i:08d}.parquet" for i in (1, 3, 5)]
    assert main(command(place, out, "--shard", "0/2", "--json")) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["lines"], said["done"], said["prompts"]) == (12, 12, 12)
    assert said["rate"] > 0
    assert 0 < said["busy"] <= 1
    assert read_shards(out).equals(whole)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_other_files_of_the_same_rows(kind, given, whole, tmp_path):
    model, saes, tokenizer = given
    rows, path = pa.Table.from_pylist(ROWS), tmp_path / "prompts"
    if kind == "parquet":
        pa.parquet.write_table(rows, path, row_group_size=7)
    else:
        path.mkdir()
        names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}), "utf-8")
        for name, part in zip(names, (rows[:10], rows[10:]), strict=True):
            with pa.ipc.new_stream(path / name, rows.schema) as file:
                file.write_table(part, max_chunksize=3)
    source = open_source(path, 4)
    assert source.lines == len(ROWS)
    some = list(source.ranges([Range(5, 8), Range(13, 20)]))
    assert [[number for number, _ in records] for records in some] == [[*range(5, 9)], [*range(13, 21)]]
    assert [record.fields["clean"] for _, record in some[1]] == [row["clean"] for row in ROWS[12:20]]
    done = jc.attribute(model, saes, tokenizer, path, tmp_path / "out", VERB, **SMALL)
    assert done.table().equals(whole)


@pytest.mark.parametrize(
    ("name", "text"),
    [("state.json", text) for text in ("[]", '{"_data_files": ["x.arrow"]}', '{"_data_files": 3}', "{", "\0")]
    + [("dataset_dict.json", text) for text in ('{"splits": ["tr', '{"splits": [3]}')],
)
def test_a_broken_folder_of_datasets_is_told(name, text, tmp_path):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ValueError, match=rf"{name} (is not|looks like).*datasets' save_to_disk writes"):
        open_source(tmp_path, 4)


def test_a_dictionary_of_splits_is_told(given, tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', "utf-8")
    with pytest.raises(ValueError, match=r"holds several splits. Name one: .*train, .*test"):
        open_source(tmp_path, 4)


BROKEN = {
    2: ('{"clean": "The', "is not JSON"),
    3: ("[1]", "is a JSON list"),
    4: ("\0\0", "is not JSON"),
    5: (pair("teacher") | {"corrupt": "The old teachers"}, "they must be of one length"),
    6: (pair("teacher") | {"clean": " the" * 200, "corrupt": " a" * 200}, "200 tokens, and the model takes"),
    9: (pair("teacher") | {"clean": ""}, "a prompt is empty"),
    10: ({"clean": "The boy"}, "lacks corrupt, answer"),
    11: (pair("teacher") | {"answer": " is are"}, "must be one token"),
    12: ("1" * 5000, "too long a number"),
}


@pytest.fixture
def broken(tmp_path):
    rows = [BROKEN[line][0] if line in BROKEN else row for line, row in enumerate(ROWS, 1)]
    rows[13] = ""  # a blank line is no prompt, and nothing is wrong with it
    return write_lines(tmp_path / "broken.jsonl", rows)


def test_broken_lines_are_listed_and_the_rest_goes_on(broken, given, whole, tmp_path, capsys):
    model, saes, tokenizer = given
    done = jc.attribute(model, saes, tokenizer, broken, tmp_path / "out", VERB, **SMALL)
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text("utf-8").splitlines()]
    assert [row["line"] for row in listed] == [*BROKEN]
    for row in listed:
        assert BROKEN[row["line"]][1] in row["reason"]
    left = set(range(1, len(ROWS) + 1)) - {*BROKEN, 14}
    assert (done.report.skipped, done.report.prompts) == (len(BROKEN), len(left))
    of_left = whole.filter(pa.array([row["line"] in left for row in whole.to_pylist()]))
    places = ["line", "site", "pos", "unit"]
    assert (
        abs(done.table().num_rows - of_left.num_rows) <= 2
    )  # in other batches a number at the threshold may round otherwise
    got = {tuple(row[name] for name in places): row["effect"] for row in done.table().to_pylist()}
    want = {tuple(row[name] for name in places): row["effect"] for row in of_left.to_pylist()}
    both = sorted(got.keys() & want.keys())
    assert_close(np.array([got[key] for key in both]), np.array([want[key] for key in both]), tolerance=1e-4)


def test_a_part_whose_own_lines_are_broken_is_done_as_others_are(given, tmp_path):
    model, saes, tokenizer = given
    path = write_lines(tmp_path / "prompts.jsonl", [*ROWS[:4], *[{}] * 4])
    run = lambda part: jc.attribute(model, saes, tokenizer, path, tmp_path / "out", VERB, **SMALL, part=part).report
    for _ in range(2):
        assert (run(Part(1, 2)).skipped, run(Part(1, 2)).used) == (4, 0)
    assert (run(Part(0, 2)).skipped, run(Part(0, 2)).used) == (0, 4)


def test_strictly_the_first_broken_line_is_an_error(broken, place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command(place, out, "--strict"), "--prompts", str(broken)]) == 2
    assert "broken.jsonl, line 2 is not JSON" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_a_prompt_that_the_verb_refuses_is_skipped_alone(given, whole, tmp_path, monkeypatch, place):
    model, saes, tokenizer = given
    verb, rows = attributing.JobOfNodes, attributing.JobOfNodes.rows

    def refuse(self, model, saes, prompts):
        if any(tokenizer.decode(row).startswith("The girl") for row in prompts.clean):
            raise ValueError("There is no effect to explain.")
        return rows(self, model, saes, prompts)

    monkeypatch.setattr(verb, "rows", refuse)
    done = jc.attribute(model, saes, tokenizer, place / "prompts.jsonl", tmp_path / "out", VERB, **SMALL)
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text("utf-8").splitlines()]
    of_girls = [line for line, row in enumerate(ROWS, 1) if row["clean"].split()[1] == "girl"]
    assert listed == [{"line": line, "reason": f"line {line}: There is no effect to explain."} for line in of_girls]
    assert {*done.table()["line"].to_pylist()} == {*range(1, len(ROWS) + 1)} - {*of_girls}
    assert done.report.prompts >= len(ROWS) - len(of_girls)


def test_other_settings_are_refused(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(place, out, "--shard", "0/6")) == 0
    capsys.readouterr()
    write_lines(tmp_path / "others.jsonl", ROWS[:8])
    for more, said in (
        (["--node-threshold", "0.5"], "--node-threshold was 0.001 and is 0.5"),
        (["--verb", "edges"], 'verb was "node-effects" and is "edges"'),
        (["--prompts", str(tmp_path / "others.jsonl")], "prompts lines was 24 and is 8"),
        (["--method", "integrated"], 'was "Gradient" and is "IntegratedGradients"'),
        (["--shard-lines", "8"], "--shard-lines was 4 and is 8"),
        (["--model", "tiny-gpt2", "--saes", "tiny-gpt2"], "was begun with other settings"),
    ):
        assert main([*command(place, out), *more]) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert tables(out) == ["shard-00000000.parquet"]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    assert main(command(place, tmp_path / "foreign")) == 2
    assert "holds other files (thesis.tex) and no manifest.json" in capsys.readouterr().err


def test_one_run_at_a_time(place, tmp_path, capsys):
    """A lock ends with the process that holds it: what a killed one held is free."""
    out = tmp_path / "out"
    out.mkdir()
    with _lock.locked(out, Part()):
        for more in ((), ("--shard", "0/2")):
            assert main(command(place, out, *more)) == 2
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert "another run is at work there" in said
            assert f"process {os.getpid()}" in said
    with _lock.locked(out, Part(0, 2)), _lock.locked(out, Part(1, 2)):
        for part in (Part(), Part(1, 2)):
            with pytest.raises(ValueError, match="another run is at work there"), _lock.locked(out, part):
                pass
    with _lock.locked(out, Part()):
        pass
    # Parts of two divisions share shards, and the one would remove what the other is writing.
    half_written = out / ".shard-00000003.parquet.0123.part"
    half_written.touch()
    with _lock.locked(out, Part(3, 4)):
        with (
            pytest.raises(ValueError, match=r"at work there, by 4 processes, each with a part. Divide it as they do"),
            _lock.locked(out, Part(0, 3)),
        ):
            pass
        with _lock.locked(out, Part(0, 4)):
            _store.clear_leftovers(out, Part(0, 4))
        assert half_written.exists()
    with _lock.locked(out, Part(0, 3)):
        pass


def test_the_manifest_is_written_by_one_at_a_time(tmp_path):
    """Whoever finds no manifest looks at the folder next, where one must not have come meanwhile."""
    agreeing = threading.Thread(target=lambda: _manifest.agree(tmp_path, {}, {}))
    with _lock.briefly_alone(tmp_path):
        agreeing.start()
        agreeing.join(0.2)
        assert not (tmp_path / _manifest.NAME).exists()
    agreeing.join()
    assert (tmp_path / _manifest.NAME).exists()


def test_a_full_disk(given, place, whole, tmp_path, monkeypatch):
    model, saes, tokenizer = given
    arguments = (model, saes, tokenizer, place / "prompts.jsonl", tmp_path / "out", VERB)
    calls = itertools.count()

    def full(handle):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_store.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space is left for .*shard-00000002.parquet") as caught:
            jc.attribute(*arguments, **SMALL)
    assert "run the same again" in str(caught.value)
    assert "shard-00000002.parquet" not in tables(tmp_path / "out")
    assert {"shard-00000000.parquet", "shard-00000001.parquet"} <= {*tables(tmp_path / "out")}
    assert not list((tmp_path / "out").glob(".shard*"))
    assert jc.attribute(*arguments, **SMALL).table().equals(whole)


def test_a_damaged_table_is_made_again(place, whole, tmp_path, given):
    model, saes, tokenizer = given
    out = tmp_path / "out"
    arguments = (model, saes, tokenizer, place / "prompts.jsonl", out, VERB)
    jc.attribute(*arguments, **SMALL)
    damaged = out / "shard-00000003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    done = jc.attribute(*arguments, **SMALL)
    assert done.report.prompts == 4
    assert done.table().equals(whole)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "node-effects"])
def test_every_verb(verb, given, tmp_path):
    """Rows of each, and the same numbers whatever the batches."""
    model, saes, tokenizer = given
    prompts, kind = write_lines(tmp_path / "prompts.jsonl", ROWS[8:14]), VERBS[verb]
    thresholds = {"node_threshold": 0.005, "edge_threshold": 0.002}
    more = {"lens": a_lens(model, tokenizer)} if verb == "lens" else {}
    job = kind(**{name: value for name, value in thresholds.items() if name in kind.__dataclass_fields__}, **more)
    tables = []
    for i, size in enumerate((4, 6)):
        found = jc.attribute(model, saes, tokenizer, prompts, tmp_path / f"out{i}", job, batch_size=size)
        assert found.report.skipped == 0, (found.out / "skipped.jsonl").read_text("utf-8")
        tables.append(found.table())
    again = jc.attribute(model, saes, tokenizer, prompts, tmp_path / "out0", job, batch_size=4)  # its own settings
    assert (again.report.before, again.report.prompts) == (6, 0)
    one, other = tables
    values = [name for name, kind in job.columns.items() if kind == "value"]
    assert one.column_names == ["line", *job.columns]
    assert {*one["line"].to_pylist()} == {*range(1, 7)}
    assert one.num_rows > (20 if verb != "lens" else 10)
    assert abs(one.num_rows - other.num_rows) <= 2
    places = ["line", *(name for name in job.columns if name not in values)]
    rows = [{tuple(row[name] for name in places): row for row in table.to_pylist()} for table in tables]
    both = sorted(rows[0].keys() & rows[1].keys(), key=str)
    assert len(both) >= one.num_rows - 2
    for name in values:
        assert_close(*(np.array([table[key][name] for key in both]) for table in rows), tolerance=1e-3)


def test_numbers_of_numpy_and_jax_are_settings_as_others_are(given, tmp_path, untyped):
    model, _, tokenizer = given
    path = write_lines(tmp_path / "prompts.jsonl", ROWS[8:12])
    kind, reports = VERBS["edge-attribution"], []
    for steps, threshold, size in ((np.int64(1), jax.numpy.float32(0.5), np.int32(4)), (1, 0.5, 4)):
        verb = kind(steps=steps, edge_threshold=threshold)  # pyright: ignore[reportCallIssue]
        done = jc.attribute(model, {}, tokenizer, path, tmp_path / "out", verb, batch_size=size)
        reports.append(done.report)
    assert [(report.used, report.before) for report in reports] == [(4, 0), (4, 4)]


def a_lens(model, tokenizer) -> jc.JacobianLens:
    texts = [tokenizer.encode(row["clean"]) for row in ROWS[8:12]]
    return jc.fit_lens(model, [np.asarray(ids) for ids in texts], skip_first=1)


def test_a_lens_reads_each_prompt(given, tmp_path, capsys):
    model, _, tokenizer = given
    lens, prompts = a_lens(model, tokenizer), write_lines(tmp_path / "prompts.jsonl", [*ROWS[:2], ROWS[8]])
    lens.save(tmp_path / "lens.safetensors")
    options = ["--model", "tiny-gpt-neo", "--prompts", str(prompts), "--no-bos", "--out", str(tmp_path / "out")]
    options += ["--shard-lines", "2"]
    for _ in range(2):  # the second goes on from what a first that was killed has left
        assert main(["attribute", *options, "--verb", "lens", "--lens", str(tmp_path / "lens.safetensors")]) == 0
        rows = read_shards(tmp_path / "out").to_pylist()
        (tmp_path / "out" / "shard-00000001.parquet").unlink()
    assert [(row["line"], row["layer"]) for row in rows] == [(line, layer) for line in (1, 2, 3) for layer in (0, 1)]
    ids = [tokenizer.encode(word)[0] for word in (" is", " are")]
    read = lens.readout(model, np.asarray(tokenizer.encode(ROWS[8]["clean"])), ranks_of=ids)
    assert [row["rank"] for row in rows[4:]] == np.asarray(read.ranks[:, -1, 0]).tolist()
    difference = np.asarray(read.logits_of[:, -1, 0] - read.logits_of[:, -1, 1])
    assert_close(np.array([row["difference"] for row in rows[4:]]), difference.astype(float), tolerance=1e-5)
    assert rows[1]["rank"] == rows[1]["logit_lens_rank"]  # at the target they are one
    # Another lens is another setting.
    dataclasses.replace(lens, n_prompts=5).save(tmp_path / "lens.safetensors")
    capsys.readouterr()
    assert main(["attribute", *options, "--verb", "lens", "--lens", str(tmp_path / "lens.safetensors")]) == 2
    assert "lens" in capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(ValueError, match="there is no lens"):
        VERBS["lens"]()


def test_edges_of_a_prompt_are_those_of_the_verb(given, tmp_path):
    model, saes, tokenizer = given
    path = write_lines(tmp_path / "prompts.jsonl", ROWS[:4])
    job = VERBS["circuit"](node_threshold=0.005, edge_threshold=0.002)  # pyright: ignore[reportCallIssue]
    rows = jc.attribute(model, saes, tokenizer, path, tmp_path / "out", job, batch_size=4).table().to_pylist()
    prompts = jc.data.load_prompts(path, tokenizer)
    arguments = (model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    found = jc.edge_effects(*arguments, nodes, threshold=0.005, upstream="selected")
    (ends,) = found.coo
    targets, sources, values = found.coo[ends]
    want = {
        (int(source[0]) + 1, *map(int, source[1:]), *map(int, target[1:])): float(value)
        for target, source, value in zip(targets, sources, values, strict=True)
        if abs(value) > 0.002
    }
    between = [row for row in rows if row["source_site"] == str(ends[0]) and row["site"] == str(ends[1])]
    names = ("line", "source_pos", "source_unit", "pos", "unit")
    got = {tuple(row[name] for name in names): row["effect"] for row in between}
    assert got.keys() == want.keys()
    assert_close(np.array([got[key] for key in got]), np.array([want[key] for key in got]), tolerance=1e-3)
    kept = {(row["line"], row["site"], row["pos"], row["unit"]) for row in rows if row["source_site"] is None}
    assert {(row["line"], row["source_site"], row["source_pos"], row["source_unit"]) for row in between} <= kept
    assert any(row["site"] == "metric" and row["pos"] is None for row in rows)


def test_lengths_share_programs(given, tmp_path):
    """Prompts of many lengths run the programs of a few."""
    model, saes, tokenizer = given
    said = lambda n: {"clean": "The teacher" + " near the desk" * n, "corrupt": "The teachers" + " near the desk" * n}
    rows = [said(n) | {"answer": " is", "foil": " are"} for n in (0, 1, 0, 1, 0, 1)]
    one = {"devices_per_copy": jax.local_device_count()}  # each copy has programs of its own
    run = lambda rows, out: jc.attribute(
        model, saes, tokenizer, write_lines(tmp_path / "rows.jsonl", rows), tmp_path / out, VERB, **SMALL, **one
    )
    run(rows[:2], "first")
    with counting_programs() as programs:
        run(rows, "second")
    assert programs == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (f"[\n{json.dumps(ROWS[0])}\n]", "is a JSON list"),
        ("clean,corrupt,answer,foil\nThe boy,The boys, is, are\n", "none of the first lines"),
        ("\x00\x01", "looks like"),
        ('{"clean": "The boy"}\n' * 9, "could be used: line 1 lacks corrupt, answer"),
    ],
)
def test_what_holds_no_prompts_is_told(text, said, place, tmp_path, capsys):
    (tmp_path / "prompts").write_text(text, "utf-8")
    assert main([*command(place, tmp_path / "out"), "--prompts", str(tmp_path / "prompts")]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_is_checked_before_there_is_a_folder(given, place, tmp_path, untyped):
    model, saes, tokenizer = given
    run = lambda verb=VERB, out=tmp_path / "out", **more: jc.attribute(
        model, saes, tokenizer, place / "prompts.jsonl", out, verb, **more
    )
    other = jc.JacobianLens({0: nothing(1, 128, np.dtype("float32"))}, LensSettings(-1), 1)
    with pytest.raises(ValueError, match="lens: the lens is of residual streams of width 128"):
        run(VERBS["lens"](lens=other))  # pyright: ignore[reportCallIssue]
    for method in ("gradient", jc.AtPStar):
        with pytest.raises(TypeError, match=r"heads: expected one of jc.AtPStar"):
            VERBS["heads"](method=method)  # pyright: ignore[reportCallIssue]
    with pytest.raises(
        TypeError, match=r"part: expected a part of the work, such as jc.jobs.Part\(0, 4\), got \(0, 2\)"
    ):
        run(part=(0, 2))
    with pytest.raises(TypeError, match=r"engine: expected jc.jobs.Local\(\), jc.jobs.Ray\(\) or None, got 'ray'"):
        run(engine="ray")
    with pytest.raises(ValueError, match=r"out: .*prompts.jsonl is a file. Expected the name of a folder"):
        run(out=place / "prompts.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "2/2"], "--shard is written I/N, with I from 0 to N-1"),
        (["--shard", "0/2", "--distributed"], "Give one"),
        (["--coordinator", "localhost:1"], "go together"),
        (["--address", "auto"], "are of --engine ray"),
        (["--verb", "heads", "--edge-threshold", "1"], "--edge-threshold says nothing of --verb heads"),
        (["--verb", "direct-effects"], "--node-threshold says nothing of --verb direct-effects"),
        (["--method", "atp-star"], "--method of --verb node-effects is"),
        (["--lens", __file__], "--lens and --verb lens go together"),
        (["--devices-per-copy", "99"], "--devices-per-copy"),
        (["--prompts", "nowhere.jsonl"], "--prompts nowhere.jsonl: No such file or folder"),
    ],
)
def test_bad_options(options, said, place, tmp_path, capsys):
    assert main([*command(place, tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
