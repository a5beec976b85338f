"""The growth table: that every verb can be measured, that powers are found again, and that times of a CPU are ratios."""

import json
from pathlib import Path

import jax
import jaxtyping
import pytest

from jaxcirc.cli._bench import load


growth, fit, verbs, point = load("growth"), load("_growth_fit"), load("_growth_verbs"), load("_growth_point")
memory_plan, plan_verbs = load("memory_plan"), load("_plan_verbs")
EVERY = plan_verbs.PLAN_VERBS | verbs.VERBS
Point = verbs.Point
BASE = Point(64, 1, 4, 64)


@pytest.fixture(autouse=True, scope="module")
def as_users_run_them():
    """Without the suite's type checks, which would be timed too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def made_up(constant: float = 0.0) -> list[dict]:
    """Points whose memory grows with the square of the length, with prompts and the width, and not with blocks."""
    wanted = growth.points(growth.parser().parse_args([]), batched=True)[1]
    memory = lambda p: int(constant + 1000 * p.seq**2 * p.batch * p.width)
    return [{**p._asdict(), "seconds": 0.1 * p.blocks, "peak_bytes": memory(p)} for p in wanted]


def test_points_differ_from_the_middle_in_one_size():
    base, wanted = growth.points(growth.parser().parse_args([]), batched=True)
    assert base == BASE
    assert len(wanted) == len({*wanted}) == 8
    assert all(sum(a != b for a, b in zip(base, each, strict=True)) <= 1 for each in wanted)
    alone = growth.points(growth.parser().parse_args(["--lengths", "8", "32"]), batched=False)
    assert alone[0] == Point(32, 1, 4, 64)
    assert {each.batch for each in alone[1]} == {1}


def test_powers_are_found_again():
    powers = fit.exponents(made_up(), BASE, "peak_bytes")
    assert powers == pytest.approx({"seq": 2, "batch": 1, "blocks": 0, "width": 1})
    assert fit.exponents(made_up(), BASE, "seconds") == pytest.approx({"seq": 0, "batch": 0, "blocks": 1, "width": 0})


def test_parts_of_memory_are_found_again_and_say_what_fits():
    held = verbs.Term("held", lambda p: p.seq**2 * p.batch * p.width)
    other = verbs.Term("other", lambda p: p.blocks**3)
    found = fit.fit(made_up(10**7), (held, other._replace(most=10**6)))
    assert found.constant == pytest.approx(10**7, rel=1e-3)
    assert found.each == pytest.approx((1000, 0), abs=2)  # of a cube, up to 12**3
    like = Point(256, 16, 12, 768)
    assert found.bound(like) == "held"
    room = 10**7 + 1000 * 256**2 * 768 * 100.5
    assert found.largest(like, "batch", room) == 100
    assert found.largest(like, "seq", room) == int((100.5 / 16) ** 0.5 * 256)
    assert found.largest(like, "blocks", 2 * found.expected(like)) is None
    assert found.largest(like, "seq", 1000) == 0
    within = fit.fit(made_up(10**7), (held._replace(most=10**9),))
    assert within.largest(like, "seq", 2 * 10**9) is None


def test_fewer_points_than_parts():
    """As in a quick table: of the many sums that fit, one is found, whatever the bytes."""
    memory, ends = verbs.VERBS["direct_effects"].memory, [Point(seq, 2, 1, 8) for seq in (4, 8)]
    measured = lambda *sizes: [{**at._asdict(), "peak_bytes": size} for at, size in zip(ends, sizes, strict=True)]
    for sizes in (
        (0, 0),
        (0, 4096),
        (4096, 0),
        (4096, 49152),
        (49152, 4096),
    ):  # more than a square, and less than nothing
        found = fit.fit(measured(*sizes), memory)
        assert all(each >= term.each[0] for each, term in zip(found.each, memory, strict=True))
    found = fit.fit(measured(40_960, 65_536), memory)
    assert [found.expected(at) for at in ends] == pytest.approx([40_960, 65_536])


def test_what_is_constant_is_no_part_of_powers_for_long():
    base = BASE._asdict()
    points = [{**base, "seq": seq, "peak_bytes": 10**6 + seq**2 * 10**4} for seq in (16, 64, 256)]
    assert fit.exponents(points, BASE, "peak_bytes")["seq"] == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("name", EVERY)
def test_every_verb_can_be_measured(name):
    found = point.measure(EVERY[name], Point(4, 2, 2, 8) if EVERY[name].batched else Point(4, 1, 2, 8), 1)
    assert found.programs > 0
    assert found.seconds > 0
    assert found.peak_bytes >= 0


def test_a_quick_table(tmp_path, capsys):
    assert growth.main(["--quick", "--verbs", "direct_effects", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.strip() == (tmp_path / "growth.md").read_text(encoding="utf-8").strip()
    assert "| direct_effects | 8 | 2 | 1 | 8 |" in said
    (row,) = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))["rows"]
    assert row["points"][0]["time_ratio"] == 1
    assert not {"seconds", "compile_seconds"} & {*row["points"][0]}, "of a CPU there are ratios"
    assert all(each["programs"] > 0 for each in row["points"])


def test_the_plan_of_memory_is_of_what_was_measured(capsys):
    assert memory_plan.main(["--measured"]) == 0
    page = Path(__file__).parents[1] / ".github" / "docs" / "memory.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")


def test_a_plan_has_fewer_prompts_with_larger_dictionaries():
    points = [{**BASE._asdict(), "seq": seq, "batch": 4, "peak_bytes": 30 * 4 * seq * 13 * 64} for seq in (16, 64, 256)]
    found = {"node_effects": fit.fit(points, plan_verbs.PLAN_VERBS["node_effects"].memory)}
    most = lambda shape: int(list(memory_plan._planned(shape, found))[2].split("|")[7])
    larger = memory_plan.GPT2_XL._replace(dictionaries=1.2 * memory_plan.GPT2_XL.dictionaries)
    assert 0 < most(larger) < most(memory_plan.GPT2_XL)


def test_a_verb_that_there_is_not(capsys):
    assert growth.main(["--verbs", "nodes"]) == 2
    assert "No verb is called 'nodes'; there are contraction" in capsys.readouterr().err


def test_a_point_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"direct_effects at Point\(seq=0.*failed"):
        point.measure_alone("direct_effects", Point(0, 1, 1, 8), 1)


def test_other_prompts_of_the_same_lengths_compile_hardly_anything():
    lengths = load("lengths")
    first, second = lengths.measure(1, 16, [8, 12], 2)
    assert first.programs[0] > 20
    assert len(first.programs) == 2
    assert 0 < first.compiling < first.seconds
    assert sum(second.programs) < sum(first.programs) / 8
    assert second.share < first.share
    text = lengths.table([(1, 16, (first, second))], [8, 12], 2)
    assert (
        f"| 1 | 16 | {first.share:.0%} | {first.programs[0]} | {first.programs[1]} | {sum(second.programs)} |" in text
    )


def test_lengths_are_measured_in_a_process_of_their_own(tmp_path, capsys):
    given = ["--models", "1x16", "--lengths", "8", "--each", "1"]
    assert load("lengths").main([*given, "--out", str(tmp_path)]) == 0
    written = (tmp_path / "lengths.md").read_text(encoding="utf-8")
    assert "\n| 1 | 16 | " in written
    assert written.strip() == capsys.readouterr().out.strip()
    assert jax.config.values["jax_enable_compilation_cache"], "where it was called from programs are kept as before"
