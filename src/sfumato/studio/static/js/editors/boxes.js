// Boxes with classes: drag on the ground to make one, move it, pull its handles, arrows and delete for the chosen one.

import { h, iconButton, replace } from "../dom.js";

const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const LEAST = 0.02;
const TALLEST = 460;
const round = (value) => Math.round(value * 1e4) / 1e4;
const within = (value, low, high) => Math.min(high, Math.max(low, value));

export function boxesEditor(model, size, given = []) {
  const [height, width] = size;
  const names = (model.layout && model.layout.names) || [];
  const categories = names.length ? names : Array.from({ length: model.layout ? model.layout.categories : 1 }, (_, i) => i);
  const most = (model.layout && model.layout.objects) || 64;
  let boxes = given.map((each) => ({ label: each.label, box: [...each.box] }));
  let chosen = boxes.length ? 0 : -1;
  let label = categories[0];
  let drag = null;
  const past = [];

  const ground = h("div", { class: "ground", tabindex: 0, role: "application", "aria-label": "Boxes: drag to make one, or press N; arrow keys move the chosen one, with shift they resize it, delete removes it" });
  const list = h("ol", { class: "boxlist" });
  ground.style.aspectRatio = `${width} / ${height}`;
  ground.style.width = `min(100%, ${(TALLEST * width) / height}px)`;
  const host = h("div", { class: "surface" }, ground);

  const remember = (before = JSON.stringify(boxes)) => {
    past.push(before);
    if (past.length > 200) past.shift();
  };
  const undo = () => {
    if (!past.length) return;
    boxes = JSON.parse(past.pop());
    chosen = Math.min(chosen, boxes.length - 1);
    draw();
  };
  const at = (event) => {
    const area = ground.getBoundingClientRect();
    return { x: within((event.clientX - area.left) / area.width, 0, 1), y: within((event.clientY - area.top) / area.height, 0, 1) };
  };
  ground.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    ground.focus({ preventScroll: true });
    ground.setPointerCapture(event.pointerId);
    const start = at(event);
    const target = event.target.closest("[data-box]");
    if (target) {
      chosen = Number(target.dataset.box);
      label = boxes[chosen].label;
      drag = { kind: event.target.dataset.handle || "move", start, before: [...boxes[chosen].box], all: JSON.stringify(boxes) };
    } else if (boxes.length < most) {
      const all = JSON.stringify(boxes);
      boxes.push({ label, box: [start.x, start.y, 0, 0] });
      chosen = boxes.length - 1;
      drag = { kind: "new", start, before: [start.x, start.y, 0, 0], all };
    }
    draw();
  });
  ground.addEventListener("pointermove", (event) => {
    if (!drag) return;
    boxes[chosen].box = moved(drag, at(event));
    draw(false);
  });
  // What was only pressed is no step to undo; a press on the ground makes no box.
  const end = () => {
    if (!drag) return;
    const made = boxes[chosen];
    if (made.box[2] < LEAST || made.box[3] < LEAST) {
      boxes.splice(chosen, 1);
      chosen = -1;
    } else made.box = made.box.map(round);
    if (JSON.stringify(boxes) !== drag.all) remember(drag.all);
    drag = null;
    draw();
  };
  ground.addEventListener("pointerup", end);
  ground.addEventListener("pointercancel", end);
  ground.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (chosen < 0) return;
    if (step) {
      event.preventDefault();
      remember();
      const [x, y, w, t] = boxes[chosen].box;
      const [dx, dy] = [step[0] / width, step[1] / height];
      boxes[chosen].box = (event.shiftKey
        ? [x, y, within(w + dx, LEAST, 1 - x), within(t + dy, LEAST, 1 - y)]
        : [within(x + dx, 0, 1 - w), within(y + dy, 0, 1 - t), w, t]).map(round);
      draw();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      discard(chosen);
    }
  });

  // In the middle: for those who do not drag.
  function add() {
    if (boxes.length >= most) return;
    remember();
    boxes.push({ label, box: [0.25, 0.25, 0.5, 0.5] });
    chosen = boxes.length - 1;
    draw();
    ground.focus({ preventScroll: true });
  }
  function discard(index) {
    remember();
    boxes.splice(index, 1);
    chosen = Math.min(index, boxes.length - 1);
    draw();
  }
  function swap(one, other) {
    if (other < 0 || other >= boxes.length) return;
    remember();
    [boxes[one], boxes[other]] = [boxes[other], boxes[one]];
    chosen = other;
    draw();
  }
  function draw(whole = true) {
    replace(ground, boxes.map((each, i) => {
      const [x, y, w, t] = each.box;
      return h("div", {
        class: `box tone-${categories.indexOf(each.label) % 6}${i === chosen ? " chosen" : ""}`, dataset: { box: i },
        style: { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * w}%`, height: `${100 * t}%` },
      }, h("span", {}, String(each.label)), i === chosen ? HANDLES.map((side) => h("i", { class: `handle ${side}`, dataset: { handle: side } })) : null);
    }), boxes.length ? null : h("p", { class: "invite" }, "Drag to make a box"));
    if (whole) rows();
  }
  function choose(index) {
    if (index === chosen) return;
    chosen = index;
    label = boxes[index].label;
    draw(false);
    [...list.children].forEach((each, i) => each.classList.toggle("chosen", i === chosen));
  }
  // The control that had the focus has it again, in the row of the chosen box.
  function rows() {
    const focused = [...list.querySelectorAll("select, button")].indexOf(document.activeElement);
    replace(list, boxes.map((each, i) => {
      const select = h("select", { "aria-label": `Class of box ${i + 1}`, onchange: () => { remember(); each.label = categories[select.selectedIndex]; label = each.label; draw(); } },
        categories.map((name) => h("option", { selected: name === each.label }, String(name))));
      return h("li", { class: i === chosen ? "chosen" : "", onclick: (event) => { if (!event.target.closest("button, select")) choose(i); }, onfocusin: () => choose(i) },
        select, iconButton("up", "Earlier", () => swap(i, i - 1)), iconButton("down", "Later", () => swap(i, i + 1)), iconButton("trash", "Remove", () => discard(i)));
    }));
    if (focused >= 0) {
      const row = list.children[chosen];
      (row ? row.children[focused % row.children.length] : ground).focus({ preventScroll: true });
    }
    note.textContent = `${boxes.length} of at most ${most} boxes`;
  }
  const note = h("span", { class: "status tiny soft", "aria-live": "polite" });
  const bar = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Boxes" }, iconButton("box", "Add a box (N)", add), iconButton("undo", "Undo (Ctrl+Z)", undo),
    iconButton("clear", "No boxes", () => { remember(); boxes = []; chosen = -1; draw(); }), note);
  draw();
  return {
    element: h("div", { class: "editor" }, bar, h("div", { class: "beside" }, host, list)),
    keys: { "ctrl+z": undo, n: add },
    values: async () => ({ boxes }),
  };
}

// The box after a drag from `start` to `now`, within the image.
export function moved(drag, now) {
  const [x, y, w, t] = drag.before;
  const dx = now.x - drag.start.x, dy = now.y - drag.start.y;
  if (drag.kind === "move") return [within(x + dx, 0, 1 - w), within(y + dy, 0, 1 - t), w, t];
  let [left, top, right, bottom] = [x, y, x + w, y + t];
  if (drag.kind === "new") {
    right = now.x;
    bottom = now.y;
  } else {
    if (drag.kind.includes("w")) left = within(x + dx, 0, right - LEAST);
    if (drag.kind.includes("e")) right = within(x + w + dx, left + LEAST, 1);
    if (drag.kind.includes("n")) top = within(y + dy, 0, bottom - LEAST);
    if (drag.kind.includes("s")) bottom = within(y + t + dy, top + LEAST, 1);
  }
  return [Math.min(left, right), Math.min(top, bottom), Math.abs(right - left), Math.abs(bottom - top)];
}
