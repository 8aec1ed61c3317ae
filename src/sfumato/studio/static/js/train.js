// Trainings: a new one, and every run below the folders with its curves and previews, as they come.

import { get, post, query } from "./api.js";
import { chart } from "./curves.js";
import { emptyState, h, icon, replace, say } from "./dom.js";
import { ago, duration, name as titled, plural, short } from "./format.js";
import { startCard } from "./start.js";
import { keep, recall } from "./store.js";

const COUNTERS = new Set(["step", "images", "seconds", "skipped", "data_wait_seconds"]);
const FIRST = ["loss_smoothed", "loss", "reconstruction", "psnr", "ssim", "sample_psnr", "kd", "fd", "gradient_norm", "learning_rate"];
const TONES = 6;
const PERIOD = 2000;
const fileOf = (path) => query("/studio/file", { path });

export async function trainPage(host, [wanted]) {
  let runs = [], trainings = [], chosen = wanted || null, stopped = false, known = false;
  const over = new Set(recall("over", []));
  const logs = new Map();
  const charts = new Map();
  const card = startCard(async (made) => { chosen = made.path; unfold(false); await refresh(); show(); detail.element.scrollIntoView({ behavior: "smooth" }); });
  const fold = h("div", { class: "steps", hidden: true }, card.element);
  const opener = h("button", { type: "button", disabled: true, "aria-expanded": "false", onclick: () => unfold(fold.hidden) }, icon("make"), "New training");
  function unfold(open) {
    fold.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    keep("starting", open);
  }
  const list = h("ul", { class: "runlist", "aria-label": "Runs" });
  const detail = runView({ act, scrubbed: () => {} });
  const body = h("div", { class: "runs", hidden: true }, list, detail.element);
  const empty = h("div", { hidden: true }, emptyState("No run yet", "Choose a folder of images above. A training started in a terminal below the studio's folders appears here too."));
  replace(host, h("div", { class: "page" }, h("header", {}, h("div", {}, h("h1", {}, "Train"), h("p", {}, "From a folder of images to a model of your own.")), opener), fold, body, empty));

  async function refresh() {
    const found = await get("/studio/runs");
    runs = found.runs;
    trainings = found.trainings;
    if (!current() && items().length) chosen = items()[0].path;
    rows();
  }
  const trainingOf = (path) => trainings.find((each) => path === each.path || path.startsWith(`${each.path}/`));
  function items() {
    const waiting = trainings.filter((each) => !runs.some((run) => trainingOf(run.path) === each)).map((each) => ({ ...each, name: each.path.split("/").slice(-2).join("/"), kind: "training", previews: [], waiting: true }));
    return [...waiting, ...runs];
  }
  const current = () => items().find((each) => each.path === chosen) || items().find((each) => chosen && each.path.startsWith(`${chosen}/`));
  const compared = () => {
    const main = current();
    return main ? [main, ...runs.filter((run) => over.has(run.path) && run.path !== main.path)].slice(0, TONES) : [];
  };
  function rows() {
    const main = current();
    const shown = compared();
    const signature = JSON.stringify([items().map((each) => [each.path, each.state, each.step]), main && main.path, [...over]]);
    empty.hidden = !known || items().length > 0;
    body.hidden = !known || !items().length;
    if (list.dataset.signature === signature) return;
    list.dataset.signature = signature;
    const focused = document.activeElement && list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    replace(list, items().map((each) => {
      const at = shown.indexOf(each);
      const box = h("input", { type: "checkbox", checked: over.has(each.path) || each === main, disabled: each === main || each.waiting, "aria-label": `Show ${each.name} in the charts`, dataset: { key: `box ${each.path}` }, onchange: () => { if (box.checked) over.add(each.path); else over.delete(each.path); keep("over", [...over]); rows(); tick(); } });
      return h("li", { class: `${each === main ? "chosen " : ""}${at >= 0 ? `tone-${at}` : ""}` }, box,
        h("a", { href: `#/train/${encodeURIComponent(each.path)}`, "aria-current": each === main ? "true" : null, dataset: { key: each.path }, onclick: (event) => { event.preventDefault(); choose(each.path); } },
          h("span", { class: "clip", title: each.path }, each.name), h("span", { class: "tiny soft" }, `${each.kind} · ${stateText(each)}`)),
        each.state === "running" ? h("span", { class: "dot live", title: "running" }) : null, h("span", { class: "swatchline" }));
    }));
    if (focused) [...list.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused)?.focus();
  }
  function choose(path) {
    chosen = path;
    history.replaceState(null, "", `#/train/${encodeURIComponent(path)}`);
    rows();
    show();
    tick();
  }
  function show() {
    const run = current();
    if (run) detail.show(run, trainingOf(run.path));
  }
  async function read(run) {
    if (run.waiting) return;
    const kept = logs.get(run.path) || { lines: [], next: 0 };
    const found = await get(query("/studio/log", { path: run.path, after: kept.next }));
    const lines = found.from === 0 ? found.lines : [...kept.lines, ...found.lines];
    logs.set(run.path, { lines, next: found.next });
    Object.assign(run, found.run);
  }
  function draw() {
    const shown = compared();
    const keys = new Set(shown.flatMap((run) => (logs.get(run.path) || { lines: [] }).lines.slice(-400).flatMap((line) => Object.keys(line).filter((key) => !COUNTERS.has(key) && typeof line[key] === "number"))));
    const rank = (key) => { const at = FIRST.indexOf(key); return at < 0 ? FIRST.length : at; };
    const ordered = [...keys].sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
    detail.further.hidden = ordered.every((key) => FIRST.includes(key));
    for (const [key, made] of charts) if (!keys.has(key)) { made.dispose(); made.element.remove(); charts.delete(key); }
    const placed = new Map();
    for (const key of ordered) {
      if (!charts.has(key)) charts.set(key, chart(titled(key)));
      const place = FIRST.includes(key) ? detail.charts : detail.others;
      const at = placed.get(place) || 0;
      placed.set(place, at + 1);
      if (place.children[at] !== charts.get(key).element) place.insertBefore(charts.get(key).element, place.children[at] || null);
      charts.get(key).update(shown.map((run, tone) => ({ name: run.name, tone, points: (logs.get(run.path) || { lines: [] }).lines.filter((line) => typeof line[key] === "number").map((line) => [line.step, line[key]]) })));
    }
  }
  async function act(what, run) {
    const training = trainingOf(run.path);
    try {
      if (what === "stop") await post("/studio/trainings/stop", { path: (training || run).path });
      else await post("/studio/trainings/resume", { path: (training || run).path });
      say(what === "stop" ? "It saves its state and stops after this step." : "It continues from its last saved state.");
      await refresh();
      show();
    } catch (error) {
      say(error.message, "error");
    }
  }
  let turn = 0;
  async function tick() {
    if (stopped) return;
    try {
      if (turn++ % 2 === 0) await refresh();
      await Promise.all(compared().map(read));
      if (stopped) return;
      rows();
      show();
      draw();
    } catch (error) {
      say(error.message, "error");
    }
  }
  const [{ trains }] = await Promise.all([get("/studio/state"), refresh()]);
  opener.hidden = !trains;
  opener.disabled = false; // not before: what follows would fold again what was just opened
  unfold(trains && (!items().length || recall("starting", false)));
  known = true; // shown together, so that nothing moves
  rows();
  await tick();
  const timer = setInterval(() => { if (document.visibilityState === "visible") tick(); }, PERIOD);
  return { dispose: () => { stopped = true; clearInterval(timer); for (const each of charts.values()) each.dispose(); } };
}

export function stateText(run) {
  if (run.state === "running") return run.step ? `step ${short(run.step)}${run.seconds_left ? `, ${duration(run.seconds_left)} left` : ""}` : "starting";
  if (run.waiting) return run.state;
  return `${run.state === "done" ? "finished" : "stopped"} at step ${short(run.step || 0)}`;
}

// The details of one run; what does not change is not touched, so that nothing jumps.
function runView({ act }) {
  const title = h("h2", {}), about = h("p", { class: "small soft" });
  const stop = h("button", { type: "button" }, icon("stop"), "Stop"), resume = h("button", { type: "button" }, icon("play"), "Continue");
  const numbers = h("dl", { class: "numbers" });
  const bar = h("div", { class: "progress", role: "progressbar", "aria-label": "Progress of the run" }, h("i"));
  const image = h("img", { alt: "Preview", class: "pixels" });
  const range = h("input", { type: "range", min: 0, "aria-label": "Step of the preview" });
  const step = h("output", {});
  const caption = h("span", {}, "");
  const frame = h("div", { class: "frame" }, image);
  const preview = h("figure", { class: "preview" }, frame, h("figcaption", {}, caption, range, step));
  const charts = h("div", { class: "charts" });
  const others = h("div", { class: "charts" });
  const further = h("details", { class: "more" }, h("summary", {}, "More curves"), others);
  const report = h("a", { class: "button", target: "_blank", rel: "noopener", hidden: true }, "Report");
  const output = h("pre", { class: "output" });
  const outputs = h("details", { class: "more" }, h("summary", {}, "What it printed"), output);
  const element = h("section", { class: "run", "aria-label": "Run" }, h("div", { class: "title" }, h("div", {}, title, about), h("div", { class: "acts" }, report, stop, resume)), bar, numbers, preview, charts, further, outputs);
  outputs.addEventListener("toggle", () => { output.scrollTop = output.scrollHeight; });
  let shown = null, follows = true;

  function showPreview() {
    const each = shown.previews[Number(range.value)];
    if (!each) return;
    const url = fileOf(each.path);
    if (image.getAttribute("src") !== url) image.src = url;
    step.textContent = `step ${each.step.toLocaleString("en")}`;
    caption.textContent = each.kind === "reconstruction" ? "Originals and reconstructions, alternating" : "Samples";
  }
  range.addEventListener("input", () => { follows = Number(range.value) === shown.previews.length - 1; showPreview(); });
  const number = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));

  function show(run, training) {
    if (!shown || shown.path !== run.path) { follows = true; image.removeAttribute("src"); }
    shown = run;
    replace(title, run.state === "running" ? h("span", { class: "dot live" }) : null, run.name);
    const phase = training && training.phase && run.state !== "running" ? `now ${training.phase}` : null;
    about.textContent = [titled(run.kind), stateText(run), phase, run.changed ? ago(run.changed) : null].filter(Boolean).join(" · ");
    const running = run.state === "running" || (training && training.state === "running");
    stop.hidden = !running;
    resume.hidden = Boolean(running) || !training || Boolean(training.report);
    report.hidden = !(training && training.report);
    if (!report.hidden) report.href = fileOf(training.report);
    stop.onclick = () => act("stop", run);
    resume.onclick = () => act("resume", run);
    const share = run.steps ? run.step / run.steps : run.minutes ? (run.seconds || 0) / (60 * run.minutes) : 0;
    bar.style.setProperty("--done", Math.min(1, share));
    bar.setAttribute("aria-valuenow", Math.round(100 * share));
    replace(numbers, number("step", run.steps ? [short(run.step), h("small", {}, ` of ${short(run.steps)}`)] : short(run.step || 0)), number("images seen", short(run.images ?? 0)),
      number("images a second", run.images_per_second ? run.images_per_second.toFixed(1) : "–"), number("trained for", duration(run.seconds ?? 0) || "–"), number("time left", run.seconds_left ? duration(run.seconds_left) : "–"));
    preview.hidden = !run.previews.length;
    range.max = Math.max(0, run.previews.length - 1);
    if (follows) range.value = range.max;
    range.hidden = run.previews.length < 2;
    showPreview();
    outputs.hidden = !training || !training.output;
    if (training && output.textContent !== training.output) {
      const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 8;
      output.textContent = training.output;
      if (atEnd) output.scrollTop = output.scrollHeight;
    }
    if (run.waiting && !outputs.open && training) outputs.open = true;
  }
  return { element, charts, others, further, show };
}
