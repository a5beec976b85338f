"use strict";
// The page's own part: what is shown, what is pinned, the panel beside the drawing. It reads the data once, keeps the state in the address,
// and fills the sources of the drawing. Text from the data reaches the page by textContent alone, so that nothing in it can run.
window.explorer = (() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data"), N = data.nodes, E = data.edges;
  const nodeCount = N.name.length, edgeCount = E.source.length, number = new Map(N.name.map((name, i) => [name, i]));
  const size = (x) => (x === null ? Infinity : Math.abs(x)); // a node without a value is never hidden
  const largestNode = N.value.reduce((m, v) => (v === null ? m : Math.max(m, Math.abs(v))), 0);
  const largestEdge = edgeCount ? Math.abs(E.weight[0]) : 0; // edges come strongest first
  const byId = (id) => document.getElementById(id), field = (name) => document.querySelector(`input[name="${name}"]`);
  const sliders = { edge: field("edge-threshold"), node: field("node-threshold") };
  const RED = [178, 24, 43], BLUE = [33, 102, 172], PURPLE = [84, 39, 143], PALE = [244, 244, 242], LEVELS = 5, MANY = 1200, AT_ONCE = 2000, FEW = 8;
  const RINGS = ["#d97706", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f", "#0369a1", "#92400e", "#475569"];
  const into = N.name.map(() => []), outOf = N.name.map(() => []);
  for (let i = 0; i < edgeCount; i++) { into[E.target[i]].push(i); outOf[E.source[i]].push(i); }
  const start = new Int32Array(edgeCount + 1);
  for (let i = 0; i < edgeCount; i++) start[i + 1] = start[i] + 2 * E.count[i];

  // ---- State: all that the address holds.
  const state = { edge: data.first.edge, node: data.first.node, pin: null, search: "", groups: [], from: "", to: "", between: false };
  let shownNodes = new Uint8Array(nodeCount), shownEdges = 0, path = null, order = "weight", whole = false;

  function toAddress() {
    const held = new URLSearchParams();
    held.set("edges", state.edge); held.set("nodes", state.node);
    if (state.pin !== null) held.set("pin", N.name[state.pin]);
    if (state.search) held.set("search", state.search);
    if (state.from && state.to) { held.set("from", state.from); held.set("to", state.to); if (state.between) held.set("between", 1); }
    if (state.groups.length) held.set("groups", JSON.stringify(state.groups));
    history.replaceState(null, "", "#" + held);
  }
  function fromAddress() {
    const held = new URLSearchParams(location.hash.slice(1));
    const threshold = (name, otherwise) => { const x = parseFloat(held.get(name)); return x >= 0 ? x : otherwise; };
    state.edge = threshold("edges", data.first.edge); state.node = threshold("nodes", data.first.node);
    state.pin = number.has(held.get("pin")) ? number.get(held.get("pin")) : null;
    state.search = held.get("search") || ""; state.from = held.get("from") || ""; state.to = held.get("to") || "";
    state.between = held.has("between");
    try { state.groups = groupsOf(JSON.parse(held.get("groups") || "[]")); } catch { state.groups = []; }
    sliders.edge.value = state.edge; sliders.node.value = state.node; field("search").value = state.search;
    field("from").value = state.from; field("to").value = state.to;
    path = state.from && state.to ? findPath(number.get(state.from), number.get(state.to)) : null;
  }
  // Takes groups from an address or a file: what is no list of labels and known names is left out.
  function groupsOf(given) {
    if (!Array.isArray(given)) throw new Error("no list");
    const ok = given.filter((g) => g && typeof g.label === "string" && Array.isArray(g.nodes));
    return ok.map((g) => ({ label: g.label, nodes: g.nodes.filter((n) => number.has(n)) })).filter((g) => g.nodes.length);
  }

  // ---- Small helpers: elements, numbers, text.
  function make(tag, options = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) key in element ? (element[key] = value) : element.setAttribute(key, value);
    element.append(...inside);
    return element;
  }
  const text = (said) => make("bdi", { textContent: visible(said) });
  // Shows what a font has no mark for: line ends, tabs, controls, and spaces that stand alone.
  const visible = (said) => String(said).replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +$/, (s) => "␣".repeat(s.length))
    .replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}\uFFFD]/gu, (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`) || "∅";
  const digits = (x, sign = false) => x === null ? "" : (sign && x > 0 ? "+" : "") + (x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5
    ? x.toExponential(2) : String(+x.toPrecision(4))).replace("-", "−");
  const signed = (x) => make("span", { className: x > 0 ? "up" : x < 0 ? "down" : "", textContent: digits(x, true) });
  const mix = (x, of) => { // red above 0, blue below, pale at 0, or purple for what has no sign; the root makes weak ones visible
    const share = of ? Math.sqrt(Math.min(Math.abs(x) / of, 1)) : 0, end = !data.signed ? PURPLE : x < 0 ? BLUE : RED;
    return `rgb(${PALE.map((p, i) => Math.round(p + (end[i] - p) * share)).join()})`;
  };
  const at = (i) => N.pos[i] === null ? "" : `${N.name[i].endsWith(`@${N.pos[i]}`) ? "" : ` at ${N.pos[i]}`}${data.tokens && N.pos[i] < data.tokens.length ? ` “${visible(data.tokens[N.pos[i]])}”` : ""}`;
  const link = (i, said = N.name[i]) => make("button", { type: "button", className: "link", onclick: () => pin(i) }, text(said));

  // ---- What is shown.
  function choose() {
    let nodes = 0;
    const between = state.between && path && path.nodes;
    for (let i = 0; i < nodeCount; i++) {
      shownNodes[i] = size(N.value[i]) >= state.node && (!between || between.has(i)) ? 1 : 0;
      nodes += shownNodes[i] && N.counted[i];
    }
    let edges = 0, last = 0;
    while (last < edgeCount && Math.abs(E.weight[last]) >= state.edge) last++;
    for (let i = 0; i < last; i++) edges += visibleEdge(i);
    shownEdges = last;
    document.querySelector('[data-count="nodes"]').textContent = nodes;
    document.querySelector('[data-count="edges"]').textContent = edges;
    byId("edge-value").textContent = digits(state.edge); byId("node-value").textContent = digits(state.node);
    byId("first").textContent = state.edge === data.first.edge && state.node === data.first.node && (state.edge > 0 || state.node > 0)
      ? "At first the strongest are shown; “All” shows the rest." : "";
    return edges;
  }
  const visibleEdge = (i) => shownNodes[E.source[i]] & shownNodes[E.target[i]];

  // ---- The drawing: Bokeh's sources, filled.
  let find = null, plot = null, pixels = 0;
  const points = (i) => { const xs = [], ys = []; for (let j = start[i]; j < start[i + 1]; j += 2) { xs.push(E.points[j] / 100); ys.push(E.points[j + 1] / 100); } return [xs, ys]; };
  const level = (share) => (share > 0.5 ? 0 : share > 0.25 ? 1 : share > 0.1 ? 2 : share > 0.03 ? 3 : 4);

  function drawEdges(count, most = edgeCount) {
    if (!find) return;
    const held = {};
    let left = most;
    for (const sign of ["positive", "negative"]) for (let l = 0; l < LEVELS; l++) held[`${sign}-${l}`] = { x: [], y: [] };
    for (let i = 0; i < shownEdges && left; i++) {
      if (!visibleEdge(i)) continue;
      left--;
      const to = held[`${E.weight[i] < 0 ? "negative" : "positive"}-${level(Math.abs(E.weight[i]) / (largestEdge || 1))}`];
      for (let j = start[i]; j < start[i + 1]; j += 2) { to.x.push(E.points[j] / 100); to.y.push(E.points[j + 1] / 100); }
      to.x.push(NaN); to.y.push(NaN);
    }
    const focus = state.pin !== null || path !== null, thin = count > MANY;
    for (const [name, line] of Object.entries(held)) {
      const source = find(`edges-${name}`), glyph = find(`line-${name}`).glyph, [width, alpha] = data.levels[+name.at(-1)];
      if (line.x.length || source.data.x.length) source.data = { x: Float64Array.from(line.x), y: Float64Array.from(line.y) };
      // Thousands of wide lines take a second to draw, and hide each other.
      const style = [thin ? Math.min(width, 0.9) : width, alpha * (focus ? 0.18 : thin ? 0.7 : 1)];
      if (glyph.line_width.value !== style[0]) glyph.line_width = { value: style[0] };
      if (glyph.line_alpha.value !== style[1]) glyph.line_alpha = { value: style[1] };
    }
  }
  function drawNodes() {
    if (!find) return;
    const near = new Set(), marked = [];
    if (path) { for (const i of path.edges) marked.push(i); for (const i of path.steps) near.add(i); for (const i of path.nodes) near.add(i); }
    if (state.pin !== null) {
      near.add(state.pin);
      for (const i of [...into[state.pin], ...outOf[state.pin]])
        if (i < shownEdges && visibleEdge(i)) { marked.push(i); near.add(E.source[i]); near.add(E.target[i]); }
    }
    const lit = marked.slice(0, 600).sort((a, b) => Math.abs(E.weight[a]) - Math.abs(E.weight[b]));
    find("marked").data = {
      xs: lit.map((i) => points(i)[0]), ys: lit.map((i) => points(i)[1]), colour: lit.map((i) => (E.weight[i] < 0 ? "#2166ac" : "#b2182b")),
      width: lit.map((i) => (path && path.way.has(i) ? 5 : 1.2 + 4 * Math.abs(E.weight[i]) / (largestEdge || 1))),
    };
    const drawn = [...N.name.keys()].filter((i) => shownNodes[i] || i === state.pin || (path && path.steps.includes(i)));
    const dim = (i) => near.size > 0 && !near.has(i), colour = (i, faint) => mix((faint ? 0.02 : 1) * (N.value[i] || 0), largestNode), strong = (i) => largestNode && Math.abs(N.value[i] || 0) / largestNode > 0.3;
    find("nodes").data = {
      x: drawn.map((i) => N.x[i]), y: drawn.map((i) => N.y[i]), shape: drawn.map((i) => data.kinds[N.kind[i]].shape), fill: drawn.map((i) => colour(i, dim(i))),
      rim: drawn.map((i) => (dim(i) ? "#cbd2d9" : strong(i) ? colour(i) : "#7b8794")),
    };
    inks = new Map(drawn.map((i) => [i, dim(i) ? "#9aa5b1" : strong(i) ? "#fff" : "#1f2933"]));
    letters();
    const ring = [], middle = [];
    state.groups.forEach((group, g) => {
      const members = group.nodes.map((name) => number.get(name)).filter((i) => shownNodes[i]), tint = RINGS[g % RINGS.length];
      for (const i of members) ring.push([i, tint]);
      if (members.length) middle.push([members[0], group.label, tint]);
    });
    if (state.pin !== null) ring.push([state.pin, "#111"]);
    find("rings").data = { x: ring.map(([i]) => N.x[i]), y: ring.map(([i]) => N.y[i]), colour: ring.map(([, c]) => c) };
    find("groups").data = { x: middle.map(([i]) => N.x[i]), y: middle.map(([i]) => N.y[i] + 0.45), text: middle.map(([, t]) => visible(t)), colour: middle.map(([, , c]) => c) };
  }
  // Letters in marks, where these are large enough, and of those in view alone: measuring letters takes longer than all the rest.
  let inks = new Map(), lettering = 0;
  function letters() {
    const { x_range: x, y_range: y } = plot, large = 2 * data.radius * pixels >= 13;
    const inside = (i) => N.label[i] && N.x[i] > x.start && N.x[i] < x.end && N.y[i] > y.start && N.y[i] < y.end;
    const some = large ? [...inks.keys()].filter(inside) : [], source = find("letters");
    if (!some.length && !source.data.x.length) return;
    source.data = { x: some.map((i) => N.x[i]), y: some.map((i) => N.y[i]), ink: some.map((i) => inks.get(i)), label: some.map((i) => visible(N.label[i])) };
  }
  // Marks are as large on the screen as their slots.
  function scaled() {
    if (!plot || !plot.inner_width) return;
    const now = plot.inner_width / (plot.x_range.end - plot.x_range.start), round = Math.max(2 * data.radius * now * 0.96, 3);
    if (Math.abs(now - pixels) > 1e-3 * now) {
      pixels = now;
      find("mark").glyph.size = { value: round };
      find("ring").glyph.size = { value: round + 6 };
      find("text").glyph.text_font_size = { value: `${Math.max(Math.min(round * 0.4, 15), 6).toFixed(1)}px` };
    }
    clearTimeout(lettering);
    lettering = setTimeout(letters, 60);
    const x = (v) => (v - plot.x_range.start) * now, y = (v) => (plot.y_range.end - v) * now;
    data.columns.forEach((column, i) => {
      const head = byId("columns").children[i], left = Math.max(x(column.low), 0), right = Math.min(x(column.high), plot.inner_width);
      head.style.cssText = `left:${left.toFixed(1)}px;width:${Math.max(right - left, 0).toFixed(1)}px`;
    });
    data.rows.forEach((row, i) => { byId("rows").children[i].style.top = `${y((row.low + row.high) / 2).toFixed(1)}px`; });
  }
  function view(left, right, middle) {
    const up = (right - left) * plot.inner_height / plot.inner_width / 2;
    plot.x_range.setv({ start: left, end: right }); plot.y_range.setv({ start: middle - up, end: middle + up });
  }
  function fit() {
    if (!plot || !plot.inner_width || !nodeCount) return;
    const some = [...N.name.keys()].filter((i) => shownNodes[i]), all = some.length ? some : [...N.name.keys()];
    const ends = (v) => all.reduce(([low, high], i) => [Math.min(low, v[i]), Math.max(high, v[i])], [Infinity, -Infinity]);
    const [x0, x1] = ends(N.x), [y0, y1] = ends(N.y), foot = 46 * (y1 - y0 + 2) / plot.inner_height; // room for the legend
    const width = Math.max(x1 - x0 + 2, (y1 - y0 + 2 + foot) * plot.inner_width / plot.inner_height, plot.inner_width / 70);
    view((x0 + x1 - width) / 2, (x0 + x1 + width) / 2, (y0 + y1 - foot) / 2);
  }
  function zoom(by) {
    const { x_range: x, y_range: y } = plot, half = (x.end - x.start) / by / 2, middle = (x.start + x.end) / 2;
    view(middle - half, middle + half, (y.start + y.end) / 2);
  }
  function nearest(x, y) {
    let best = null, least = Math.max(data.radius, 12 / pixels) ** 2;
    for (let i = 0; i < nodeCount; i++) {
      const d = (N.x[i] - x) ** 2 + (N.y[i] - y) ** 2;
      if ((shownNodes[i] || i === state.pin) && d <= least) { best = i; least = d; }
    }
    return best;
  }
  function pointed(event, where) {
    const i = event === "mouseleave" ? null : nearest(where.x, where.y), tip = byId("tip");
    if (event === "tap") { pin(i); return; }
    tip.hidden = i === null;
    byId("drawing").style.cursor = i === null ? "" : "pointer";
    if (i === null) return;
    tip.replaceChildren(text(N.name[i] + at(i)), make("br"), `${data.value} ${digits(N.value[i], data.signed)}`);
    if (about(i).note) tip.append(make("br"), text(about(i).note));
    const box = byId("stage").getBoundingClientRect(), from = byId("drawing");
    tip.style.left = `${Math.min(where.sx + from.offsetLeft + 14, box.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.max(where.sy + from.offsetTop - tip.offsetHeight - 8, 0)}px`;
  }

  // ---- The panel: what is pinned.
  const about = (i) => data.about[N.about[i]] || {};
  function edgeTable(title, edges, other) {
    const box = make("div", {}, make("h3", { textContent: `${title} (${edges.length})` }));
    if (!edges.length) return box.append(make("p", { className: "soft", textContent: "none" })), box;
    const rules = { weight: (a, b) => Math.abs(E.weight[b]) - Math.abs(E.weight[a]), signed: (a, b) => E.weight[b] - E.weight[a],
      node: (a, b) => N.name[other[a]].localeCompare(N.name[other[b]], undefined, { numeric: true }) };
    const sorted = [...edges].sort(rules[order]), listed = whole ? sorted : sorted.slice(0, FEW);
    const head = (said, rule, className = "") => make("th", { className, "aria-sort": order === rule ? "descending" : "none" },
      make("button", { type: "button", textContent: said, onclick: () => { order = rule === "weight" && order === "weight" ? "signed" : rule; details(); } }));
    const table = make("table", { className: "edges" }, make("thead", {}, make("tr", {}, head("node", "node"),
      head(order === "signed" ? "weight ↓" : order === "weight" ? "|weight| ↓" : "weight", "weight", "number"))));
    const body = table.appendChild(make("tbody"));
    for (const i of listed) {
      const note = about(other[i]).note, row = make("tr", { className: i < shownEdges && visibleEdge(i) ? "" : "off" });
      row.append(make("td", {}, link(other[i]), E.part[i] ? ` ${E.part[i]}` : "", note ? make("div", { className: "soft" }, text(note)) : ""),
        make("td", { className: "number" }, signed(E.weight[i])));
      body.append(row);
    }
    box.append(table);
    if (sorted.length > FEW) box.append(make("button", { type: "button", textContent: whole ? "Fewer" : `All ${sorted.length}`, onclick: () => { whole = !whole; details(); } }));
    return box;
  }
  function strip(tokens, acts, here) {
    const most = acts.reduce((m, a) => Math.max(m, Math.abs(a || 0)), 0), line = make("div", { className: "tokens" });
    tokens.forEach((token, i) => {
      const word = text(token), share = most && acts[i] ? Math.abs(acts[i]) / most : 0;
      word.style.backgroundColor = `rgba(${(acts[i] < 0 ? BLUE : RED).join()},${(0.75 * share).toFixed(2)})`;
      word.title = acts[i] === null || acts[i] === undefined ? "not recorded" : digits(acts[i]);
      if (i === here) word.className = "here";
      line.append(word);
    });
    return line;
  }
  function words(title, pairs) {
    const table = make("table");
    for (const [token, x] of pairs) table.append(make("tr", {}, make("td", {}, text(token)), make("td", { className: "number" }, signed(x))));
    return make("div", {}, make("h3", { textContent: title }), table);
  }
  function details() {
    const box = byId("details"), i = state.pin;
    if (i === null) {
      box.replaceChildren(make("h2", { textContent: "Details" }), make("p", { className: "soft", textContent: nodeCount ? "Click a node, here or in the list, to pin it." : "There are no nodes." }));
      return;
    }
    const known = about(i), lacking = [];
    box.replaceChildren(make("h2", {}, text(N.name[i])));
    const facts = [["what", `${N.kind[i]} in ${data.labels[N.row[i]]}${at(i)}`], [data.value, digits(N.value[i], data.signed)], ...Object.entries(known.facts || {})];
    const table = make("table");
    for (const [name, value] of facts) if (value !== "") table.append(make("tr", {}, make("td", { className: "soft" }, text(name)), make("td", {}, text(typeof value === "number" ? digits(value) : value))));
    box.append(table);
    const part = (key, put) => (known[key] && known[key].length ? box.append(...put(known[key])) : lacking.push(key));
    part("note", (note) => [make("h3", { textContent: "Annotation" }), make("p", {}, text(note))]);
    if (data.live) box.append(moving(i));
    box.append(edgeTable("Strongest edges in", into[i], E.source), edgeTable("Strongest edges out", outOf[i], E.target));
    part("acts", (acts) => [make("h3", { textContent: "Activation over the prompt" }), strip(data.tokens || acts.map((_, k) => String(k)), acts, N.pos[i])]);
    part("examples", (found) => [make("h3", { textContent: "Strongest examples" }), ...found.map((each) => strip(each.tokens, each.acts))]);
    if ((known.promotes || []).length) box.append(make("div", { className: "pairs" }, words("Raises most", known.promotes), words("Lowers most", known.suppresses || [])));
    else lacking.push("promotes");
    const said = ["latent", "neuron", "head", "MLP"].includes(N.kind[i]) ? lacking.map((key) => data.missing[key]).filter((s) => s) : []; // no other has any
    if (said.length) box.append(make("h3", { textContent: "Not recorded" }), ...[...new Set(said)].map((s) => make("p", { className: "soft", textContent: s })));
    const name = make("input", { className: "wide", placeholder: "name of a group", "aria-label": "name of a group" });
    name.setAttribute("list", "group-names");
    const add = () => { if (name.value.trim()) group(name.value.trim(), N.name[i]); };
    name.onkeydown = (event) => { if (event.key === "Enter") add(); };
    box.append(make("h3", { textContent: "Group" }), name, make("span", { className: "buttons" }, make("button", { type: "button", textContent: "Add to group", onclick: add }),
      make("button", { type: "button", textContent: "Path from here", onclick: () => { field("from").value = N.name[i]; field("to").focus(); } }),
      make("button", { type: "button", textContent: "Path to here", onclick: () => { field("to").value = N.name[i]; field("from").focus(); } })));
  }
  // ---- Live: the page is served by a process that has the model, in which the pinned node is moved.
  let strength = data.live ? data.live.strength : 0;
  const answers = new Map(); // by node, so that what was asked stays while others are looked at
  function moving(i) {
    const field = make("input", { type: "number", name: "strength", step: "any", value: strength });
    const run = make("button", { type: "button", id: "run", textContent: "Run" }), said = make("div", { id: "moved", "aria-live": "polite" });
    const show = () => {
      const answer = answers.get(i);
      if (!answer) { said.replaceChildren(); return; }
      if (answer.error) { said.replaceChildren(make("p", {}, text(answer.error))); return; }
      const head = (words, className = "") => make("th", { textContent: words, className });
      const table = make("table", { className: "edges" }, make("thead", {}, make("tr", {}, head(`strength ${digits(answer.strength)}: change of`), head("predicted", "number"), head("measured", "number"))));
      for (const row of answer.rows) table.append(make("tr", {}, make("td", {}, number.has(row.what) ? link(number.get(row.what)) : text(row.what)),
        make("td", { className: "number" }, signed(row.predicted)), make("td", { className: "number" }, signed(row.measured))));
      said.replaceChildren(table);
    };
    const ask = async () => {
      strength = parseFloat(field.value);
      run.disabled = true; run.textContent = "Running…";
      try {
        const body = JSON.stringify({ node: N.name[i], strength });
        const reply = await fetch("run", { method: "POST", headers: { "Content-Type": "application/json" }, body });
        answers.set(i, { strength, ...(await reply.json()) });
      } catch {
        answers.set(i, { error: "The process that has the model does not answer. Is `jaxcirc view` still running?" });
      }
      run.disabled = false; run.textContent = "Run";
      show();
    };
    run.onclick = ask;
    field.onkeydown = (event) => { if (event.key === "Enter") ask(); };
    show();
    return make("div", {}, make("h3", { textContent: "Move it in the model" }), make("p", { className: "soft", textContent: data.live.words }),
      make("label", {}, "strength ", field), " ", run, said);
  }
  function pin(i) {
    state.pin = i; whole = false;
    for (const old of document.querySelectorAll('#nodes [aria-pressed="true"]')) old.setAttribute("aria-pressed", "false");
    if (i !== null) listed[i].setAttribute("aria-pressed", "true");
    update();
  }

  // ---- Paths: the strongest by the product of weights, and all that lies between.
  function findPath(a, b) {
    if (a === undefined || b === undefined || a === b) return { steps: [], edges: [], nodes: new Set(), way: new Set(), product: 0 };
    const reach = (from, edges, other) => { const seen = new Set([from]), left = [from]; while (left.length) for (const e of edges[left.pop()]) if (E.weight[e] && !seen.has(other[e])) { seen.add(other[e]); left.push(other[e]); } return seen; };
    const after = reach(a, outOf, E.target), nodes = new Set([...reach(b, into, E.source)].filter((i) => after.has(i)));
    const inside = [...Array(edgeCount).keys()].filter((e) => E.weight[e] && nodes.has(E.source[e]) && nodes.has(E.target[e]));
    if (!nodes.has(b)) return { steps: [], edges: [], nodes: new Set(), way: new Set(), product: 0 };
    const waits = new Map([...nodes].map((i) => [i, 0])), best = new Map([[a, 0]]), by = new Map(), ready = [a];
    for (const e of inside) waits.set(E.target[e], waits.get(E.target[e]) + 1);
    while (ready.length) { // in the order of the graph, so that each node is final when it is left
      const i = ready.pop();
      for (const e of outOf[i]) {
        const j = E.target[e];
        if (!E.weight[e] || !nodes.has(j)) continue;
        const through = best.get(i) + Math.log(Math.abs(E.weight[e]));
        if (!best.has(j) || through > best.get(j)) { best.set(j, through); by.set(j, e); }
        waits.set(j, waits.get(j) - 1);
        if (waits.get(j) === 0) ready.push(j);
      }
    }
    const way = [], steps = [b];
    for (let i = b; i !== a && by.has(i) && way.length < nodeCount; i = E.source[by.get(i)]) { way.unshift(by.get(i)); steps.unshift(E.source[by.get(i)]); }
    return { steps, edges: inside, nodes, way: new Set(way), product: way.reduce((p, e) => p * E.weight[e], 1) };
  }
  function showPath() {
    const box = byId("path");
    box.replaceChildren();
    if (!path) return;
    if (!path.steps.length) { box.append(make("p", { textContent: "No path leads from the one to the other. Choose both from the list." })); return; }
    const steps = make("ol", { className: "steps" });
    const ways = [...path.way];
    path.steps.forEach((i, k) => steps.append(make("li", {}, link(i), k ? " " : "", k ? signed(E.weight[ways[k - 1]]) : "")));
    const only = make("input", { type: "checkbox", checked: state.between, onchange: () => { state.between = only.checked; update(); } });
    box.append(make("p", {}, "Strongest path, by the product of weights: ", signed(path.product)), steps,
      make("p", { textContent: `${path.nodes.size} nodes and ${path.edges.length} edges lie on paths between them.` }),
      make("label", {}, only, " show only these nodes"));
  }

  // ---- Groups: supernodes with labels.
  function group(label, name) {
    for (const each of state.groups) each.nodes = each.nodes.filter((n) => n !== name);
    const there = state.groups.find((each) => each.label === label);
    if (there) there.nodes.push(name); else state.groups.push({ label, nodes: [name] });
    state.groups = state.groups.filter((each) => each.nodes.length);
    update();
  }
  function showGroups() {
    const box = byId("groups"), home = new Map();
    box.replaceChildren(...(state.groups.length ? [] : [make("p", { className: "soft", textContent: "Pin a node and add it to a group; groups are nodes that stand for one thing." })]));
    state.groups.forEach((each, g) => {
      const label = make("input", { className: "wide", value: each.label, "aria-label": "label of the group", onchange: () => { each.label = label.value || each.label; update(); } });
      const members = make("ul", { className: "steps" });
      for (const name of each.nodes) {
        home.set(number.get(name), g);
        members.append(make("li", {}, link(number.get(name)), " ", make("button", { type: "button", textContent: "×", "aria-label": `take ${visible(name)} out`, onclick: () => { each.nodes = each.nodes.filter((n) => n !== name); state.groups = state.groups.filter((x) => x.nodes.length); update(); } })));
      }
      const dot = make("span", { className: "dot" });
      dot.style.background = RINGS[g % RINGS.length];
      const total = each.nodes.reduce((sum, name) => sum + (N.value[number.get(name)] || 0), 0);
      box.append(make("div", { className: "group" }, dot, `${each.nodes.length} nodes, ${data.value} `, signed(total), label, members));
    });
    if (!state.groups.length) return;
    const sums = new Map(); // edges between groups, and to single ends such as the metric
    for (let e = 0; e < edgeCount; e++) {
      const a = home.get(E.source[e]), b = home.has(E.target[e]) ? home.get(E.target[e]) : N.counted[E.target[e]] ? undefined : -1 - E.target[e];
      if (a === undefined || b === undefined || a === b) continue;
      sums.set(`${a} ${b}`, (sums.get(`${a} ${b}`) || 0) + E.weight[e]);
    }
    const table = make("table"), said = (g) => (g < 0 ? N.name[-1 - g] : state.groups[g].label);
    for (const [key, sum] of [...sums].sort((x, y) => Math.abs(y[1]) - Math.abs(x[1]))) {
      const [a, b] = key.split(" ").map(Number);
      table.append(make("tr", {}, make("td", {}, text(said(a)), " → ", text(said(b))), make("td", { className: "number" }, signed(sum))));
    }
    if (sums.size) box.append(make("p", { className: "soft", textContent: "Edges between groups, summed:" }), table);
  }

  // ---- The list of nodes, and the search in it.
  const listed = N.name.map((name, i) => make("button", { type: "button", "data-node": name, "aria-pressed": "false", onclick: () => pin(i) },
    make("span", { textContent: data.kinds[N.kind[i]].mark, "aria-hidden": "true" }), 
    make("span", { className: "said" }, text(name + at(i)), about(i).note ? make("span", { className: "soft" }, " ", text(about(i).note)) : ""),
    data.signed ? signed(N.value[i]) : digits(N.value[i])));
  const searched = N.name.map((name, i) => `${name} ${N.kind[i]} ${at(i)} ${about(i).note || ""}`.toLowerCase());
  let off = new Uint8Array(nodeCount), lastSearch = "";
  function list() {
    for (let i = 0; i < nodeCount; i++) if (off[i] !== 1 - shownNodes[i]) { off[i] = 1 - shownNodes[i]; listed[i].parentNode.className = off[i] ? "off" : ""; }
    const wanted = state.search.toLowerCase();
    if (wanted === lastSearch) return;
    lastSearch = wanted;
    let found = 0;
    searched.forEach((said, i) => { const has = said.includes(wanted); found += has; listed[i].parentNode.hidden = !has; });
    byId("found").textContent = wanted ? `${found} of ${nodeCount} match` : "";
  }

  // ---- Everything, after a change. Numbers at once; the drawing in the next frame, so that a slider does not wait for it.
  let asked = false, resting = 0, drawnNodes = new Uint8Array(nodeCount);
  function update(thresholds = false) {
    const count = choose();
    list();
    if (!thresholds || state.pin !== null) details();
    if (!thresholds) { showPath(); showGroups(); }
    const nodesChanged = !thresholds || shownNodes.some((on, i) => on !== drawnNodes[i]);
    if (nodesChanged || state.pin !== null || path) { drawnNodes = shownNodes.slice(); drawNodes(); }
    // While a slider moves, the strongest few thousand are drawn, which takes no longer than a frame or two, and the rest when it rests.
    clearTimeout(resting);
    drawEdges(count, thresholds ? AT_ONCE : edgeCount);
    if (thresholds && count > AT_ONCE) resting = setTimeout(() => drawEdges(count), 200);
    if (!asked) { asked = true; setTimeout(() => { asked = false; toAddress(); }, 60); }
  }

  // ---- Keyboard.
  let step = null; // the edges that the last step chose from, and which it took
  function walk(key) {
    if (state.pin === null) { if (nodeCount) pin(0); return; }
    if (key === "ArrowUp" || key === "ArrowDown") {
      const edges = key === "ArrowUp" ? outOf[state.pin] : into[state.pin];
      if (!edges.length) return;
      step = { edges, other: key === "ArrowUp" ? E.target : E.source, at: 0 };
    } else {
      if (!step || step.other[step.edges[step.at]] !== state.pin) return;
      step.at = (step.at + (key === "ArrowRight" ? 1 : -1) + step.edges.length) % step.edges.length;
    }
    pin(step.other[step.edges[step.at]]);
  }
  function help(open) { byId("help").hidden = !open; byId("help-open").setAttribute("aria-expanded", String(open)); }
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea, select"), plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (event.key === "Escape") { help(false); if (typing) event.target.blur(); else { path = null; state.from = state.to = ""; state.between = false; pin(null); } return; }
    if (typing || !plain) return;
    const keys = { "/": () => field("search").focus(), "?": () => help(byId("help").hidden), "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: fit };
    const action = event.key.startsWith("Arrow") ? () => walk(event.key) : keys[event.key];
    if (action) { event.preventDefault(); action(); }
  });

  // ---- The beginning.
  byId("title").append(text(data.title));
  byId("facts").append(...data.facts.map(([name, said]) => make("span", {}, text(name ? `${name} ${said}` : said))));
  byId("remarks").append(text(data.remarks.join(" ")));
  byId("remarks").hidden = !data.remarks.length;
  byId("all-nodes").textContent = N.counted.reduce((a, b) => a + b, 0); byId("all-edges").textContent = edgeCount;
  byId("settings").textContent = JSON.stringify(data.settings, null, 1);
  byId("empty").hidden = nodeCount > 0;
  sliders.edge.max = largestEdge || 1; sliders.node.max = largestNode || 1;
  byId("nodes").append(...listed.map((button) => make("li", {}, button)));
  byId("names").append(...N.name.map((name) => make("option", { value: name })));
  byId("columns").append(...data.columns.map((c) => make("span", { title: c.pos === null ? c.token : `${c.pos} ${visible(c.token)}` }, make("b", { textContent: c.pos === null ? "" : c.pos }), text(c.pos === null && data.tokens ? "—" : c.token))));
  byId("rows").append(...data.rows.map((row) => make("span", { title: row.label }, text(row.label))));
  const bar = make("span", { className: "bar" }), side = data.signed ? -1 : 0;
  bar.style.background = `linear-gradient(to right, ${[...Array(9).keys()].map((i) => mix((side + (1 - side) * i / 8) * largestNode, largestNode)).join()})`;
  byId("legend").append(`${data.value}: ${data.signed ? "blue negative " + digits(-largestNode) : "0"}`, bar, `${data.signed ? "red positive " : ""}${digits(largestNode, data.signed)}; edges: ${data.weight}, red positive, blue negative, wider and darker for more. `,
    ...Object.entries(data.kinds).map(([kind, { mark }]) => make("span", { className: "kind", textContent: `${mark} ${kind}` })));
  for (const [which, slider] of Object.entries(sliders)) slider.addEventListener("input", () => { state[which] = Number(slider.value); update(true); });
  field("search").addEventListener("input", (event) => { state.search = event.target.value; list(); toAddress(); });
  const set = (edge, node) => { state.edge = edge; state.node = node; sliders.edge.value = edge; sliders.node.value = node; update(true); fit(); };
  const clicks = { "show-all": () => set(0, 0), "show-first": () => set(data.first.edge, data.first.node), "zoom-in": () => zoom(1.3), "zoom-out": () => zoom(1 / 1.3), "zoom-fit": fit,
    "help-open": () => help(byId("help").hidden), skip: () => byId("nodes").focus(), "path-clear": () => { path = null; state.from = state.to = ""; state.between = false; field("from").value = field("to").value = ""; update(); },
    "groups-save": () => { const url = URL.createObjectURL(new Blob([JSON.stringify(state.groups, null, 1)], { type: "application/json" })); make("a", { href: url, download: "groups.json" }).click(); setTimeout(() => URL.revokeObjectURL(url), 1000); } };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  byId("groups-load").addEventListener("change", async (event) => {
    try { state.groups = groupsOf(JSON.parse(await event.target.files[0].text())); update(); }
    catch { byId("groups").replaceChildren(make("p", { textContent: "The file holds no groups: expected JSON such as [{\"label\": \"…\", \"nodes\": [\"…\"]}]." })); }
    event.target.value = "";
  });
  byId("path-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.from = field("from").value; state.to = field("to").value;
    path = findPath(number.get(state.from), number.get(state.to));
    update();
  });
  window.addEventListener("hashchange", () => { fromAddress(); pin(state.pin); });
  async function begin() {
    fromAddress();
    pin(state.pin);
    await Bokeh.embed.embed_item(read("plot"), "drawing");
    const doc = Bokeh.documents.at(-1);
    find = (name) => doc.get_model_by_name(name);
    plot = find("explorer");
    for (const range of [plot.x_range, plot.y_range]) for (const end of ["start", "end"]) range.properties[end].change.connect(scaled);
    let width = 0;
    const resized = () => { if (!plot.inner_width) return; const first = !width, before = width; width = plot.inner_width; if (first) fit(); else { const x = plot.x_range; view(x.start, x.start + (x.end - x.start) * width / before, (plot.y_range.start + plot.y_range.end) / 2); } scaled(); };
    plot.properties.inner_width.change.connect(resized); plot.properties.inner_height.change.connect(resized);
    update();
    resized();
    document.documentElement.dataset.ready = "true";
  }
  const done = begin();
  return { pointed, done };
})();
