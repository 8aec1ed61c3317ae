// The area that editors draw on: an image or a plain ground shown as large as fits, pointer and keys in its pixels.

import { h } from "../dom.js";

const MOST_HEIGHT = 520;

// Whole multiples for small images keep their pixels square.
export function scaleFor(width, height, room, tallest = MOST_HEIGHT) {
  const scale = Math.min(room / width, tallest / height);
  return scale >= 2 ? Math.floor(scale) : scale;
}

// Options: width, height, url (or null), brush() -> diameter, and down, move, up with points {x, y} in pixels.
export function surface({ width, height, url, brush, down, move, up, label }) {
  const canvas = h("canvas", { width, height, tabindex: 0, role: "img", "aria-label": label });
  const cursor = h("div", { class: "cursor", hidden: true });
  const image = url ? h("img", { src: url, alt: "", draggable: "false" }) : null;
  const sheet = h("div", { class: "sheet" }, image, canvas, cursor);
  const element = h("div", { class: "surface" }, sheet);
  let scale = 1;
  let pressed = false;
  let keyed = { x: width / 2, y: height / 2 };

  const fit = () => {
    scale = scaleFor(width, height, Math.max(80, element.clientWidth - 2 * parseFloat(getComputedStyle(element).paddingLeft)));
    sheet.style.width = `${width * scale}px`;
    sheet.style.height = `${height * scale}px`;
    sheet.classList.toggle("pixels", scale >= 2);
    element.style.setProperty("--scale", scale);
  };
  const observer = new ResizeObserver(fit);
  observer.observe(element);

  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
  };
  const show = (at) => {
    const size = Math.max(1, brush ? brush() : 1) * scale;
    cursor.hidden = !brush;
    cursor.style.width = cursor.style.height = `${size}px`;
    cursor.style.transform = `translate(${at.x * scale - size / 2}px, ${at.y * scale - size / 2}px)`;
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pressed = true;
    down(point(event), event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    if (pressed) for (const each of all.length ? all : [event]) move(point(each), each);
    show(point(event));
  });
  const end = (event) => {
    if (!pressed) return;
    pressed = false;
    up(point(event), event);
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => { if (!pressed) cursor.hidden = true; });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const far = event.shiftKey ? 8 : 1;
      keyed = { x: Math.min(width - 0.5, Math.max(0.5, keyed.x + far * step[0])), y: Math.min(height - 0.5, Math.max(0.5, keyed.y + far * step[1])) };
      show(keyed);
      event.preventDefault();
    } else if (event.key === " ") {
      event.preventDefault();
      down(keyed, event);
      up(keyed, event);
    }
  });
  return { element, canvas, context: canvas.getContext("2d"), scale: () => scale, fit, dispose: () => observer.disconnect() };
}
