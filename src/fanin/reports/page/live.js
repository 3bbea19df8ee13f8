"use strict";
// The page of a trial that grows: it loads itself anew when the server says that it is another one, and is then as it
// was left: what was searched, filtered, sorted, chosen and unfolded, the theme, the place, and the cursor.
(() => {
  const KEPT = "fanin-live";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const sign = byId("live");
  const unfolded = () => [...document.querySelectorAll("details")];
  const heads = () => [...document.querySelectorAll("#table thead th")];

  // ── what is kept ──
  const keep = () => {
    const sorted = heads().find((head) => head.hasAttribute("aria-sort"));
    const field = document.activeElement;
    sessionStorage.setItem(KEPT, JSON.stringify({
      search: byId("search")?.value, filter: byId("filter")?.value,
      sort: sorted && [sorted.dataset.key, sorted.getAttribute("aria-sort")],
      chosen: document.querySelector("#table tr.chosen button")?.textContent,
      open: unfolded().filter((one) => one.open).map((one) => one.id || one.querySelector("summary").textContent),
      theme: root.dataset.theme, top: scrollY, table: document.querySelector(".tall")?.scrollTop,
      field: field?.id, cursor: field?.id === "search" ? [field.selectionStart, field.selectionEnd] : undefined,
    }));
  };
  const set = (id, value, event) => {
    const field = byId(id);
    if (!field || !value) return;
    field.value = value; // an option that is gone leaves the filter empty: all layers
    if (field.value !== value) field.value = "";
    field.dispatchEvent(new Event(event));
  };
  const sort = (wanted) => {
    const head = wanted && heads().find((one) => one.dataset.key === wanted[0]);
    if (!head) return;
    head.querySelector("button").click();
    if (head.getAttribute("aria-sort") !== wanted[1]) head.querySelector("button").click();
  };
  const paint = (theme) => {
    if (!theme) return;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    if ((theme === "dark") !== dark) byId("theme")?.click();
    else root.dataset.theme = theme;
  };
  const restore = (kept) => {
    set("search", kept.search, "input");
    set("filter", kept.filter, "change");
    sort(kept.sort);
    paint(kept.theme);
    for (const one of unfolded()) one.open ||= kept.open.includes(one.id || one.querySelector("summary").textContent);
    for (const row of document.querySelectorAll("#table tbody tr")) {
      const button = row.querySelector("button");
      if (button && button.textContent === kept.chosen) button.click();
    }
    byId(kept.field)?.focus({ preventScroll: true });
    if (kept.cursor) byId("search")?.setSelectionRange(...kept.cursor);
    const box = document.querySelector(".tall");
    if (box) box.scrollTop = kept.table ?? 0;
    scrollTo({ top: kept.top, behavior: "instant" });
  };

  // Charts give the page its height and take the choice only once they are drawn.
  const whenDrawn = (then) => {
    if (root.dataset.drawn || !byId("table")) return then();
    const observer = new MutationObserver(() => { if (root.dataset.drawn) { observer.disconnect(); then(); } });
    observer.observe(root, { attributes: true, attributeFilter: ["data-drawn"] });
  };
  // ── what comes ──
  // What the server says of the page, and what only this side can know. The page itself says "not connected yet".
  const SIGNS = {
    waiting: "waiting for the first step",
    live: "live",
    ended: "ended, nothing more comes",
    "not-drawn": "out of date: not drawn, see the terminal",
    over: "no longer served",
    lost: "connection lost, trying again",
    refused: "not allowed: open the printed address",
  };
  const AGAIN_MS = 3000; // a browser gives up where it was refused; the token may come in another tab, or a new follower
  const say = (state) => {
    if (sign.dataset.state === state) return; // or it would be read out again
    sign.dataset.state = state;
    sign.textContent = SIGNS[state];
  };
  let left = false;
  const refused = async () => { // events do not tell why there are none
    try {
      return [401, 403].includes((await fetch("/events", { method: "HEAD", cache: "no-store" })).status);
    } catch {
      return false;
    }
  };
  const listen = () => {
    const source = new EventSource("/events");
    source.onmessage = ({ data }) => {
      const [version, state] = data.split(" ");
      if (version === root.dataset.version) return say(state);
      if (left) return;
      left = true;
      keep();
      location.reload();
    };
    source.addEventListener("over", () => { source.close(); say("over"); });
    source.onerror = async () => {
      const over = source.readyState === EventSource.CLOSED;
      say(over && await refused() ? "refused" : "lost");
      if (over) setTimeout(listen, AGAIN_MS);
    };
  };

  history.scrollRestoration = "manual";
  const kept = sessionStorage.getItem(KEPT);
  sessionStorage.removeItem(KEPT);
  whenDrawn(() => {
    if (kept) restore(JSON.parse(kept));
    root.dataset.live = "true";
    listen();
  });
})();
