// The pages and the keys that work everywhere.

import { evaluatePage } from "./evaluate.js";
import { emptyState, h, icon, iconButton, replace, typing } from "./dom.js";
import { makePage } from "./make.js";
import { modelsPage } from "./models.js";
import { trainPage } from "./train.js";

const PAGES = {
  make: { title: "Make", show: makePage }, train: { title: "Train", show: trainPage },
  models: { title: "Models", show: modelsPage }, evaluate: { title: "Evaluate", show: evaluatePage },
};
const KEYS = [
  ["1 2 3 4", "Make, Train, Models, Evaluate"], ["Ctrl Enter", "Generate"], ["P", "to the prompt"], ["T", "light or dark"],
  ["B E I [ ]", "brush, eraser, invert, brush size"], ["L F", "line and fill in a label map"], ["N", "a new box"], ["Ctrl Z", "undo in an editor"],
  ["← →", "the image before and after"], ["+ − 0", "zoom, fit"], ["C", "compare with another image"], ["D", "download"], ["?", "these keys"],
];
const main = document.querySelector("#main");
let shown = { dispose: () => {} };
let turn = 0;

async function route() {
  const [, name, ...rest] = location.hash.split("/");
  const page = PAGES[name] ? name : "make";
  const mine = (turn += 1);
  for (const link of document.querySelectorAll(".tabs a")) link.toggleAttribute("aria-current", false);
  const link = document.querySelector(`.tabs a[href="#/${page}"]`);
  if (link) link.setAttribute("aria-current", "page");
  document.title = `${PAGES[page].title} · sfumato studio`;
  shown.dispose();
  shown = { dispose: () => {} };
  try {
    const made = await PAGES[page].show(main, rest.map(decodeURIComponent));
    if (mine === turn) shown = made;
    else made.dispose();
  } catch (error) {
    if (mine !== turn) return;
    replace(main, h("div", { class: "page" }, emptyState("This page could not be shown", error.message, h("button", { type: "button", onclick: route }, "Try again"))));
    if (!error.status && error.name !== "ApiError") console.error(error);
  }
}

function help() {
  const dialog = h("dialog", { "aria-label": "Keys" }, h("div", { class: "inner" }, h("h2", {}, "Keys"),
    h("dl", { class: "keys" }, KEYS.flatMap(([keys, text]) => [h("dt", {}, keys.split(" ").map((key) => [h("kbd", {}, key), " "])), h("dd", { class: "soft" }, text)]))));
  document.body.append(dialog);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
}

replace(document.querySelector(".tabs"), Object.entries(PAGES).map(([name, page]) => h("a", { href: `#/${name}` }, icon(name), page.title)));
replace(document.querySelector(".top .end"), iconButton("help", "Keys (?)", help), iconButton("theme", "Light or dark (T)", () => window.toggleTheme()));
document.addEventListener("keydown", (event) => {
  if (typing() || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const page = Object.keys(PAGES)[Number(event.key) - 1];
  if (page) location.hash = `#/${page}`;
  else if (event.key === "?") help();
  else if (event.key === "t") window.toggleTheme();
  else if (event.key === "p") {
    const prompt = document.querySelector("[data-field=prompt] textarea");
    if (prompt) { event.preventDefault(); prompt.focus(); }
  }
});
window.addEventListener("hashchange", route);
route();
