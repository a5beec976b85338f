"""`jaxcirc view` with a model behind the page: what a moved node does, who may ask, and how the page shows it."""

import argparse
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.cli._main import parser
from jaxcirc.cli._view import _live
from jaxcirc.explorer import Live, Moved, page, server_of

from .test_explorer import small_circuit
from .test_explorer_browser import browser as browser, pytestmark as in_a_browser


@contextmanager
def serving(text: str, live: Live | None) -> Iterator[str]:
    with server_of(text, live, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def ask(url: str, question: object, **headers: str) -> tuple[int, dict]:
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        said = error.read()
        return error.code, json.loads(said) if said else {}


def refuses(node: str, strength: float) -> list[Moved]:
    if node != "a":
        raise ValueError(f"There is no {node}.")
    return [Moved("metric", -strength, 2 * strength)]


def test_a_question_and_its_answer():
    with serving("page", Live("Moves it.", 1.0, refuses)) as url:
        assert ask(f"{url}run", {"node": "a", "strength": 0.5}) == (
            200,
            {"rows": [{"what": "metric", "predicted": -0.5, "measured": 1.0}]},
        )
        assert ask(f"{url}run", {"node": "b", "strength": 1}) == (400, {"error": "There is no b."})
        for question in (
            b"{",
            b"[1]",
            {"node": "a"},
            {"node": "a", "strength": "1"},
            b'{"node": "a", "strength": NaN}',
        ):
            status, said = ask(f"{url}run", question)
            assert (status, list(said)) == (400, ["error"])
        assert ask(f"{url}elsewhere", {"node": "a", "strength": 1})[0] == 404


def test_other_sites_get_nothing():
    """Neither under a name of their own for this machine, nor from a page of theirs."""
    with serving("page", Live("Moves it.", 1.0, refuses)) as url:
        own = url.rstrip("/")
        question = {"node": "a", "strength": 1}
        assert ask(f"{url}run", question, Host="evil.example:80")[0] == 403
        assert ask(f"{url}run", question, Origin="http://evil.example")[0] == 403
        assert ask(f"{url}run", question, Origin=own)[0] == 200
    with serving("page", None) as url:
        assert ask(f"{url}run", question)[0] == 404


def arguments(*given: str) -> argparse.Namespace:
    return parser().parse_args(["view", "saved", *given])


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    pairs = [
        ("The teacher that the doctors like", "The teachers that the doctors like", " is", " are"),
        ("The doctor that the teachers like", "The doctors that the teachers like", " is", " are"),
    ]
    names = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
    path.write_text("\n".join(json.dumps(dict(zip(names, pair, strict=True))) for pair in pairs))
    return path


def test_a_node_of_a_circuit_is_moved_as_steer_moves_it(prompt_file):
    model, saes = jc.from_pretrained("tiny-gpt2"), jc.load_saes("tiny-gpt2")
    prompts = jc.data.load_prompts(prompt_file, jc.load_tokenizer("tiny-gpt2"), bos=False)
    given = model, saes, prompts.clean, prompts.corrupt, prompts.metric()
    circuit = jc.discover(*given, node_threshold=0.3, edge_threshold=0.1, method=jc.Gradient())
    node = circuit.node_rows()[0].node
    live = _live(arguments("--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--prompts", str(prompt_file)), circuit)
    (moved,) = live.run(node, 0.5)
    want = jc.steer(circuit, *given, [node], strengths=[0.5]).iloc[0]
    np.testing.assert_allclose([moved.predicted, moved.measured], [want["predicted"], want["measured"]], rtol=1e-3)
    assert abs(moved.measured) > 0.05
    with pytest.raises(ValueError, match="nothing"):
        live.run("nothing", 1.0)


def test_a_neuron_of_a_graph_is_moved_as_check_graph_moves_it():
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    tokens = jnp.asarray(tokenizer.encode("The teachers that"))
    graph = jc.attribution_graph(model, None, tokens, max_nodes=60)
    node = int(graph.nodes.index[graph.nodes["kind"] == "latent"][0])
    layer = int(graph.nodes["layer"][node])
    live = _live(arguments("--model", "tiny-gpt2"), graph)
    described = graph.described()
    moved = live.run(described.nodes[node].name, 0.0)
    want = jc.check_graph(graph, model, None, [node], strengths=[0.0], frozen=(), live_from=layer + 1)
    assert max(abs(row.measured) for row in moved) == pytest.approx(want["measured"].abs().max(), rel=1e-3)
    assert max(abs(row.measured) for row in moved) > 1e-4
    assert {row.what for row in moved} <= {each.name for each in described.nodes}
    token = next(each.name for each in described.nodes if each.kind == "token")
    with pytest.raises(ValueError, match="Only latents"):
        live.run(token, 0.0)


def test_options_that_do_not_go_together(tmp_path, capsys, prompt_file):
    small_circuit().save(tmp_path / "circuit")
    for given, said in (
        (["--model", "tiny-gpt2"], "--model without --saes"),
        (["--saes", "tiny-gpt2", "--prompts", str(prompt_file)], "--saes without --model"),
        (["--model", "tiny-gpt2", "--transcoders", "x"], "--transcoders is not for a circuit"),
        (["--model", "tiny-gpt2", "--out", str(tmp_path / "page.html")], "--model is for a page that is served"),
    ):
        assert main(["view", str(tmp_path / "circuit"), "--no-browser", *given]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


class TestInABrowser:
    pytestmark = in_a_browser

    def test_the_pinned_node_is_moved(self, browser):
        circuit = small_circuit()
        name = circuit.node_rows()[0].node
        asked = []

        def run(node: str, strength: float) -> list[Moved]:
            asked.append((node, strength))
            if strength < 0:
                raise ValueError("<b>Not below 0.</b>")
            return [Moved("metric <i>", -0.25, -0.125)]

        live = Live("Moves it <b>far</b>.", 1.0, run)
        with serving(page(circuit.described(), live), live) as url:
            tab = browser.new_page()
            tab.goto(url)
            tab.wait_for_selector("html[data-ready]")
            tab.click(f'[data-node="{name}"]')
            assert "Moves it <b>far</b>." in tab.inner_text("#details")
            tab.fill('input[name="strength"]', "2")
            tab.click("#run")
            tab.wait_for_selector("#moved table")
            shown = tab.inner_text("#moved")
            assert "metric <i>" in shown
            assert "−0.25" in shown
            assert "−0.125" in shown
            tab.fill('input[name="strength"]', "-1")
            tab.click("#run")
            tab.wait_for_selector("#moved p")
            assert tab.inner_text("#moved") == "<b>Not below 0.</b>"
            tab.close()
        assert asked == [(name, 2.0), (name, -1.0)]

    def test_a_page_in_a_file_moves_nothing(self, browser, tmp_path):
        circuit = small_circuit()
        circuit.to_html(tmp_path / "page.html")
        tab = browser.new_page()
        tab.goto((tmp_path / "page.html").as_uri())
        tab.wait_for_selector("html[data-ready]")
        tab.click(f'[data-node="{circuit.node_rows()[0].node}"]')
        assert tab.query_selector("#details h2") is not None
        assert tab.query_selector("#run") is None
        tab.close()
