// A new training: choose a folder, look at it, see the plan, start.

import { get, post, query } from "./api.js";
import { h, icon, replace, say } from "./dom.js";
import { plural } from "./format.js";
import { keep, recall } from "./store.js";

const thumbnail = (path) => query("/studio/thumbnail", { path });

export function startCard(started) {
  const known = h("datalist", { id: "folders" });
  const kept = recall("fit", {});
  const folder = h("input", { id: "data", type: "text", list: "folders", autocomplete: "off", spellcheck: "false", placeholder: "a folder of images", value: kept.data || "" });
  const minutes = h("input", { id: "minutes", type: "text", inputmode: "decimal", value: kept.minutes || "60" });
  const out = h("input", { id: "out", type: "text", autocomplete: "off", spellcheck: "false", value: "", placeholder: "runs/mine" });
  const settings = h("input", { id: "settings", type: "text", autocomplete: "off", spellcheck: "false", placeholder: "a.b=c, as on the command line" });
  const error = h("p", { class: "bad small", role: "alert", hidden: true });
  const looked = h("div", { class: "look", "aria-live": "polite" });
  const planned = h("div", { "aria-live": "polite" });
  const lookButton = h("button", { type: "button", onclick: () => busy(lookButton, look) }, icon("folder"), "Look at it");
  const planButton = h("button", { type: "button", onclick: () => busy(planButton, plan) }, "Show the plan");
  const startButton = h("button", { type: "submit", class: "primary narrow" }, icon("play"), "Start training");
  const field = (id, label, control, hint) => h("div", { class: "field" }, h("label", { for: id }, label), control, hint ? h("span", { class: "hint" }, hint) : null);
  const element = h("form", { class: "start", "aria-label": "New training", onsubmit: (event) => { event.preventDefault(); busy(startButton, start); } },
    h("div", { class: "choose" }, field("data", "Images", folder), field("minutes", "Minutes", minutes), lookButton), known,
    h("div", { class: "row" }, field("out", "The run's folder", out), field("settings", "Further settings", settings)),
    error, h("div", { class: "toolbar" }, startButton, planButton), planned, looked); // answers below, so that no control moves

  get("/studio/folders").then(({ folders }) => {
    replace(known, folders.map((each) => h("option", { value: each.path }, `${each.name} (${plural(each.images, "image")})`)));
    if (!folder.value && folders.length === 1) folder.value = folders[0].path; // of several, the first is not meant
    if (folders.length > 1) folder.placeholder = `one of ${folders.length} folders with images, or another`;
    name();
  }).catch((problem) => say(problem.message, "error"));

  function name() {
    const last = folder.value.replace(/\/+$/, "").split("/").pop();
    if (last && !out.dataset.typed) out.value = `runs/${last}`;
  }
  folder.addEventListener("change", name);
  out.addEventListener("input", () => { out.dataset.typed = "yes"; });

  async function busy(button, act) {
    error.hidden = true;
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      await act();
    } catch (problem) {
      error.hidden = false;
      error.textContent = problem.message;
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }
  function wanted() {
    const time = Number(minutes.value);
    if (!folder.value.trim()) throw new Error("Choose the folder of the images first.");
    if (!(time > 0)) throw new Error(`Minutes is ${minutes.value}: give a number above 0.`);
    keep("fit", { data: folder.value, minutes: minutes.value });
    const given = settings.value.match(/[^\s]+=(\{[^}]*\}|\[[^\]]*\]|[^\s]+)/g) || [];
    return { data: folder.value.trim(), out: out.value.trim(), minutes: time, settings: given };
  }
  async function look() {
    if (!folder.value.trim()) throw new Error("Choose the folder of the images first.");
    replace(looked, h("p", { class: "soft small" }, "Looking at every image …"));
    try {
      replace(looked, ...lookView(await post("/studio/look", { path: folder.value.trim() })));
    } catch (problem) {
      replace(looked);
      throw problem;
    }
  }
  async function plan() {
    const body = wanted();
    replace(planned, h("p", { class: "soft small" }, "Measuring this machine for some seconds …"));
    try {
      const made = await post("/studio/plan", body);
      replace(planned, planView(made));
    } catch (problem) {
      replace(planned);
      throw problem;
    }
  }
  async function start() {
    const made = await post("/studio/trainings", wanted());
    await started(made);
  }
  return { element };
}

export function lookView(found) {
  const classes = Object.entries(found.classes);
  const number = (label, value, small) => h("div", {}, h("dt", {}, label), h("dd", {}, value, small ? h("small", {}, ` ${small}`) : null));
  const sizes = Object.entries(found.sizes).map(([name, count]) => `${name} px: ${count}`).join(", ");
  return [
    h("div", { class: "mosaic" }, found.shown.map((path) => h("img", { src: thumbnail(path), alt: "", loading: "lazy" }))),
    h("dl", { class: "numbers" }, number("images", found.images.toLocaleString("en")), number("with captions", found.captioned.toLocaleString("en")),
      number("classes", classes.length || "none"), number("held out", found.held_out), number("duplicates", found.duplicates || "none"), number("unreadable", found.unreadable.length || "none")),
    h("p", { class: "small soft" }, `Shorter sides: ${sizes}.`),
    classes.length ? h("p", { class: "small soft" }, `Classes: ${classes.slice(0, 12).map(([name, count]) => `${name} (${count})`).join(", ")}${classes.length > 12 ? ", …" : ""}.`) : null,
    found.captions.length ? h("ul", { class: "quotes", "aria-label": "Some captions" }, found.captions.slice(0, 6).map((each) => h("li", {}, `“${each.text}”`))) : null,
    found.warnings.length ? h("ul", { class: "warnings" }, found.warnings.map((each) => h("li", {}, each))) : null,
  ].filter(Boolean);
}

export function planView(made) {
  const lines = made.text.split("\n").filter((line) => line.trim());
  const facts = lines.map((line) => line.match(/^(\w[\w ]*?)\s{2,}(.+)$/)).filter(Boolean);
  const warnings = lines.filter((line) => line.startsWith("! "));
  const rest = lines.filter((line) => !line.startsWith("! ") && !/^\w[\w ]*?\s{2,}/.test(line));
  return h("div", { class: "plan" }, h("h3", {}, "Plan"), h("dl", { class: "pairs" }, facts.map(([, key, text]) => [h("dt", {}, key), h("dd", {}, text)])),
    rest.map((line) => h("p", { class: "small" }, line.trim())), warnings.length ? h("ul", { class: "warnings" }, warnings.map((line) => h("li", {}, line.slice(2)))) : null, h("pre", { class: "line" }, made.command));
}
