// One image as large as it fits: zoom with sharp pixels, its settings, comparing with another, and what to do with it.

import { h, icon, iconButton, replace, say } from "./dom.js";
import { ago } from "./format.js";
import { TASK_TITLES } from "./form.js";
import { comparison } from "./compare.js";
import { scaleFor } from "./editors/surface.js";
import { anchored, pannable } from "./pan.js";

const HIDDEN = new Set(["task", "model", "prompt", "image", "mask", "map", "boxes", "noise"]);

// Lists and groups of settings as a reader writes them: 1, 2 and scale 1.5, momentum 0.
function shownValue(value) {
  if (Array.isArray(value)) return value.map(shownValue).join(", ");
  if (value && typeof value === "object") return Object.entries(value).map(([key, each]) => `${key.replaceAll("_", " ")} ${shownValue(each)}`).join(", ");
  return String(value);
}

// `can`: the tasks that take an image as their input here.
export function openViewer({ image, all, use, discard, images, options, can }) {
  let current = image, zoom = 0, other = null, picking = false;
  const canvas = h("div", { class: "canvas" });
  const pan = pannable(canvas);
  const stage = h("div", { class: "stagearea", tabindex: -1 });
  const side = h("aside", { class: "facts" });
  const dialog = h("dialog", { class: "viewer", "aria-label": "Image" }, stage, side);
  document.body.append(dialog);

  function scale() {
    const room = stage.getBoundingClientRect();
    const fit = scaleFor(current.width, current.height, Math.max(64, room.width - 32), Math.max(64, room.height - 90));
    return zoom === 0 ? fit : zoom;
  }
  function draw() {
    const at = scale();
    const size = { width: `${current.width * at}px`, height: `${current.height * at}px` };
    const shown = other ? comparison(current, other, at) : h("img", { src: current.url, alt: "", draggable: "false", class: at >= 2 ? "pixels" : "", style: size });
    const tools = h("div", { class: "toolbar" }, iconButton("zoomout", "Smaller (-)", () => step(-1)), h("output", { class: "tiny soft zoom" }, at >= 1 ? `${Math.round(at * 10) / 10}×` : `${Math.round(at * 100)} %`),
      iconButton("zoomin", "Larger (+)", () => step(1)), h("button", { type: "button", class: "quiet", onclick: () => { zoom = 0; draw(); } }, "Fit"),
      iconButton("compare", "Compare with another (C)", compare, { "aria-pressed": String(Boolean(other) || picking) }));
    replace(canvas, shown);
    replace(stage, canvas, tools, picking ? strip() : null,
      neighbour(-1) && iconButton("left", "The one before", () => go(-1), { class: "go before" }), neighbour(1) && iconButton("right", "The one after", () => go(1), { class: "go after" }));
    pan.mark();
    facts();
  }
  function strip() {
    return h("div", { class: "strip", role: "list", "aria-label": "Compare with" }, all.filter((each) => each.name !== current.name).slice(0, 60).map((each) => h("button", { type: "button", class: "pick", "aria-label": `Compare with seed ${each.seed}`, onclick: () => { other = each; picking = false; draw(); } }, h("img", { src: each.url, alt: "", class: each.width <= 160 ? "pixels" : "" }))));
  }
  function facts() {
    const settings = current.settings;
    const request = (settings && settings.request) || {};
    const declared = new Map(((options.tasks[request.task] || {}).fields || []).map((each) => [each.name, each]));
    const usual = (key, value) => declared.has(key) && !declared.get(key).common && JSON.stringify(declared.get(key).default) === JSON.stringify(value);
    const rows = Object.entries(request).filter(([key, value]) => !HIDDEN.has(key) && value !== null && !usual(key, value));
    const model = settings && settings.model ? settings.model.name || settings.model.id : current.model;
    replace(side, h("div", { class: "head" }, h("span", { class: "tiny soft" }, `${ago(current.created)}`), iconButton("close", "Close (Esc)", () => dialog.close())),
      request.prompt ? h("p", { class: "prompt serif" }, String(request.prompt)) : null,
      h("dl", {}, fact("model", model), fact("task", TASK_TITLES[request.task] || request.task), fact("pixels", `${current.width} × ${current.height}`), rows.map(([key, value]) => factOf(key, value))),
      h("div", { class: "acts" }, settings ? h("button", { type: "button", onclick: () => { dialog.close(); use(current, "settings"); } }, icon("settings"), "Use these settings") : null,
        h("a", { class: "button", href: current.url, download: current.name }, icon("download"), "Download"),
        can.length === 0 ? null : h("details", { class: "more" }, h("summary", {}, "Use as the input of …"), h("div", { class: "segments" }, can.map((task) => h("button", { type: "button", onclick: () => { dialog.close(); use(current, task); } }, TASK_TITLES[task])))),
        h("button", { type: "button", class: "quiet danger", onclick: () => drop() }, icon("trash"), "Delete")));
  }
  function factOf(key, value) {
    if (key === "size" && value[0] === current.height && value[1] === current.width) return null; // are the pixels
    return fact(key === "seeds" && value.length === 1 ? "seed" : key.replaceAll("_", " "), shownValue(value));
  }
  const fact = (key, value) => (value ? [h("dt", {}, key), h("dd", {}, value)] : null);
  const neighbour = (by) => all[all.findIndex((each) => each.name === current.name) + by];
  function go(by) {
    const next = neighbour(by);
    if (!next) return;
    current = next;
    zoom = 0;
    draw();
  }
  function step(by, pointer = null) {
    const steps = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
    const now = scale();
    const next = by > 0 ? steps.find((each) => each > now + 0.01) : [...steps].reverse().find((each) => each < now - 0.01);
    if (!next) return;
    const restore = anchored(canvas, pointer);
    zoom = next;
    draw();
    restore();
  }
  function compare() {
    if (other) other = null;
    else picking = !picking;
    draw();
  }
  async function drop() {
    const gone = current;
    const next = neighbour(1) || neighbour(-1);
    try {
      await discard(gone);
    } catch (error) {
      say(error.message, "error");
      return;
    }
    all = images();
    if (!next) { dialog.close(); return; }
    current = next;
    draw();
  }
  stage.addEventListener("wheel", (event) => { if (event.ctrlKey || !event.target.closest(".strip")) { event.preventDefault(); step(event.deltaY < 0 ? 1 : -1, event); } }, { passive: false });
  // On the document: redrawing removes the button that had the focus, and the keys go on.
  const keyed = (event) => {
    if (event.target.closest("input, textarea")) return;
    const act = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), "+": () => step(1), "=": () => step(1), "-": () => step(-1), 0: () => { zoom = 0; draw(); }, c: compare, d: () => side.querySelector("a[download]").click() }[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { event.preventDefault(); act(); }
  };
  document.addEventListener("keydown", keyed);
  const resized = () => {
    const restore = anchored(canvas);
    draw();
    restore();
  };
  window.addEventListener("resize", resized);
  dialog.addEventListener("close", () => { document.removeEventListener("keydown", keyed); window.removeEventListener("resize", resized); dialog.remove(); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.showModal();
  draw();
}
