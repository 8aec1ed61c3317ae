// The page that makes images: the request at the left, what is drawn by hand and the gallery at the right.

import { betweenEditor } from "./editors/between.js";
import { boxesEditor } from "./editors/boxes.js";
import { maskEditor } from "./editors/mask.js";
import { outpaintEditor } from "./editors/outpaint.js";
import { paletteEditor } from "./editors/palette.js";
import { imageSlot, inputOf } from "./editors/slot.js";
import { get } from "./api.js";
import { emptyState, h, replace, say, typing } from "./dom.js";
import { requestForm, submitBar, TASK_TITLES } from "./form.js";
import { name as titled } from "./format.js";
import { gallery } from "./gallery.js";
import * as jobs from "./jobs.js";
import { keep, recall } from "./store.js";
import { openViewer } from "./viewer.js";

const TAKING = ["inpaint", "outpaint", "edit", "upscale"];

export const asInput = (image) => ({ ref: image.ref, url: image.url, width: image.width, height: image.height });

export async function makePage(host) {
  await get("/studio/state");
  const [listed, options] = await Promise.all([get("/v1/models"), get("/v1/options")]);
  if (!listed.data.some((each) => each.tasks.length)) {
    replace(host, h("div", { class: "page" }, emptyState("No model yet", "No model makes images here. Train one from a folder of images; it appears with its first saved step.",
      h("a", { class: "button", href: "#/train" }, "Go to training"))));
    return { dispose: () => {} };
  }
  let editor = null, wanted = null;
  let input = recall("input", null);
  const stage = h("section", { class: "stage", "aria-label": "Drawn by hand", hidden: true });
  const bar = submitBar();
  const form = requestForm({ models: listed.data, options, changed: (what) => { if (what !== "value") { arrange(); grid.draw(); } else if (editor && editor.refresh) editor.refresh(); } });
  const grid = gallery({
    open: (image, all) => openViewer({ image, all, use, discard: grid.discard, images: grid.images, options, can: TAKING.filter(form.possible) }),
    onempty: () => emptyState("Nothing made yet", "Describe an image at the left and press Generate. Drop a PNG that sfumato made to get its settings back.", suggestion()),
  });
  const panel = h("form", { class: "panel", "aria-label": "Request", onsubmit: (event) => { event.preventDefault(); submit(); } }, form.element, bar.element);
  const page = h("div", { class: "make" }, panel, h("div", { class: "work" }, stage, grid.element));
  replace(host, page);

  // For a model that comes with a prompt that it understands: the first image by one press.
  function suggestion() {
    const { example } = form.model();
    return example && form.task() === "sample" ? h("button", { type: "button", class: "suggestion", onclick: () => { form.fill({ prompt: example }); submit(); } }, `Try “${example}”`) : null;
  }
  function take(next) {
    input = next;
    keep("input", next);
    arrange();
  }
  function arrange(given = {}) {
    if (editor && editor.dispose) editor.dispose();
    editor = form.task() === "interpolate" ? betweenEditor(grid.images(), form.model(), form.fill) : buildEditor(form, input, take, given, () => arrange());
    stage.hidden = !editor;
    replace(stage, editor && editor.element);
    if (editor && editor.fit) editor.fit(); // at once, not only after a first frame
    if (editor && editor.start && !given.kept) editor.start();
    bar.title(TASK_TITLES[form.task()] || "Generate");
    bar.complain("");
  }
  async function submit() {
    bar.complain("");
    bar.busy(true);
    try {
      const request = form.request();
      Object.assign(request, editor ? await editor.values() : {});
      wanted = await jobs.submit(request);
      grid.draw();
      below(grid.element);
    } catch (error) {
      bar.complain(error.message);
    } finally {
      bar.busy(false);
    }
  }
  // What the viewer offers: its settings, or the image itself as the input of a task.
  function use(image, what) {
    if (what === "settings") restore(image.settings);
    else {
      form.setTask(what);
      take(asInput(image));
    }
    if (what === "settings" || !below(stage)) window.scrollTo({ top: 0, behavior: "smooth" });
  }
  function restore(settings, source = null) {
    const request = { ...settings.request };
    if (!request.model && settings.model) request.model = settings.model.id; // a PNG names its model beside the request
    const known = form.apply(request, true);
    const reference = (value) => typeof value === "string" && /^(upload|image|file):/.test(value);
    if (reference(request.image) && !(settings.missing || []).includes("image")) input = input && input.ref === request.image ? input : { ref: request.image, url: urlOf(request.image), width: 0, height: 0 };
    arrange({ boxes: request.boxes, extend: request.extend, kept: true });
    const missing = (settings.missing || []).length ? ` Not in the PNG, give it again: ${settings.missing.join(", ")}.` : "";
    const named = (settings.model && (settings.model.id || settings.model.name)) || "unknown";
    say(known ? `The settings of ${source || "the image"} are in the form.${missing}` : `The settings are in the form, but its model (${named}) is not in the studio's folders.${missing}`, known ? "info" : "error");
  }
  async function dropped(event) {
    const kept = event.dataTransfer.getData("text/x-sfumato");
    const file = event.dataTransfer.files[0];
    if (!kept && !file) return;
    event.preventDefault();
    if (kept) { take(asInput(JSON.parse(kept))); return; }
    try {
      const given = await inputOf(file);
      if (given.settings) restore(given.settings, file.name);
      else if (form.hand().some((each) => each.name === "image")) take(given);
      else if (form.model().tasks.includes("edit")) { form.setTask("edit"); take(given); }
      else say(`${file.name} was not made by sfumato, and this task takes no image.`, "error");
    } catch (error) {
      say(error.message, "error");
    }
  }
  const over = (event) => event.preventDefault();
  const key = (event) => {
    if (document.querySelector("dialog[open]")) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") { event.preventDefault(); submit(); return; }
    if (!editor || (typing() && !(event.ctrlKey || event.metaKey))) return;
    const name = `${event.ctrlKey || event.metaKey ? "ctrl+" : ""}${event.shiftKey && event.key.length > 1 === false && (event.ctrlKey || event.metaKey) ? "shift+" : ""}${event.key.toLowerCase()}`;
    const act = editor.keys && editor.keys[name];
    if (act && !typing()) { event.preventDefault(); act(); }
  };
  document.addEventListener("dragover", over);
  document.addEventListener("drop", dropped);
  document.addEventListener("keydown", key);
  const stop = jobs.watch((job, what) => {
    grid.draw();
    if (what !== "end") return;
    if (job.state === "failed" && wanted && wanted.id === job.id) bar.complain(job.error);
    for (const note of job.notes || []) say(note);
    grid.load().catch((error) => say(error.message, "error"));
  });
  await jobs.start();
  await grid.load();
  arrange({ kept: true });
  return {
    dispose: () => {
      stop();
      if (editor && editor.dispose) editor.dispose();
      document.removeEventListener("dragover", over);
      document.removeEventListener("drop", dropped);
      document.removeEventListener("keydown", key);
    },
  };
}

// In a narrow window the form is above its editor and the images: shows what was asked for. False beside the form.
function below(element) {
  if (!matchMedia("(max-width: 900px)").matches) return false;
  element.scrollIntoView({ behavior: "smooth" });
  return true;
}

export const urlOf = (ref) => {
  const [kind, rest] = [ref.slice(0, ref.indexOf(":")), ref.slice(ref.indexOf(":") + 1)];
  if (kind === "upload") return `/v1/uploads/${rest}`;
  if (kind === "image") return `/v1/jobs/${rest.replace("/", "/images/")}`;
  return `/studio/file?${new URLSearchParams({ path: rest })}`;
};

// The editor of the task's fields that are drawn by hand; null where there are none.
function buildEditor(form, input, take, given, again) {
  const hand = form.hand();
  if (!hand.length) return null;
  const names = new Set(hand.map((each) => each.name));
  const size = () => form.value("size") || form.model().image_size;
  const parts = [];
  if (names.has("image")) {
    const slot = imageSlot({ title: "Image", current: input, changed: take, small: Boolean(input) });
    parts.push({ element: slot.element, values: async () => {
      if (!slot.get()) throw new Error("Choose an image first.");
      return { image: slot.get().ref };
    } });
    if (input && !input.width) {
      const probe = new Image();
      probe.onload = () => { input.width = probe.naturalWidth; input.height = probe.naturalHeight; again(); };
      probe.src = input.url;
    } else if (input && names.has("mask")) parts.push(maskEditor(input, () => form.value("feather") ?? 2));
    else if (input && names.has("extend")) parts.push(outpaintEditor(input, given.extend));
  }
  if (names.has("map")) parts.push(paletteEditor(form.model(), size()));
  if (names.has("boxes")) parts.push(boxesEditor(form.model(), size(), given.boxes || []));
  for (const field of hand.filter((each) => each.kind === "image" && !["image", "mask", "map"].includes(each.name))) {
    const slot = imageSlot({ title: `${titled(field.name)} (optional): ${field.help}`, current: null, changed: () => {}, small: true });
    parts.push({ element: slot.element, values: async () => (slot.get() ? { [field.name]: slot.get().ref } : {}) });
  }
  return {
    element: h("div", { class: "parts" }, parts.map((each) => each.element)),
    keys: Object.assign({}, ...parts.map((each) => each.keys || {})),
    refresh: () => parts.forEach((each) => each.refresh && each.refresh()),
    fit: () => parts.forEach((each) => each.fit && each.fit()),
    values: async () => Object.assign({}, ...(await Promise.all(parts.map((each) => each.values())))),
    dispose: () => parts.forEach((each) => each.dispose && each.dispose()),
  };
}
