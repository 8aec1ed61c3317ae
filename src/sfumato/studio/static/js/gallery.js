// The grid of images: those that form now first, then all that were kept. Cells stay where they are.

import { get, remove } from "./api.js";
import { h, iconButton, icon, say } from "./dom.js";
import { duration } from "./format.js";
import * as jobs from "./jobs.js";

const PAGE = 120;

export function gallery({ open, onempty }) {
  let images = [];
  let total = 0;
  const cells = new Map();
  const element = h("div", { class: "gallery", role: "list", "aria-label": "Images" });
  const empty = h("div", { class: "nothing" });
  const further = h("button", { type: "button", class: "further", hidden: true, onclick: () => load(images.length + PAGE) }, "Show earlier images");
  const host = h("div", {}, empty, element, further);

  async function load(limit = PAGE) {
    const listed = await get(`/studio/images?limit=${Math.max(PAGE, limit)}`);
    images = listed.images;
    total = listed.total;
    const kept = new Set(images.map((each) => each.job));
    for (const job of jobs.all()) if (!jobs.active(job) && kept.has(job.id)) jobs.forget(job.id);
    draw();
  }

  function draw() {
    const wanted = [];
    for (const job of jobs.all()) {
      if (job.state === "cancelled" && !(job.images || []).length) continue;
      if (job.state === "failed") { wanted.push(`${job.id}:failed`); cell(`${job.id}:failed`, () => failedCell(job)); continue; }
      for (let i = 0; i < (job.count || 1); i += 1) {
        const key = `${job.id}/${i}`;
        if (!jobs.active(job) && !(job.images || []).some((each) => each.index === i)) continue;
        wanted.push(key);
        update(cell(key, () => formingCell(job, i)), job, i);
      }
    }
    for (const image of images) {
      const key = image.job ? `${image.job}/${image.index}` : image.name;
      if (wanted.includes(key)) continue;
      wanted.push(key);
      settle(cell(key, () => h("div", { class: "cell", role: "listitem" })), image);
    }
    for (const [key, node] of cells) if (!wanted.includes(key)) { node.remove(); cells.delete(key); }
    let at = element.firstChild;
    for (const key of wanted) {
      const node = cells.get(key);
      if (node === at) at = at.nextSibling;
      else element.insertBefore(node, at);
    }
    further.hidden = total <= images.length;
    empty.replaceChildren(...(wanted.length ? [] : [onempty()]));
  }

  function cell(key, make) {
    if (!cells.has(key)) cells.set(key, make());
    return cells.get(key);
  }

  // A finished image: the same cell, now with a button that opens it.
  function settle(node, image) {
    if (node.dataset.done === image.name) return;
    node.dataset.done = image.name;
    node.className = `cell${image.width <= 160 ? " pixels" : ""}`;
    const prompt = image.settings && image.settings.request && image.settings.request.prompt;
    const shown = node.querySelector("img") || h("img", { alt: "" });
    shown.classList.remove("forming");
    shown.loading = "lazy";
    shown.draggable = true;
    if (shown.getAttribute("src") !== image.url) shown.src = image.url;
    node.replaceChildren(h("button", { type: "button", class: "open", title: prompt ? String(prompt) : null, "aria-label": prompt ? `Image: ${prompt}` : `Image with seed ${image.seed}`, onclick: () => open(image, images) }, shown));
    node.ondragstart = (event) => event.dataTransfer.setData("text/x-sfumato", JSON.stringify(image));
  }

  function formingCell(job, index) {
    const bar = h("div", { class: "progress", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, h("i"));
    const stop = iconButton("stop", "Cancel", (event) => { event.stopPropagation(); jobs.cancel(job).catch((error) => say(error.message, "error")); });
    return h("div", { class: "cell forming", role: "listitem", dataset: { job: job.id } },
      h("img", { alt: "", class: "forming", hidden: true }), h("div", { class: "state" }, h("span", { class: "tiny" }), index === 0 ? h("span", { class: "stop" }, stop) : null), bar);
  }

  function update(node, job, index) {
    const done = (job.images || []).find((each) => each.index === index);
    const shown = node.querySelector("img");
    const source = done ? done.url : job.previews.get(index);
    if (source && shown.getAttribute("src") !== source) { shown.src = source; shown.hidden = false; }
    const small = (done && done.width <= 160) || (!done && source && shown.naturalWidth && shown.naturalWidth <= 160);
    node.classList.toggle("pixels", Boolean(small));
    const label = node.querySelector(".state span");
    if (!label) return;
    const bar = node.querySelector(".progress");
    bar.style.setProperty("--done", done ? 1 : job.progress || 0);
    bar.setAttribute("aria-valuenow", Math.round(100 * (job.progress || 0)));
    label.textContent = done ? "" : job.state === "queued" ? (job.place ? `${job.place} before it` : "waiting") : job.step ? `${job.step} of ${job.steps}${job.seconds_left ? ` · ${duration(job.seconds_left)}` : ""}` : "starting";
  }

  function failedCell(job) {
    return h("div", { class: "cell failed", role: "listitem" }, h("p", { class: "small" }, job.error || "failed"),
      h("button", { type: "button", class: "quiet", onclick: () => { jobs.forget(job.id); draw(); } }, icon("close"), "Dismiss"));
  }

  async function discard(image) {
    await remove(`/studio/images/${encodeURIComponent(image.name)}`);
    images = images.filter((each) => each.name !== image.name);
    total -= 1;
    draw();
  }

  return { element: host, load, draw, discard, images: () => images };
}
