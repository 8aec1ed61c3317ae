// The request: model, task, and every declared option of the task; all of it is remembered over a reload.

import { h, icon, iconButton, replace } from "./dom.js";
import { makeControl } from "./fields.js";
import { name as titled } from "./format.js";
import { keep, recall } from "./store.js";

export const TASK_TITLES = {
  sample: "Generate", inpaint: "Inpaint", outpaint: "Outpaint", edit: "Edit", upscale: "Upscale", semantic: "Label map", layout: "Boxes", interpolate: "Interpolate",
};
const BY_HAND = new Set(["image", "boxes", "sides"]);
const WIDE = new Set(["prompt", "negative"]);
const FIRST = ["prompt", "negative", "label", "strength", "count", "steps", "seed", "guidance", "sampler", "size", "frames"];
const PLACEHOLDERS = { prompt: "What to see, one prompt a line", negative: "What to avoid" };

export const randomSeed = () => Math.floor(Math.random() * 2 ** 31);

// Calls changed(what) with "model", "task" or "value".
export function requestForm({ models, options, changed }) {
  const able = models.filter((each) => each.tasks.length);
  const kept = recall("form", {});
  let model = able.find((each) => each.id === kept.model) || able[0];
  let task = model.tasks.includes(kept.task) ? kept.task : model.default_task;
  let values = kept.values || {};
  let newSeed = kept.newSeed !== false;
  let controls = [];

  const select = h("select", { id: "model", onchange: () => { model = able.find((each) => each.id === select.value); choose(model.tasks.includes(task) ? task : model.default_task, "model"); } },
    able.map((each) => h("option", { value: each.id }, each.id)));
  const about = h("p", { class: "tiny soft about" });
  const tasks = h("div", { class: "segments", role: "group", "aria-label": "Task" });
  const common = h("div", { class: "common" });
  const more = h("details", { class: "more" }, h("summary", {}, "More options"), h("div", { class: "groups" }));
  more.open = Boolean(kept.more);
  more.addEventListener("toggle", save);
  const element = h("div", { class: "request" },
    h("div", { class: "field" }, h("label", { for: "model" }, "Model"), select, about), tasks, common, more);

  function save() {
    keep("form", { model: model.id, task, values, newSeed, more: more.open });
  }
  function noted() {
    for (const each of controls) values[each.name] = each.get() ?? null;
    save();
    changed("value");
  }
  function choose(next, what = "task") {
    task = next;
    build();
    save();
    changed(what);
  }
  const fields = () => options.tasks[task].fields;
  const fits = (field) => !BY_HAND.has(field.kind) && (!field.needs || field.needs.some((each) => model.takes.includes(each)))
    && (field.name !== "guidance" || model.guidance) && field.name !== "model" && field.name !== "task";

  function declared(field) {
    const placeholder = field.name === "prompt" && model.example ? model.example : PLACEHOLDERS[field.name];
    if (field.name === "label" && model.classes) return { ...field, kind: "choice", choices: model.classes, placeholder: "any class" };
    if (field.name === "sampler") return { ...field, choices: options.samplers };
    if (field.name === "grid" && options.grids) return { ...field, choices: options.grids, placeholder: "the sampler's" };
    if (field.name === "autoguide") return { ...field, kind: "model" };
    if (placeholder && field.kind === "text") field = { ...field, kind: "texts", single: true };
    if (field.name === "count") return { ...field, placeholder: "1" };
    if (field.name === "steps" && field.default === null) return { ...field, placeholder: "20" };
    return placeholder ? { ...field, placeholder, rows: field.name === "negative" ? 1 : 3 } : field;
  }
  function seeded(control) {
    const dice = iconButton("dice", "New seed each time", () => set(true)), lock = iconButton("lock", "Keep this seed", () => set(false));
    const set = (value) => {
      newSeed = value;
      dice.setAttribute("aria-pressed", String(value));
      lock.setAttribute("aria-pressed", String(!value));
      save();
    };
    const input = control.input;
    const body = h("div", { class: "with seed" });
    input.replaceWith(body);
    body.append(input, dice, lock);
    set(newSeed);
    input.placeholder = "new each time";
    if (newSeed && (values.seed ?? null) === null) input.value = ""; // not the default, which will not be used
    input.addEventListener("input", () => set(false));
    return control;
  }

  function build() {
    select.value = model.id;
    const size = model.image_size;
    about.textContent = [`${size[1]} × ${size[0]} px`, model.takes.length ? `takes ${model.takes.map((each) => each.replaceAll("_", " ")).join(", ")}` : "unconditional", model.loaded ? "loaded" : null].filter(Boolean).join(" · ");
    replace(tasks, model.tasks.map((each) => h("button", { type: "button", "aria-pressed": String(each === task), dataset: { task: each }, title: (options.tasks[each] || {}).help, onclick: () => choose(each) }, TASK_TITLES[each] || titled(each))));
    const known = fields().filter(fits).map((field) => [field, makeControl(declared(field), noted, model, able)]).filter(([, control]) => control);
    controls = known.map(([, control]) => control);
    for (const [field, control] of known) {
      if (field.name in values) control.set(values[field.name]);
      if (field.name === "seed") seeded(control);
      if (WIDE.has(field.name)) control.input.classList.add("prompt");
      control.element.classList.toggle("wide", WIDE.has(field.name) || control.input.type === "range");
    }
    const rank = ([field]) => { const at = FIRST.indexOf(field.name); return at < 0 ? FIRST.length : at; };
    // Several seeds are for those who know them: one field of the two stands in front, unless the task needs both ends.
    const first = (field) => field.common && (field.name !== "seeds" || !fields().some((each) => each.name === "seed"));
    const shown = known.filter(([field]) => first(field)).sort((one, other) => rank(one) - rank(other));
    replace(common, shown.map(([, control]) => control.element));
    const rest = known.filter(([field]) => !first(field));
    const groups = [...new Set(rest.map(([field]) => field.group))];
    replace(more.querySelector(".groups"), groups.map((group) => h("div", { class: "group" }, h("h3", {}, group), rest.filter(([field]) => field.group === group).map(([, control]) => control.element))));
    more.hidden = !rest.length;
  }
  build();

  return {
    element,
    model: () => model,
    task: () => task,
    value: (name) => { const found = controls.find((each) => each.name === name); return found ? found.get() : undefined; },
    field: (name) => fields().find((each) => each.name === name),
    hand: () => fields().filter((each) => BY_HAND.has(each.kind)),
    // The body of a job without what is drawn by hand; throws with the first problem.
    request: () => {
      const seed = controls.find((each) => each.name === "seed");
      if (seed && (newSeed || seed.get() === undefined)) { seed.set(randomSeed()); noted(); }
      for (const each of controls) {
        const problem = each.check();
        if (problem) { each.input.focus(); throw new Error(problem); }
      }
      const given = controls.map((each) => [each.name, each.get()]).filter(([, value]) => value !== undefined && value !== "");
      return { task, model: model.id, ...Object.fromEntries(given) };
    },
    // Takes over the settings of an image: { task, model, ...fields }; keeps what they do not name at its default.
    apply: (request, quiet = false) => {
      const found = able.find((each) => each.id === request.model);
      if (found) model = found;
      if (request.task && model.tasks.includes(request.task)) task = request.task;
      values = Object.fromEntries(Object.entries(request).filter(([key]) => key !== "task" && key !== "model"));
      if (fields().some((each) => each.name === "seed") && (values.seeds || []).length === 1) {
        values.seed = values.seeds[0]; // the field in front; what the list says would hold whatever is typed there
        delete values.seeds;
      }
      if ("seed" in values) newSeed = false;
      build();
      save();
      if (!quiet) changed("model");
      return Boolean(found);
    },
    // Fills some fields without touching the others.
    fill: (given) => {
      for (const each of controls) if (each.name in given) each.set(given[each.name]);
      noted();
    },
    defaults: () => Object.fromEntries(fields().map((each) => [each.name, each.default])),
    possible: (wanted) => able.some((each) => each.tasks.includes(wanted)),
    // Chooses a task, and where the model cannot do it the first one that can.
    setTask: (next) => {
      const found = model.tasks.includes(next) ? model : able.find((each) => each.tasks.includes(next));
      if (!found) return;
      model = found;
      choose(next, "model");
    },
  };
}

export function submitBar(onsubmit) {
  const button = h("button", { type: "submit", class: "primary", title: "Ctrl+Enter" }, icon("make"), h("span", {}, "Generate"));
  const error = h("p", { class: "bad small", role: "alert", hidden: true });
  return {
    element: h("div", { class: "submit" }, error, button),
    complain: (text) => { error.hidden = !text; error.textContent = text || ""; },
    busy: (value) => { button.disabled = value; },
    title: (text) => { button.lastChild.textContent = text; },
    onsubmit,
  };
}
