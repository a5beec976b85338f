"""Ctrl-C, as a user meets it: a real process, a real signal, at moments spread over the run of every long command.

A few moments of a few commands run always; JAXCIRC_TEST_STOPS=10 runs ten moments of each command.
"""

import json
import os
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxcirc import _files, _stop, Circuit
from jaxcirc.cli import main
from jaxcirc.jacobian import load_jacobian

from .helpers import Child, REPOSITORY


MOMENTS = int(os.environ.get("JAXCIRC_TEST_STOPS", "0"))
SHIPPED = ("--model", "tiny-gpt2", "--saes", "tiny-gpt2")
COMMANDS = {
    "demo": ("demo", "--n-prompts", "8", "--out", "out"),
    "discover": ("discover", *SHIPPED, "--prompts", "prompts.jsonl", "--edge-threshold", "0.001", "--out", "out"),
    "evaluate": ("evaluate", *SHIPPED, "--prompts", "prompts.jsonl", "--circuit", "circuit", "--plot", "curve.svg"),
    "steer": ("steer", *SHIPPED, "--prompts", "prompts.jsonl", "--circuit", "circuit", "--strongest", "3"),
    "heads": ("heads", "--model", "tiny-gpt2", "--prompts", "prompts.jsonl", "--plot", "heads.svg"),
    "patch": ("patch", "--model", "tiny-gpt2", "--prompts", "prompts.jsonl", "--plot", "patching.svg"),
    "self-repair": ("self-repair", "--limit", "16", "--plot", "repair.svg"),
    "features": (
        *(
            "features",
            *SHIPPED,
            "--prompt",
            "The teachers that the doctor likes",
            "--minimum",
            "0.1",
            "--plot",
            "f.svg",
        ),
        *("--source", "blocks.0.hook_mlp_out", "--target", "blocks.1.hook_mlp_out"),
    ),
    "jacobian": (
        *(
            "jacobian",
            "--model",
            "tiny-gpt2",
            "--prompt",
            "The teachers that the doctor likes",
            "--out",
            "J.safetensors",
        ),
        *("--source", "blocks.0.hook_resid_pre", "--target", "blocks.3.hook_resid_post", "--method", "autodiff"),
    ),
    "doctor": ("doctor",),
}
PAIR = (
    '{"clean_prefix": "The %s", "patch_prefix": "The %s", "clean_answer": " is", "patch_answer": " are", "case": "x"}\n'
)


def start(folder: Path, *arguments: str) -> Child:
    """Python as a process of its own, in `folder`, that hears interrupts even if the tests do not, as in a shell's background."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        environment = {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder.parent / "cache")}
        return Child(*arguments, cwd=folder, env=os.environ | environment)
    finally:
        signal.signal(signal.SIGINT, before)


def start_command(folder: Path, *command: str) -> Child:
    return start(folder, "-m", "jaxcirc", *command)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the commands read: prompts, and for those that take it a circuit of them."""
    folder = tmp_path_factory.mktemp("stopping") / "here"
    folder.mkdir()
    words = ("teacher", "doctor", "farmer")
    (folder / "prompts.jsonl").write_text("".join(PAIR % (word, word + "s") for word in words), encoding="utf-8")
    if MOMENTS:
        given = (
            "discover",
            *SHIPPED,
            "--prompts",
            "prompts.jsonl",
            "--method",
            "gradient",
            "--out",
            "circuit",
            "--json",
        )
        process = start_command(folder, *given, "--edge-threshold", "0.001")
        status, out, err = process.finish(timeout=300)
        assert status == 0, err
        assert json.loads(out)["edges"] > 0
    return folder


def stopped(process: Child, number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Sends the signal, and waits: status, standard output, standard error."""
    process.send_signal(number)
    return process.finish(timeout=20)


def check_stopped(
    status: int, err: str, before: list[str], after: list[str], expected: int = 130, whole: tuple[str, ...] = ()
) -> None:
    """Nothing is left but parts that the next run goes on from, and the results in `whole`, which the test reads."""
    assert status == expected, err
    assert err.splitlines()[-1] == "jaxcirc: stopped.", err
    for word in ("Traceback", "Segmentation", "Exception ignored", "Fatal"):
        assert word not in err
    kept = [name for name in after if name not in before]
    assert all(name.startswith("J.safetensors.part") for name in kept if name not in whole), kept


def whole_results(place: Path, before: list[str]) -> tuple[str, ...]:
    """The results that were in place when the signal came, where what remained was to describe them on the screen. Each can be read."""
    there = {name for name in names(place) if name not in before and ".part" not in name}
    for name in there:
        if name == "J.safetensors":
            matrix = load_jacobian(place / name).matrix
            assert np.isfinite(matrix).all()
            assert np.abs(matrix).sum() > 0
        elif name == "out":
            assert len(Circuit.load(place / name).edges) > 0
        elif name.endswith(".svg"):
            ElementTree.parse(place / name)
        else:
            assert name.startswith("out/"), name
    return tuple(there)


def run_whole(place: Path, command: str) -> float:
    """How long the command takes once its programs are compiled; removes what it wrote."""
    before, took = names(place), 0.0
    for _ in range(2):
        begun = time.monotonic()
        process = start_command(place, *COMMANDS[command])
        status, _, err = process.finish(timeout=600)
        took = time.monotonic() - begun
        assert status == 0, err
        clear(place, before)
    return took


def clear(place: Path, before: list[str]) -> None:
    for name in reversed(names(place)):
        if name not in before:
            path = place / name
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("command", list(COMMANDS) if MOMENTS else ["demo", "jacobian"])
def test_an_interrupt_ends_a_command_at_any_moment(command, place):
    """Of those that hit the interpreter's first moments, before a line of ours has run, none is tried: they are Python's."""
    moments = MOMENTS or 2
    before, whole = names(place), run_whole(place, command) if MOMENTS else 6.0
    late = 0
    for moment in range(moments):
        process = start_command(place, *COMMANDS[command])
        time.sleep(max(0.4, whole * (moment + 0.5) / moments))
        if process.poll() is not None:  # it was quicker than the first run
            late += 1
            process.finish()
        else:
            status, _, err = stopped(process)
            if status == 0:  # it had done its work, and was leaving
                late += 1
                assert "stopped" not in err
            else:
                check_stopped(status, err, before, names(place), whole=whole_results(place, before))
        clear(place, [*before, *(name for name in names(place) if ".part" in name)])
    clear(place, before)
    assert late <= (moments + 1) // 2
    print(f"{command}: {moments} interrupts over {whole:.1f} s, {late} after the end")


def test_sigterm_ends_a_command_too(place):
    before = names(place)
    process = start_command(place, *COMMANDS["demo"])
    time.sleep(3)
    status, _, err = stopped(process, signal.SIGTERM)
    check_stopped(status, err, before, names(place), expected=143)


STUCK = """
import gc, sys, time
from pathlib import Path
sys.argv = ["jaxcirc", "doctor"]
import jaxcirc
from jaxcirc import _files, cli
from jaxcirc.cli import _doctor
def stuck(arguments):
    with _files.writing_file("result.txt") as aside:
        aside.write_text("half")
        print("ready", flush=True)
        {body}
_doctor.doctor = stuck
sys.exit(cli.main())
"""
BODIES = {
    "in a callback of the garbage collector": "gc.callbacks.append(lambda *_: time.sleep(0.01))\n        while True: gc.collect()",
    "in a destructor": "T = type('T', (), {'__del__': lambda self: time.sleep(0.01)})\n        while True: T()",
    "where everything is caught": """
        while True:
            try: time.sleep(0.01)
            except BaseException: pass""",
    "in a compiled function": """
        import jax
        jax.jit(lambda i: jax.lax.while_loop(lambda i: i >= 0, lambda i: (i + 1) % 7, i))(0).block_until_ready()""",
}


@pytest.mark.parametrize("where", list(BODIES))
def test_an_interrupt_is_not_lost(where, tmp_path):
    """Where an exception would be swallowed, or would come too late, and with a file half-written."""
    program = STUCK.replace("{body}", BODIES[where])
    process = start(tmp_path, "-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(names(tmp_path)) == 1
    status, _, err = stopped(process)
    check_stopped(status, err, [], names(tmp_path))


def test_a_stopped_jacobian_goes_on_where_it_was(tmp_path):
    """Stopped once a part is there; the next run begins behind it, and ends with the whole file."""
    place = tmp_path / "here"
    place.mkdir()
    state = place / "J.safetensors.part.json"
    small = [*COMMANDS["jacobian"]]
    process = start_command(place, *small)
    while process.poll() is None and not state.exists():
        time.sleep(0.002)
    if process.poll() is None:
        status, _, err = stopped(process)
        assert status in (0, 130), err
    else:
        process.finish()
    again = start_command(place, *small, "--json")
    status, out, err = again.finish(timeout=300)
    assert status == 0, err
    assert json.loads(out)["certificate"]["error"] < 1e-4
    assert names(place) == ["J.safetensors"]


def test_what_was_moved_aside_is_put_back(tmp_path, monkeypatch):
    """Stopped between moving the old result aside and the new one in: the old one stands as it was."""
    given = {"marker": "circuit.json", "what": "circuit"}
    folder = tmp_path / "circuit"
    with _files.writing_folder(folder, **given) as aside:
        (aside / "circuit.json").write_text("old")
    seen = []

    def stop_at(source, target):
        if Path(target) == folder and not seen:
            seen.append(None)
            _files.abandon()
            assert (folder / "circuit.json").read_text() == "old"
            assert names(tmp_path) == ["circuit", "circuit/circuit.json"]
            raise KeyboardInterrupt
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", stop_at)
    with pytest.raises((KeyboardInterrupt, OSError)), _files.writing_folder(folder, **given) as aside:
        (aside / "circuit.json").write_text("new")
    assert seen
    assert (folder / "circuit.json").read_text() == "old"


def test_signals_of_a_program_that_calls_main_are_its_own(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupted(arguments):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxcirc.cli._doctor.doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "jaxcirc: stopped.\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert _stop._wakeup is None
