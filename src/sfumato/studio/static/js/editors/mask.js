// The hole of an inpainting: brush, eraser, size, undo, invert, and the feather as it will be blended.

import { upload } from "../api.js";
import { h, iconButton } from "../dom.js";
import { any, disc, feathered, invert, line, makeGrid, redo, snapshot, toBlob, undo } from "./grid.js";
import { surface } from "./surface.js";

const TINT = [226, 92, 36];
const FAINTEST = 70, FULL = 205; // of 255, where the share of new pixels is least and where it is 1

export function maskEditor(input, feather) {
  const { width, height } = input;
  const grid = makeGrid(width, height);
  let tool = 1;
  let size = Math.max(1, Math.round(Math.min(width, height) / 5));
  let last = null;

  const stroke = (at) => {
    if (last) line(grid, last, at, size, tool);
    else disc(grid, at.x, at.y, size, tool);
    last = at;
    paint(false);
  };
  const board = surface({
    width, height, url: input.url, brush: () => size, label: `Hole in an image of ${width} by ${height} pixels; arrow keys move, space paints`,
    down: (at) => { snapshot(grid); last = null; stroke(at); },
    move: stroke,
    up: () => { last = null; paint(true); },
  });
  const pixels = board.context.createImageData(width, height);
  function paint(soft) {
    const share = soft && feather() > 0 ? feathered(grid, Math.round(feather())) : grid.cells;
    for (let i = 0; i < grid.cells.length; i += 1) {
      pixels.data[4 * i] = TINT[0];
      pixels.data[4 * i + 1] = TINT[1];
      pixels.data[4 * i + 2] = TINT[2];
      pixels.data[4 * i + 3] = share[i] ? FAINTEST + (FULL - FAINTEST) * share[i] : 0;
    }
    board.context.putImageData(pixels, 0, 0);
    status.textContent = any(grid) ? `hole: ${Math.ceil((100 * grid.cells.reduce((sum, each) => sum + each, 0)) / grid.cells.length)} % of the image` : "paint over what is to be replaced";
  }

  const tools = { brush: 1, eraser: 0 };
  const buttons = Object.keys(tools).map((name) => iconButton(name, name === "brush" ? "Brush (B)" : "Eraser (E)", () => choose(name), { "aria-pressed": String(tools[name] === tool) }));
  function choose(name) {
    tool = tools[name];
    Object.keys(tools).forEach((each, i) => buttons[i].setAttribute("aria-pressed", String(each === name)));
  }
  const range = h("input", { type: "range", min: 1, max: Math.max(8, Math.round(Math.min(width, height) / 1.5)), value: size, "aria-label": "Brush size in pixels" });
  const shown = h("output", { class: "tiny soft" }, `${size} px`);
  range.addEventListener("input", () => { size = Number(range.value); shown.textContent = `${size} px`; });
  const change = (act) => () => { act(); paint(true); };
  const status = h("span", { class: "status tiny soft", "aria-live": "polite" });
  const bar = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Hole" }, buttons, h("label", { class: "size" }, range, shown),
    iconButton("undo", "Undo (Ctrl+Z)", change(() => undo(grid))), iconButton("redo", "Redo (Ctrl+Shift+Z)", change(() => redo(grid))),
    iconButton("invert", "Invert the hole (I)", change(() => { snapshot(grid); invert(grid); })),
    iconButton("clear", "No hole", change(() => { snapshot(grid); grid.cells.fill(0); })), status);
  paint(true);
  return {
    element: h("div", { class: "editor" }, bar, board.element),
    refresh: () => paint(true),
    keys: {
      b: () => choose("brush"), e: () => choose("eraser"), i: change(() => { snapshot(grid); invert(grid); }),
      "ctrl+z": change(() => undo(grid)), "ctrl+shift+z": change(() => redo(grid)),
      "[": () => { range.value = size - 1; range.dispatchEvent(new Event("input")); },
      "]": () => { range.value = size + 1; range.dispatchEvent(new Event("input")); },
    },
    values: async () => {
      if (!any(grid)) throw new Error("Paint a hole over the part of the image that is to be replaced.");
      const sent = await upload(await toBlob(grid, (each) => (each ? 255 : 0)), "mask.png");
      return { mask: `upload:${sent.id}` };
    },
    fit: board.fit,
    dispose: board.dispose,
  };
}
