"use strict";
// One page, one state: the layer that is chosen and the one that is pointed at, by their depth; 0 is none. Whatever
// comes from a trial is set as text, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const { rows, specs } = JSON.parse(byId("data").textContent);
  const layers = new Map(rows.layers.map((row) => [row.depth, row]));
  const ratios = new Map(rows.cells.map((cell) => [`${cell.depth}/${cell.step}`, cell]));
  const depths = [...layers.keys()];
  const colors = ["ink", "muted", "grid", "paper", "given", "fault", "downstream", "band", "low", "high"];
  const views = new Map();
  const state = { chosen: 0, hovered: 0 };

  // ── words ──
  const short = (value) => {
    if (value === undefined) return "–";
    if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4)) return String(Number(value.toPrecision(3)));
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  };
  const off = (decades) => {
    if (decades === undefined) return "not finite";
    if (decades < -50) return "nothing at all";
    if (Math.abs(decades) < 0.1) return "as expected";
    const times = 10 ** Math.abs(decades);
    return `${decades < 0 ? "÷" : "×"} ${short(times)}`;
  };
  const facts = (layer, step) => {
    const said = [[layer.type, layer.mark === "fault" ? `at fault ${layer.code ?? ""}` : layer.mark].filter(Boolean).join(", ")];
    const value = layer.odd === undefined ? short(layer.variance) : layer.odd;
    said.push(`variance ${value}` + (layer.sound === undefined ? "" : `, expected ${short(layer.sound)}`));
    if (layer.spread !== undefined || layer.spread_odd !== undefined) {
      said.push(`gradient p95 − p5 ${layer.spread_odd ?? short(layer.spread)}`);
    }
    if (layer.source) said.push(layer.source);
    const cell = step === undefined ? undefined : ratios.get(`${layer.depth}/${step}`);
    if (cell) said.push(`step ${step}: ${off(cell.ratio)}`);
    return said;
  };

  // ── the state, shown everywhere ──
  const table = byId("table");
  const inTable = new Map();
  for (const row of table.tBodies[0].rows) if (row.dataset.depth !== "0") inTable.set(Number(row.dataset.depth), row);

  const signal = (name, value) => {
    state[name] = value;
    for (const view of views.values()) view.signal(name, value).runAsync();
  };
  const choose = (depth, scroll) => {
    const before = inTable.get(state.chosen);
    const next = depth === state.chosen && !scroll ? 0 : depth;
    if (before) mark(before, false);
    signal("chosen", next);
    const row = inTable.get(next);
    if (row) mark(row, true);
    if (row && scroll !== "table") within(row);
    const layer = layers.get(next);
    const inspector = byId("inspector");
    if (inspector) inspector.textContent = layer ? [layer.layer, ...facts(layer)].join(" · ") : "No layer is chosen.";
    for (const canvas of document.querySelectorAll("[role=slider]")) describe(canvas, layer);
  };
  const mark = (row, on) => {
    row.classList.toggle("chosen", on);
    row.querySelector("button").setAttribute("aria-pressed", String(on));
  };
  const within = (row) => {
    const box = row.closest(".scroll");
    box.scrollTop = row.offsetTop - box.clientHeight / 2;
  };
  const describe = (canvas, layer) => {
    canvas.setAttribute("aria-valuenow", String(layer ? layer.depth : 0));
    canvas.setAttribute("aria-valuetext", layer ? [layer.layer, ...facts(layer)].join(", ") : "no layer chosen");
  };

  // ── the tip ──
  const tip = byId("tip");
  const point = (event, item) => {
    const datum = item && item.datum;
    const layer = datum && layers.get(datum.depth);
    const curve = datum && datum.curve;
    if (state.hovered !== (layer ? layer.depth : 0)) signal("hovered", layer ? layer.depth : 0);
    tip.hidden = !layer && !curve;
    if (tip.hidden) return;
    const lines = layer ? facts(layer, datum.step) : [`step ${datum.step}`, `loss ${datum.loss}`];
    if (datum.rank !== undefined) lines.push(`rank ${datum.rank}: ${short(datum.variance)}`);
    const name = document.createElement("b");
    name.textContent = layer ? layer.layer : curve;
    tip.replaceChildren(name, ...lines.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 12 : event.clientX + 16;
    const top = event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 16;
    tip.style.setProperty("left", `${Math.max(left, 4)}px`);
    tip.style.setProperty("top", `${Math.max(top, 4)}px`);
  };
  const leave = () => {
    if (tip) tip.hidden = true;
    if (state.hovered) signal("hovered", 0);
  };

  // ── charts ──
  const draw = async (canvas) => {
    const name = canvas.dataset.chart;
    const spec = specs[name];
    for (const data of spec.data) if (data.name in rows && !data.values) data.values = rows[data.name];
    const view = new vega.View(vega.parse(spec, null, { ast: true }), {
      expr: vega.expressionInterpreter, renderer: "svg", container: canvas, hover: false, tooltip: () => {}, logLevel: 1,
    });
    views.set(name, view);
    paint(view);
    view.addEventListener("mousemove", point);
    view.addEventListener("mouseout", leave);
    view.addEventListener("click", (_, item) => item && item.datum && layers.has(item.datum.depth) && choose(item.datum.depth));
    await view.runAsync();
    canvas.querySelector("svg").setAttribute("aria-hidden", "true"); // the container says what it is
    if (name === "loss") return canvas.setAttribute("role", "img");
    canvas.setAttribute("role", "slider");
    canvas.setAttribute("tabindex", "0");
    canvas.setAttribute("aria-valuemin", "0");
    canvas.setAttribute("aria-valuemax", String(depths.length));
    describe(canvas);
    canvas.addEventListener("keydown", keys);
  };
  const keys = (event) => {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    const ends = { Home: 1, End: depths.length, Escape: 0 };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    const to = event.key in ends ? ends[event.key] : state.chosen + steps[event.key];
    choose(to === 0 ? 0 : Math.min(Math.max(to, 1), depths.length), "keys");
  };

  // ── dark and light ──
  const root = document.documentElement;
  const paint = (view) => {
    const style = getComputedStyle(root);
    for (const color of colors) view.signal(color, style.getPropertyValue(`--${color}`).trim());
  };
  const repaint = () => Promise.all([...views.values()].map((view) => (paint(view), view.runAsync())));
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const theme = byId("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); repaint(); });
  prefersDark.addEventListener("change", () => { name(); repaint(); });
  let asked;
  addEventListener("beforeprint", () => { asked = root.dataset.theme; root.dataset.theme = "light"; repaint(); });
  addEventListener("afterprint", () => { if (asked) root.dataset.theme = asked; else delete root.dataset.theme; repaint(); });

  // ── the table ──
  const body = table.tBodies[0];
  const all = [...body.rows];
  for (const row of all) {
    if (row.dataset.depth === "0") continue;
    const cell = row.cells[1];
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: cell.textContent });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => choose(Number(row.dataset.depth) === state.chosen ? 0 : Number(row.dataset.depth), "table"));
    cell.replaceChildren(button);
    cell.title = button.textContent;
  }
  const key = (row, place) => {
    const cell = row.cells[place];
    if (cell.dataset.v === undefined) return cell.textContent.trim();
    return { "": undefined, inf: Infinity, "-inf": -Infinity, nan: Infinity }[cell.dataset.v.toLowerCase()] ?? (cell.dataset.v === "" ? undefined : Number(cell.dataset.v));
  };
  const compare = (a, b) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return typeof a === "number" ? (a === b ? 0 : a < b ? -1 : 1) : a.localeCompare(b, undefined, { numeric: true });
  };
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const known = all.map((row) => [key(row, place), row]);
      known.sort(([a], [b]) => (a === undefined || b === undefined ? compare(a, b) : sign * compare(a, b)));
      body.append(...known.map(([, row]) => row));
    });
  });
  const search = byId("search");
  const filter = byId("filter");
  const sift = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of all) {
      const text = row.textContent.toLowerCase();
      row.hidden = !((!filter.value || row.dataset.mark === filter.value) && words.every((word) => text.includes(word)));
      shown += !row.hidden;
    }
    byId("count").textContent = `${shown} of ${all.length} layers`;
  };
  document.querySelector(".tools").hidden = false;
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", sift);
  filter.addEventListener("change", sift);
  sift();

  // ── the rest ──
  byId("unscripted")?.remove();
  const open = () => {
    const page = location.hash.startsWith("#page-") && byId(location.hash.slice(1));
    if (page) page.open = true;
  };
  addEventListener("hashchange", open);
  open();
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      button.textContent = "Copied";
    });
  }
  Promise.all([...document.querySelectorAll("[data-chart]")].map(draw)).then(() => { root.dataset.drawn = "true"; });
})();
