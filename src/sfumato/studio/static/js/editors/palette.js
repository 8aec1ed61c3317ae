// A label map painted with the model's classes: brush, line, fill, eraser to the first class or to none.

import { upload } from "../api.js";
import { h, iconButton } from "../dom.js";
import { disc, fill, line, makeGrid, redo, snapshot, toBlob, undo } from "./grid.js";
import { surface } from "./surface.js";

const css = (colour) => `rgb(${colour.join(" ")})`;

export function classesOf(model) {
  const known = model.map || {};
  const count = known.classes || (known.names || []).length;
  const names = known.names || [];
  const classes = Array.from({ length: count }, (_, id) => ({
    id, name: names[id] || `class ${id}`, colour: (known.palette && known.palette[id]) || wheel(id, count),
  }));
  if (known.void !== null && known.void !== undefined) classes.push({ id: known.void, name: "no class", colour: [255, 255, 255], none: true });
  return classes;
}

function wheel(id, count) {
  const angle = (2 * Math.PI * id) / Math.max(1, count);
  return [0, 2.1, 4.2].map((shift) => Math.round(128 + 110 * Math.cos(angle - shift)));
}

export function paletteEditor(model, size) {
  const [height, width] = size;
  const classes = classesOf(model);
  const colours = new Map(classes.map((each) => [each.id, each.colour]));
  const grid = makeGrid(width, height, classes[0].id);
  let tool = "brush";
  let chosen = classes[Math.min(1, classes.length - 1)].id;
  let diameter = Math.max(1, Math.round(Math.min(width, height) / 6));
  let last = null, first = null, before = null;

  const board = surface({
    width, height, url: null, brush: () => (tool === "fill" ? 1 : diameter), label: `Label map of ${width} by ${height} pixels; arrow keys move, space paints`,
    down: (at) => {
      snapshot(grid);
      first = at;
      if (tool === "fill") fill(grid, at.x, at.y, chosen);
      else if (tool === "line") { before = grid.cells.slice(); disc(grid, at.x, at.y, diameter, chosen); }
      else disc(grid, at.x, at.y, diameter, chosen);
      last = at;
      paint();
    },
    move: (at) => {
      if (tool === "brush") line(grid, last, at, diameter, chosen);
      if (tool === "line") { grid.cells.set(before); line(grid, first, at, diameter, chosen); }
      last = at;
      paint();
    },
    up: () => { last = null; },
  });
  const pixels = board.context.createImageData(width, height);
  function paint() {
    for (let i = 0; i < grid.cells.length; i += 1) {
      const [red, green, blue] = colours.get(grid.cells[i]) || [0, 0, 0];
      pixels.data.set([red, green, blue, 255], 4 * i);
    }
    board.context.putImageData(pixels, 0, 0);
  }

  const tools = [["brush", "Brush (B)"], ["line", "Straight line (L)"], ["fill", "Fill (F)"]];
  const buttons = tools.map(([name, label]) => iconButton(name, label, () => choose(name), { "aria-pressed": String(name === tool) }));
  function choose(name) {
    tool = name;
    tools.forEach(([each], i) => buttons[i].setAttribute("aria-pressed", String(each === name)));
  }
  const swatches = classes.map((each) => h("button", {
    type: "button", class: `swatch${each.none ? " none" : ""}`, "aria-pressed": String(each.id === chosen), dataset: { id: each.id }, onclick: () => pick(each.id),
  }, h("i", { style: { background: css(each.colour) } }), each.name));
  function pick(id) {
    chosen = id;
    for (const each of swatches) each.setAttribute("aria-pressed", String(Number(each.dataset.id) === id));
  }
  const range = h("input", { type: "range", min: 1, max: Math.max(8, Math.round(Math.min(width, height) / 2)), value: diameter, "aria-label": "Brush size in pixels" });
  const shown = h("output", { class: "tiny soft" }, `${diameter} px`);
  range.addEventListener("input", () => { diameter = Number(range.value); shown.textContent = `${diameter} px`; });
  const change = (act) => () => { act(); paint(); };
  const bar = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Label map" }, buttons, h("label", { class: "size" }, range, shown),
    iconButton("undo", "Undo (Ctrl+Z)", change(() => undo(grid))), iconButton("redo", "Redo (Ctrl+Shift+Z)", change(() => redo(grid))),
    iconButton("clear", "All one class: the chosen one", change(() => { snapshot(grid); grid.cells.fill(chosen); })));
  paint();
  return {
    element: h("div", { class: "editor" }, bar, h("div", { class: "beside" }, board.element, h("div", { class: "swatches", role: "group", "aria-label": "Classes" }, swatches))),
    keys: {
      b: () => choose("brush"), l: () => choose("line"), f: () => choose("fill"),
      "ctrl+z": change(() => undo(grid)), "ctrl+shift+z": change(() => redo(grid)),
    },
    values: async () => {
      const sent = await upload(await toBlob(grid, (each) => each), "map.png");
      return { map: `upload:${sent.id}` };
    },
    fit: board.fit,
    dispose: board.dispose,
  };
}
