// Curves of runs over their steps: several runs in one chart, the value under the pointer, redrawn as lines arrive.

import { h, replace, svg } from "./dom.js";
import { short } from "./format.js";

const MOST_POINTS = 500;
const HEIGHT = 180, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;

// Means over bins of steps: a curve of a hundred thousand lines is drawn as five hundred points.
export function thinned(points, most = MOST_POINTS) {
  if (points.length <= most) return points;
  const size = Math.ceil(points.length / most);
  const made = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    made.push([part[part.length - 1][0], part.reduce((sum, [, y]) => sum + y, 0) / part.length]);
  }
  return made;
}

// Round values between two ends, about `count` of them.
export function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * unit >= 0.8 * rough) * unit;
  const made = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) made.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return made;
}

// The value of a tick, with as many digits as the distance between ticks needs.
export function tickText(value, marks) {
  const step = marks.length > 1 ? Math.abs(marks[1] - marks[0]) : Math.abs(value) || 1;
  if (step >= 1) return short(value);
  if (step < 1e-5) return value.toExponential(1);
  return value.toFixed(Math.ceil(-Math.log10(step) - 1e-9));
}

// The range to show: without the first steps' peak where it would flatten the rest.
export function rangeOf(series) {
  const values = series.flatMap((each) => each.points.map(([, y]) => y)).sort((one, other) => one - other);
  if (!values.length) return [0, 1];
  const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  let [low, high] = [values[0], values[values.length - 1]];
  if (values.length > 40 && high - low > 4 * (at(0.98) - at(0.02))) [low, high] = [Math.max(low, at(0.005)), at(0.98)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

// series: [{ name, tone, points: [[step, value], ...] }]
export function chart(title) {
  const output = h("output", {});
  const drawing = svg("svg", { role: "img" });
  const element = h("figure", { class: "chart" }, h("figcaption", {}, h("span", {}, title), output), drawing);
  let series = [];
  let scale = null;

  function draw() {
    const width = Math.max(200, element.clientWidth);
    const shown = series.map((each) => ({ ...each, points: thinned(each.points) })).filter((each) => each.points.length);
    const [low, high] = rangeOf(shown);
    const last = Math.max(1, ...shown.map((each) => each.points[each.points.length - 1][0]));
    const x = (step) => LEFT + (step / last) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const clip = (value) => Math.min(HEIGHT - BOTTOM, Math.max(TOP, y(value)));
    scale = { x, y: clip, last, width };
    const marks = ticks(low, high);
    const lines = marks.map((value) => [
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      label(tickText(value, marks), LEFT - 8, y(value) + 4, "end")]);
    const steps = ticks(0, last, 4).filter((each) => each > 0).map((each) => label(short(each), x(each), HEIGHT - 4, each === last ? "end" : "middle"));
    const curves = shown.map((each) => each.points.length === 1
      ? svg("circle", { class: `dotmark tone-${each.tone}`, cx: x(each.points[0][0]), cy: clip(each.points[0][1]), r: 3 })
      : svg("path", { class: `curve tone-${each.tone}`, d: each.points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${clip(value).toFixed(1)}`).join("") }));
    drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    drawing.setAttribute("aria-label", `${title}: ${shown.map((each) => `${each.name} ${short(each.points[each.points.length - 1][1])}`).join(", ")}`);
    replace(drawing, ...lines.flat(), ...steps, ...curves, svg("g", { class: "at" }));
    rest();
  }
  function label(text, at, top, anchor) {
    const made = svg("text", { x: at, y: top, "text-anchor": anchor });
    made.textContent = text;
    return made;
  }
  function rest() {
    const first = series.find((each) => each.points.length);
    output.textContent = first ? short(first.points[first.points.length - 1][1]) : "";
    const at = drawing.querySelector(".at");
    if (at) at.replaceChildren();
  }
  drawing.addEventListener("pointermove", (event) => {
    if (!scale) return;
    const box = drawing.getBoundingClientRect();
    const step = ((event.clientX - box.left) * (scale.width / box.width) - LEFT) / ((scale.width - LEFT - RIGHT) / scale.last);
    const found = series.filter((each) => each.points.length).map((each) => ({ ...each, point: nearest(each.points, step) }));
    if (!found.length) return;
    drawing.querySelector(".at").replaceChildren(
      svg("line", { class: "cross", x1: scale.x(found[0].point[0]), x2: scale.x(found[0].point[0]), y1: TOP, y2: HEIGHT - BOTTOM }),
      ...found.map((each) => svg("circle", { class: `dotmark tone-${each.tone}`, cx: scale.x(each.point[0]), cy: scale.y(each.point[1]), r: 3.5 })));
    output.textContent = `step ${found[0].point[0]}: ${found.map((each) => short(each.point[1])).join(" · ")}`;
  });
  drawing.addEventListener("pointerleave", rest);
  const observer = new ResizeObserver(() => draw());
  observer.observe(element);
  return { element, update: (next) => { series = next; draw(); }, dispose: () => observer.disconnect() };
}

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? points[low] : points[high];
}
