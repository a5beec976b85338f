"""The explorer's page in a browser: what it shows, what it answers, and that it asks for nothing."""

import json
import shutil
from urllib.parse import unquote

import pytest

from jaxcirc.explorer import Description, write_page

from .test_explorer import EVIL, random_circuit, small_circuit


playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is tried in a browser where playwright is installed"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
DESKTOP, PHONE = {"width": 1300, "height": 850}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page, every request recorded and but for its own refused; at the end there were none, and no error either."""
    asked, told, contexts = [], [], []

    def opened(path, hash_="", viewport=DESKTOP):
        context = browser.new_context(viewport=viewport)
        contexts.append(context)

        def refuse(route):
            if route.request.url.partition("#")[0] == path.as_uri():
                return route.continue_()
            asked.append(route.request.url)
            return route.abort()

        context.route("**/*", refuse)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(path.as_uri() + hash_)
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert asked == []
    assert told == []


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """A circuit of 150 nodes and 1,500 edges, and its page."""
    described = random_circuit(nodes=150, edges=1500, rows=6, positions=4)
    path = tmp_path_factory.mktemp("page") / "medium.html"
    write_page(path, described)
    return described, path


def slide(page, which, value):
    page.eval_on_selector(
        f'input[name="{which}-threshold"]',
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def counts(page):
    return tuple(int(page.inner_text(f'[data-count="{what}"]')) for what in ("nodes", "edges"))


def expected(described, node, edge):
    shown = {each.name for each in described.nodes if abs(each.value) >= node}
    edges = [each for each in described.edges if {each.source, each.target} <= shown and abs(each.weight) >= edge]
    return len(shown), len(edges)


def test_sliders_show_what_the_tables_say(medium, visit):
    described, path = medium
    page = visit(path)
    first = json.loads(page.inner_text("#data") or page.eval_on_selector("#data", "e => e.textContent"))["first"]
    assert counts(page) == expected(described, first["node"], first["edge"])
    assert 0 < counts(page)[1] < 1500
    assert "At first the strongest are shown" in page.inner_text("#counts")
    for node, edge in ((0, 0), (0, 0.7), (0.5, 0), (1.0, 1.0), (0, 3.0), (0, 0)):
        slide(page, "node", node)
        slide(page, "edge", edge)
        assert counts(page) == expected(described, node, edge)
    assert counts(page) == (150, 1500)


def test_what_is_drawn_is_what_is_counted(medium, visit):
    described, path = medium
    page = visit(path)
    slide(page, "node", 0.5)
    slide(page, "edge", 0.4)
    page.wait_for_timeout(400)
    drawn = page.evaluate(
        """() => { const doc = Bokeh.documents[0]; let lines = 0;
        for (const sign of ["positive", "negative"]) for (let l = 0; l < 5; l++)
          lines += Array.from(doc.get_model_by_name(`edges-${sign}-${l}`).data.x).filter(Number.isNaN).length;
        return [doc.get_model_by_name("nodes").data.x.length, lines]; }"""
    )
    assert tuple(drawn) == counts(page) == expected(described, 0.5, 0.4)


def test_a_click_pins_a_node_and_shows_its_edges(medium, visit):
    described, path = medium
    page = visit(path)
    ends = [edge.source for edge in described.edges] + [edge.target for edge in described.edges]
    inner = [each.name for each in described.nodes if each.row in (2, 3)]
    name = max(inner, key=ends.count)
    page.click(f'[data-node="{name}"]')
    assert name in page.inner_text("#details h2")
    for table, (mine, other) in enumerate((("target", "source"), ("source", "target"))):
        true = sorted(
            (edge for edge in described.edges if getattr(edge, mine) == name), key=lambda edge: -abs(edge.weight)
        )
        rows = page.locator("#details table.edges").nth(table).locator("tbody tr")
        assert rows.count() == min(8, len(true)) > 2
        for i, edge in enumerate(true[:8]):
            assert rows.nth(i).locator("button").inner_text() == getattr(edge, other)
            shown = float(rows.nth(i).locator("td.number").inner_text().replace("−", "-"))
            assert shown == pytest.approx(edge.weight, rel=1e-3)
    page.locator("#details table.edges").nth(0).locator("tbody button").first.click()
    assert name not in page.inner_text("#details h2")
    page.keyboard.press("Escape")
    assert "to pin it" in page.inner_text("#details")


def test_a_tap_on_the_drawing_pins_the_node_there(medium, visit):
    page = visit(medium[1])
    x, y, name = page.evaluate(
        """() => {
        const plot = Bokeh.documents[0].get_model_by_name("explorer");
        const nodes = JSON.parse(document.getElementById("data").textContent).nodes;
        const box = document.getElementById("drawing").getBoundingClientRect();
        const scale = plot.inner_width / (plot.x_range.end - plot.x_range.start);
        const at = [box.left + (nodes.x[0] - plot.x_range.start) * scale, box.top + (plot.y_range.end - nodes.y[0]) * scale];
        return [...at, nodes.name[0]]; }"""
    )
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")
    assert name in page.inner_text("#tip")
    page.mouse.click(x, y)
    page.wait_for_function("name => document.querySelector('#details h2').textContent === name", arg=name)


def test_keys_walk_along_edges(medium, visit):
    described, path = medium
    page = visit(path)
    start = max(described.edges, key=lambda edge: abs(edge.weight))
    page.click(f'[data-node="{start.source}"]')
    page.keyboard.press("ArrowUp")
    out = sorted((edge for edge in described.edges if edge.source == start.source), key=lambda edge: -abs(edge.weight))
    assert page.inner_text("#details h2") == out[0].target
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#details h2") == out[1].target
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    into = max((edge for edge in described.edges if edge.target == out[0].target), key=lambda edge: abs(edge.weight))
    assert page.inner_text("#details h2") == into.source
    page.keyboard.press("/")
    page.keyboard.type("n14")
    matching = sum("n14" in each.name for each in described.nodes)
    assert page.locator("#nodes li:visible").count() == matching > 3
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")


def test_the_address_restores_the_view(medium, visit):
    described, path = medium
    page = visit(path)
    ends = described.nodes[3].name, described.nodes[5].name
    slide(page, "node", 0.25)
    slide(page, "edge", 0.5)
    page.click(f'[data-node="{ends[0]}"]')
    page.fill('#details input[aria-label="name of a group"]', "a <group>")
    page.click("#details button:has-text('Add to group')")
    page.fill('input[name="search"]', "n1")
    page.wait_for_timeout(200)
    shared = page.evaluate("location.hash")
    assert "a+<group>" in unquote(shared)
    other = visit(path, shared)
    assert counts(other) == counts(page) == expected(described, 0.25, 0.5)
    assert other.inner_text("#details h2") == ends[0]
    assert other.input_value('#groups input[aria-label="label of the group"]') == "a <group>"
    assert other.input_value('input[name="search"]') == "n1"
    assert float(other.input_value('input[name="edge-threshold"]')) == 0.5
    other.goto(path.as_uri() + "#edges=nonsense&nodes=-1&pin=nobody&groups=%7B")  # what means nothing is left out
    assert counts(other)[0] > 0


def test_groups_are_saved_and_loaded(medium, visit, tmp_path):
    described, path = medium
    page = visit(path)
    held = [
        {"label": "x", "nodes": [described.nodes[0].name, "nobody"]},
        {"label": "y", "nodes": [described.nodes[1].name]},
    ]
    (tmp_path / "groups.json").write_text(json.dumps(held))
    page.set_input_files("#groups-load", tmp_path / "groups.json")
    page.wait_for_function("document.querySelectorAll('#groups .group').length === 2")
    with page.expect_download() as download:
        page.click("#groups-save")
    saved = json.loads(download.value.path().read_text())
    assert saved == [{"label": "x", "nodes": [described.nodes[0].name]}, held[1]]
    (tmp_path / "bad.json").write_text("{")
    page.set_input_files("#groups-load", tmp_path / "bad.json")
    page.wait_for_selector("#groups:has-text('The file holds no groups')")


def test_the_strongest_path(medium, visit):
    described, path = medium
    page = visit(path)
    products = {}  # the strongest product of weights from the first node of the lowest row, by brute force along rows
    row = {each.name: each.row for each in described.nodes}
    first = next(edge.source for edge in described.edges if row[edge.source] == 0)
    products[first] = 1.0
    for edge in sorted(described.edges, key=lambda edge: row[edge.source]):
        if edge.source in products:
            through = products[edge.source] * edge.weight
            if abs(through) > abs(products.get(edge.target, 0)):
                products[edge.target] = through
    last = next(name for name in products if row[name] == 5)
    page.fill('input[name="from"]', first)
    page.fill('input[name="to"]', last)
    page.click("#path-form button[type=submit]")
    told = page.inner_text("#path p >> nth=0").rpartition(": ")[2].replace("−", "-")
    assert float(told) == pytest.approx(products[last], rel=1e-3)
    assert page.locator("#path ol li").first.inner_text() == first
    page.check("#path input[type=checkbox]")
    assert 1 < counts(page)[0] < 150


def test_names_do_not_run(visit, tmp_path):
    circuit = small_circuit()
    texts = {"blocks.0.hook_mlp_out/3@0": EVIL}
    latents = {
        "blocks.0.hook_mlp_out/3": {
            "acts": [1.0, 0.0],
            "examples": [{"tokens": [EVIL, "$$x^2$$"], "acts": [1.0, 2.0]}],
            "promotes": [[EVIL, 1.0]],
            "suppresses": [["\x07\u202e\n", -1.0]],
        }
    }
    circuit = circuit.annotate(
        title=EVIL, tokens=[EVIL, "$$\\frac{1}{2}$$ שלום"], annotations=texts, latents=latents, metric=EVIL
    )
    renamed = circuit.nodes.assign(node=circuit.nodes["node"].replace("blocks.1.hook_resid_post/7@1", EVIL))
    edges = circuit.edges.replace("blocks.1.hook_resid_post/7@1", EVIL)
    type(circuit)(renamed, edges, circuit.meta).to_html(tmp_path / "evil.html")
    page = visit(tmp_path / "evil.html")
    for node in (EVIL, "blocks.0.hook_mlp_out/3@0"):
        page.evaluate('name => document.querySelector(`[data-node="${CSS.escape(name)}"]`).click()', node)
        page.fill('#details input[aria-label="name of a group"]', EVIL)
        page.click("#details button:has-text('Add to group')")
    page.wait_for_timeout(300)
    assert page.title() == EVIL
    assert page.locator("img").count() == 0
    assert "[U+0007][U+202E]↵" in page.inner_text("#details")
    assert EVIL in page.inner_text("#details")
    shared = page.evaluate("location.hash")
    assert visit(tmp_path / "evil.html", shared).locator("img").count() == 0


def test_no_nodes_and_one_node(visit, tmp_path):
    small_circuit().subgraph([]).to_html(tmp_path / "none.html")
    page = visit(tmp_path / "none.html")
    assert counts(page) == (0, 0)
    assert page.is_visible("#empty")
    small_circuit().subgraph(["blocks.0.hook_mlp_out/3@0"]).to_html(tmp_path / "one.html")
    page = visit(tmp_path / "one.html", viewport=PHONE)
    page.click("[data-node]")
    assert counts(page) == (1, 0)
    assert "none" in page.inner_text("#details")


def test_a_phone_shows_all_of_it(medium, visit):
    page = visit(medium[1], viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for part in ("#drawing", "#details", "#nodes", 'input[name="edge-threshold"]'):
        assert page.locator(part).bounding_box()["width"] > 100


def test_a_sliders_step_in_a_large_circuit(visit, tmp_path):
    """Under 200 ms from the event to the next frame; the least of several, so that a busy machine does not matter."""
    described: Description = random_circuit()
    write_page(tmp_path / "large.html", described)
    assert (tmp_path / "large.html").stat().st_size < 12e6
    page = visit(tmp_path / "large.html")
    page.click("#show-all")
    assert counts(page) == (2000, 20_000)
    for which, values in (("edge", (0.1, 0.3, 0.05, 0.02)), ("node", (0.01, 0.1, 0.02, 0.05))):
        page.wait_for_timeout(1500)
        taken = page.evaluate(
            """async ([which, values]) => { const slider = document.querySelector(`input[name="${which}-threshold"]`), taken = [];
            for (const value of values) { const start = performance.now(); slider.value = value; slider.dispatchEvent(new Event("input"));
              await new Promise((done) => requestAnimationFrame(() => setTimeout(done))); taken.push(performance.now() - start); }
            return taken; }""",
            [which, list(values)],
        )
        assert 0 < min(taken) < 200, taken
    assert counts(page) == expected(described, 0.05, 0.02)
