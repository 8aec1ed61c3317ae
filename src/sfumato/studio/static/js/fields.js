// Controls generated from declarations of /v1/options: a new option of a request appears here by itself.
// A control is { element, name, get, set, check }; get() is undefined where nothing was given.

import { h } from "./dom.js";
import { name as titled } from "./format.js";

let count = 0;

function frame(field, control, extra = null, label = titled(field.name)) {
  const hint = `hint-${(count += 1)}`;
  const id = control.id || (control.id = `field-${count}`);
  control.setAttribute("aria-describedby", hint);
  const error = h("span", { class: "bad", role: "alert", hidden: true });
  const element = h("div", { class: "field", dataset: { field: field.name } },
    h("label", { for: id }, label, extra && extra.label),
    extra && extra.body ? extra.body : control,
    error, h("span", { class: "hint", id: hint }, field.help));
  const complain = (text) => {
    error.hidden = !text;
    error.textContent = text || "";
    control.setAttribute("aria-invalid", String(Boolean(text)));
  };
  return { element, complain };
}

export function rangeText(range) {
  if (!range) return "";
  const low = `${range.low_excluded ? "above" : "from"} ${range.low.toLocaleString("en")}`;
  const high = `${range.high_excluded ? "below" : "to"} ${range.high.toLocaleString("en")}`;
  return `a ${range.whole ? "whole " : ""}number ${low} ${high}`;
}

export function outside(value, range) {
  if (!Number.isFinite(value)) return true;
  if (!range) return false;
  if (range.whole && !Number.isInteger(value)) return true;
  const low = range.low_excluded ? value <= range.low : value < range.low;
  const high = range.high_excluded ? value >= range.high : value > range.high;
  return low || high;
}

function numberField(field, changed) {
  const range = field.range || null;
  const slides = range && field.default !== null && range.high - range.low <= 1 && !range.whole;
  const input = h("input", slides
    ? { type: "range", min: range.low, max: range.high, step: 0.01, value: field.default }
    : { type: "text", inputmode: "decimal", autocomplete: "off", value: field.default ?? "",
      placeholder: field.placeholder || (field.default === null ? "auto" : "") });
  const output = slides ? h("output", {}, Number(field.default).toFixed(2)) : null;
  const { element, complain } = frame(field, input, output && { label: output });
  const value = () => (input.value.trim() === "" ? undefined : Number(input.value));
  const problem = () => {
    const given = value();
    if (given === undefined || !outside(given, range)) return "";
    return `${titled(field.name)} is ${input.value}: give ${rangeText(range) || "a number"}.`;
  };
  input.addEventListener("input", () => {
    if (output) output.textContent = Number(input.value).toFixed(2);
    complain(problem());
    changed();
  });
  input.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!step || slides) return;
    event.preventDefault();
    const next = (value() ?? (range ? Math.max(range.low, 0) : 0)) + step;
    if (!outside(next, range)) input.value = next;
    input.dispatchEvent(new Event("input"));
  });
  return {
    element, name: field.name, input, get: value,
    set: (given) => {
      input.value = given ?? field.default ?? "";
      if (output) output.textContent = Number(input.value).toFixed(2);
      complain(problem());
    },
    check: problem,
  };
}

function textField(field, changed) {
  const long = field.kind === "texts";
  const input = h(long ? "textarea" : "input", long
    ? { rows: field.rows || 2, placeholder: field.placeholder || "", spellcheck: "true" }
    : { type: "text", placeholder: field.placeholder || "" });
  const { element } = frame(field, input);
  input.addEventListener("input", changed);
  const lines = () => input.value.split("\n").map((line) => line.trim()).filter(Boolean);
  return {
    element, name: field.name, input, check: () => "",
    get: () => {
      if (!long) return input.value.trim() || undefined;
      if (field.single) return input.value.trim().replace(/\s*\n\s*/g, " ") || undefined;
      const given = lines();
      return given.length > 1 ? given : given[0];
    },
    set: (given) => { input.value = Array.isArray(given) ? given.join("\n") : given ?? field.default ?? ""; },
  };
}

function choiceField(field, changed) {
  const given = field.choices.map((each) => (typeof each === "object" && each !== null ? each : { name: each, about: "" }));
  const options = given.map((each) => h("option", { value: String(each.name), title: each.about }, each.title || String(each.name)));
  const none = field.default === null ? [h("option", { value: "" }, field.placeholder || "auto")] : [];
  const select = h("select", {}, ...none, ...options);
  const { element } = frame(field, select);
  select.value = field.default ?? "";
  select.addEventListener("change", changed);
  const real = (text) => given.find((each) => String(each.name) === text)?.name;
  return {
    element, name: field.name, input: select, check: () => "",
    get: () => (select.value === "" ? undefined : real(select.value)),
    set: (value) => {
      const text = String(value ?? field.default ?? "");
      if (text && ![...select.options].some((each) => each.value === text)) select.append(h("option", { value: text }, text));
      if (text && !given.some((each) => String(each.name) === text)) given.push({ name: value, about: "" });
      select.value = text;
    },
  };
}

function booleanField(field, changed) {
  const input = h("input", { type: "checkbox", role: "switch", checked: Boolean(field.default) });
  const element = h("div", { class: "field", dataset: { field: field.name } },
    h("label", { class: "switch" }, input, titled(field.name)), h("span", { class: "hint" }, field.help));
  input.addEventListener("change", changed);
  return {
    element, name: field.name, input, check: () => "",
    get: () => input.checked, set: (given) => { input.checked = Boolean(given ?? field.default); },
  };
}

// Lists of numbers, "a=1,b=2" for the parts of a composite condition, pairs: typed with commas.
function listField(field, changed) {
  const shown = (given) => {
    if (given === null || given === undefined) return "";
    if (Array.isArray(given)) return given.join(", ");
    return typeof given === "object" ? Object.entries(given).map(([key, value]) => `${key}=${value}`).join(", ") : String(given);
  };
  const input = h("input", { type: "text", autocomplete: "off", value: shown(field.default), placeholder: field.placeholder || (field.default === null ? "auto" : "") });
  const { element, complain } = frame(field, input);
  const parsed = () => {
    const words = input.value.split(/[,\s]+/).filter(Boolean);
    if (!words.length) return undefined;
    if (words.every((word) => word.includes("="))) {
      return Object.fromEntries(words.map((word) => word.split("=")).map(([key, value]) => [key, Number(value)]));
    }
    const numbers = words.map(Number);
    return field.kind === "scales" && numbers.length === 1 ? numbers[0] : numbers;
  };
  const problem = () => {
    const given = parsed();
    if (given === undefined) return "";
    const all = typeof given === "number" ? [given] : Object.values(given);
    const bad = all.find((each) => outside(each, field.range));
    const wrong = field.kind === "pair" && all.length !== 2 ? "two numbers with a comma" : rangeText(field.range) || "numbers with commas";
    return bad !== undefined || (field.kind === "pair" && all.length !== 2) ? `${titled(field.name)} is ${input.value}: give ${wrong}.` : "";
  };
  input.addEventListener("input", () => { complain(problem()); changed(); });
  return {
    element, name: field.name, input, check: problem, get: parsed,
    set: (given) => { input.value = shown(given ?? field.default); complain(problem()); },
  };
}

function sizeField(field, changed, model) {
  const multiple = (model && model.multiple) || 1;
  const usual = model ? model.image_size : null;
  const side = (label, at) => h("input", { type: "text", inputmode: "numeric", autocomplete: "off", "aria-label": label, placeholder: usual ? usual[at] : "" });
  const height = side("Height", 0), width = side("Width", 1);
  const body = h("div", { class: "row" }, width, h("span", { class: "times" }, "×"), height);
  const { element, complain } = frame({ ...field, help: `Width × height, multiples of ${multiple}.` }, width, { body });
  const value = () => {
    if (!height.value.trim() && !width.value.trim()) return undefined;
    const sides = [height.value.trim() || (usual && usual[0]), width.value.trim() || (usual && usual[1])];
    return sides.map(Number);
  };
  const problem = () => {
    const given = value();
    if (!given) return "";
    const wrong = given.find((each) => outside(each, field.range) || each % multiple !== 0);
    return wrong === undefined ? "" : `A side is ${wrong}: give a multiple of ${multiple}.`;
  };
  for (const each of [height, width]) each.addEventListener("input", () => { complain(problem()); changed(); });
  return {
    element, name: field.name, input: width, get: value, check: problem,
    set: (given) => {
      [height.value, width.value] = given && !(usual && given[0] === usual[0] && given[1] === usual[1]) ? given : ["", ""];
      complain(problem());
    },
  };
}

// A colour that guides the image, or none.
function colourField(field, changed) {
  const input = h("input", { type: "color", value: "#d2691e", "aria-label": titled(field.name) });
  const toggle = booleanField({ ...field, default: false }, () => { input.hidden = !toggle.input.checked; changed(); });
  input.hidden = true;
  input.addEventListener("input", changed);
  toggle.element.append(input);
  return {
    element: toggle.element, name: field.name, input: toggle.input, check: () => "",
    get: () => (toggle.input.checked ? [input.value] : undefined),
    set: (given) => {
      toggle.input.checked = Boolean(given && given.length);
      input.hidden = !toggle.input.checked;
      if (given && given.length) input.value = given[0];
    },
  };
}

// Several numbers that are on or off together, as adaptive projected guidance.
function nestedField(field, changed) {
  const inner = (field.fields || []).map((each) => makeControl(each, changed));
  const box = h("div", { class: "group", hidden: true }, ...inner.map((each) => each.element));
  const toggle = booleanField({ ...field, default: false }, () => { box.hidden = !toggle.input.checked; changed(); });
  return {
    element: h("div", { class: "field" }, toggle.element, box), name: field.name, input: toggle.input,
    check: () => (toggle.input.checked ? inner.map((each) => each.check()).find(Boolean) || "" : ""),
    get: () => {
      if (!toggle.input.checked) return undefined;
      return Object.fromEntries(inner.map((each) => [each.name, each.get()]).filter(([, value]) => value !== undefined));
    },
    set: (given) => {
      toggle.input.checked = Boolean(given);
      box.hidden = !given;
      for (const each of inner) each.set(given ? given[each.name] : null);
    },
  };
}

const MAKERS = {
  text: textField, texts: textField, integer: numberField, number: numberField, boolean: booleanField, choice: choiceField,
  size: sizeField, pair: listField, numbers: listField, integers: listField, scales: listField, colours: colourField,
  projection: nestedField,
};

// The control of a declaration; null for what is drawn by hand (images, boxes, sides).
export function makeControl(field, changed, model = null, models = []) {
  if (field.kind === "model") {
    const choices = models.map((each) => ({ name: each.id, about: each.path }));
    return choiceField({ ...field, choices, placeholder: "none" }, changed);
  }
  const maker = field.choices ? choiceField : MAKERS[field.kind];
  return maker ? maker(field, changed, model) : null;
}
