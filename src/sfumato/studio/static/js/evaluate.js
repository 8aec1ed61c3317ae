// Evaluation cards side by side: only numbers of one protocol are compared.

import { get, query } from "./api.js";
import { emptyState, h, replace } from "./dom.js";
import { plural, short } from "./format.js";
import { keep, recall } from "./store.js";

const MOST = 4;

export async function evaluatePage(host) {
  const { cards } = await get("/studio/cards");
  const head = h("header", {}, h("div", {}, h("h1", {}, "Evaluate"), h("p", {}, "Cards side by side. Numbers measured under different protocols are not compared.")));
  if (!cards.length) {
    replace(host, h("div", { class: "page" }, head, emptyState("No evaluation yet", "Measure a model in a terminal; its card appears here where --out is below the studio's folders.", h("pre", { class: "line" }, "sfumato evaluate MODEL DATA --out cards/first"))));
    return { dispose: () => {} };
  }
  const kept = recall("cards", []).filter((path) => cards.some((each) => each.path === path));
  let chosen = kept.length ? kept : cards.filter((each) => each.kind === cards[0].kind).slice(0, 2).map((each) => each.path);
  const picks = h("div", { class: "segments", role: "group", "aria-label": "Cards" });
  const body = h("div", {});
  replace(host, h("div", { class: "page" }, head, picks, body));

  function toggle(path) {
    chosen = chosen.includes(path) ? chosen.filter((each) => each !== path) : [...chosen, path].slice(-MOST);
    keep("cards", chosen);
    draw();
  }
  function draw() {
    replace(picks, cards.map((each) => h("button", { type: "button", "aria-pressed": String(chosen.includes(each.path)), title: each.path, onclick: () => toggle(each.path) }, each.name)));
    const shown = chosen.map((path) => cards.find((each) => each.path === path));
    replace(body, shown.length ? [table(shown), images(shown)] : h("p", { class: "soft" }, "Choose one or more cards."));
  }
  draw();
  return { dispose: () => {} };
}

const lastOf = (path) => (path ? String(path).replace(/\/+$/, "").split("/").slice(-2).join("/") : "–");

// Metrics as rows; the better value stands out where the protocols are equal.
function table(shown) {
  const names = [...new Set(shown.flatMap((each) => Object.keys(each.metrics)))];
  const rows = names.map((name) => {
    const metrics = shown.map((each) => each.metrics[name]);
    const protocols = new Set(shown.map((each, i) => metrics[i] && JSON.stringify([each.kind, each.protocol, metrics[i].protocol])).filter(Boolean));
    const same = protocols.size === 1 && metrics.filter(Boolean).length > 1;
    const better = (metrics.find(Boolean) || {}).better;
    const values = metrics.filter(Boolean).map((each) => each.value);
    const best = better === "lower" ? Math.min(...values) : better === "higher" ? Math.max(...values) : null;
    const label = h("th", { scope: "row" }, name, better ? h("span", { class: "tiny soft" }, ` ${better} is better`) : null, protocols.size > 1 ? h("span", { class: "pill plain" }, "different protocols") : null);
    return h("tr", {}, label, metrics.map((each) => (each ? h("td", { class: same && each.value === best ? "best" : "", title: each.low === null ? "" : `95 %: ${short(each.low)} to ${short(each.high)}` }, short(each.value), each.std === null ? null : h("span", { class: "tiny soft" }, ` ± ${short(each.std)}`)) : h("td", { class: "soft" }, "–"))));
  });
  const facts = [["of", (each) => lastOf(each.subject.path), (each) => each.subject.path], ["against", (each) => lastOf(each.data.path || each.data.kind), (each) => each.data.path], ["sampler", (each) => [each.sampling.sampler, each.sampling.steps && plural(each.sampling.steps, "step")].filter(Boolean).join(", ") || "–"], ["made", (each) => each.created.slice(0, 16).replace("T", " ")]];
  return h("div", { class: "tablewrap" }, h("table", { class: "compare" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), shown.map((each) => h("th", { scope: "col" }, each.name)))),
    h("tbody", {}, rows, facts.map(([label, of, whole]) => h("tr", {}, h("th", { scope: "row", class: "soft" }, label), shown.map((each) => h("td", { class: "soft small", title: (whole && whole(each)) || null }, String(of(each)))))))));
}

function images(shown) {
  return h("div", { class: "cardimages" }, shown.map((each) => {
    const grid = h("div", { class: "mosaic" });
    get(query("/studio/cards/images", { path: each.path })).then((found) => replace(grid, found.images.map((uri) => h("img", { src: uri, alt: "", class: "pixels" })))).catch(() => {});
    return h("section", { "aria-label": `Images of ${each.name}` }, h("h3", {}, each.name), grid, each.warnings.length ? h("ul", { class: "warnings" }, each.warnings.map((text) => h("li", {}, text))) : null,
      each.page ? h("p", {}, h("a", { href: query("/studio/file", { path: each.page }), target: "_blank", rel: "noopener" }, "The whole card")) : null);
  }));
}
