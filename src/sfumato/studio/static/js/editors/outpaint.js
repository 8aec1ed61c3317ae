// How far an image is extended: pull the handles, or type pixels.

import { h } from "../dom.js";

const SIDES = ["left", "top", "right", "bottom"];

export function outpaintEditor(input, given = null) {
  const usual = Math.max(8, Math.round(Math.min(input.width, input.height) / 4 / 8) * 8);
  const sides = given ? [...given] : [usual, 0, usual, 0];
  const image = h("img", { src: input.url, alt: "The image to extend", draggable: "false" });
  const frame = h("div", { class: "extent" }, image, SIDES.map((side, i) => h("button", { type: "button", class: `pull ${side}`, "aria-label": `Extend ${side}; arrow keys change it`, dataset: { side: i } })));
  const host = h("div", { class: "surface tall" }, frame);
  const fields = SIDES.map((side, i) => {
    const control = h("input", { type: "text", inputmode: "numeric", "aria-label": `Pixels on the ${side}`, value: sides[i] });
    control.addEventListener("input", () => {
      const value = Number(control.value);
      if (Number.isInteger(value) && value >= 0) { sides[i] = value; fit(); }
    });
    return control;
  });
  const note = h("span", { class: "status tiny soft", "aria-live": "polite" });
  let scale = 1;
  function fit() {
    const width = input.width + sides[0] + sides[2], height = input.height + sides[1] + sides[3];
    if (!dragging) scale = Math.min((host.clientWidth || 400) * 0.8 / width, 400 / height, 12);
    frame.style.width = `${width * scale}px`;
    frame.style.height = `${height * scale}px`;
    image.style.left = `${sides[0] * scale}px`;
    image.style.top = `${sides[1] * scale}px`;
    image.style.width = `${input.width * scale}px`;
    image.classList.toggle("pixels", scale >= 2);
    note.textContent = `${input.width} × ${input.height} becomes ${width} × ${height}`;
    fields.forEach((each, i) => { if (document.activeElement !== each) each.value = sides[i]; });
  }
  let dragging = null;
  const set = (i, value) => { sides[i] = Math.max(0, Math.round(value)); fit(); };
  frame.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".pull");
    if (!handle) return;
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    const i = Number(handle.dataset.side);
    dragging = { i, from: i % 2 ? event.clientY : event.clientX, before: sides[i] };
  });
  frame.addEventListener("pointermove", (event) => {
    if (!dragging) return;
    const { i, from, before } = dragging;
    const moved = (i % 2 ? event.clientY : event.clientX) - from;
    set(i, before + ((i < 2 ? -moved : moved) / scale) * (i % 2 ? 1 : 1));
  });
  const end = () => { dragging = null; fit(); };
  frame.addEventListener("pointerup", end);
  frame.addEventListener("pointercancel", end);
  frame.addEventListener("keydown", (event) => {
    const handle = event.target.closest(".pull");
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!handle || !step) return;
    event.preventDefault();
    const i = Number(handle.dataset.side);
    set(i, sides[i] + (i < 2 ? -step : step) * (event.shiftKey ? 8 : 1));
  });
  const observer = new ResizeObserver(fit);
  observer.observe(host);
  return {
    element: h("div", { class: "editor" }, h("div", { class: "toolbar" },
      SIDES.map((side, i) => h("label", { class: "side" }, h("span", { class: "tiny soft" }, side), fields[i])), note), host),
    keys: {},
    values: async () => {
      if (!sides.some((each) => each > 0)) throw new Error("Pull a side of the image outwards: all extensions are 0.");
      return { extend: sides };
    },
    fit,
    dispose: () => observer.disconnect(),
  };
}
