// Elements without markup in strings: text from models and files is never parsed as HTML.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "value" || name === "checked" || name === "htmlFor") element[name] = value;
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat());
  return element;
}

const PATHS = {
  make: "M12 3l1.9 5.1L19 10l-5.1 1.9L12 17l-1.9-5.1L5 10l5.1-1.9zM19 16l.8 2.2L22 19l-2.2.8L19 22l-.8-2.2L16 19l2.2-.8z",
  train: "M3 20h18M5 16c3 0 3-10 6-10s3 6 8 7",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  evaluate: "M5 21V10M12 21V4M19 21v-7",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z",
  help: "M9.2 9a3 3 0 1 1 4 3c-.9.4-1.2 1-1.2 2M12 17.5v.1M12 21a9 9 0 1 1 0-18 9 9 0 0 1 0 18z",
  close: "M6 6l12 12M18 6L6 18",
  download: "M12 4v11m0 0l-4-4m4 4l4-4M5 20h14",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  undo: "M8 5L4 9l4 4M4 9h10a6 6 0 0 1 0 12h-4",
  redo: "M16 5l4 4-4 4M20 9H10a6 6 0 0 0 0 12h4",
  brush: "M20 4c-5 2-9 6-11 10m0 0c-3-1-5 1-5 6 5 0 7-2 6-5",
  eraser: "M9 20h11M4 15l9-10 7 6-8 9H8z",
  fill: "M11 3l8 8-8 8-8-8zM3 11h16M20 15c1.500 2 2 3 2 4a2 2 0 0 1-4 0c0-1 .5-2 2-4",
  line: "M5 19L19 5",
  invert: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  box: "M4 6h16v12H4z",
  clear: "M4 4l16 16M4 20L20 4",
  up: "M12 19V5m0 0l-6 6m6-6l6 6",
  down: "M12 5v14m0 0l-6-6m6 6l6-6",
  zoomin: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM21 21l-5-5M8 11h6M11 8v6",
  zoomout: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM21 21l-5-5M8 11h6",
  compare: "M12 3v18M4 6h8v12H4zM15 6h5v12h-5",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 4v6M6 14v6",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9v.1",
  stop: "M7 7h10v10H7z",
  play: "M8 5l11 7-11 7z",
  dice: "M7 4h10a3 3 0 0 1 3 3v10a3 3 0 0 1-3 3H7a3 3 0 0 1-3-3V7a3 3 0 0 1 3-3zM8.500 8.300v.4M15.500 15.300v.4M15.500 8.300v.4M8.500 15.300v.4M12 11.800v.4",
  lock: "M6 11h12v9H6zM9 11V8a3 3 0 0 1 6 0v3",
  folder: "M3 6h7l2 2h9v11H3z",
};

export function icon(name) {
  const path = svg("path", { d: PATHS[name] });
  return svg(
    "svg",
    { viewBox: "0 0 24 24", width: 18, height: 18, fill: "none", stroke: "currentColor", "stroke-width": 1.7,
      "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" },
    path,
  );
}

export function iconButton(name, label, onclick, attributes = {}) {
  const classes = `icon quiet ${attributes.class || ""}`;
  return h("button", { type: "button", title: label, "aria-label": label, onclick, ...attributes, class: classes }, icon(name));
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

export function emptyState(title, text, ...more) {
  return h("div", { class: "empty" }, h("h2", {}, title), h("p", {}, text), ...more);
}

// A message at the corner; errors stay until they are closed.
export function say(text, kind = "info") {
  const host = document.querySelector(".messages");
  if ([...host.children].some((each) => each.dataset.text === text)) return;
  const close = () => note.remove();
  const note = h("div", { class: `message ${kind}`, dataset: { text }, role: kind === "error" ? "alert" : null },
    h("p", {}, text), iconButton("close", "Close", close));
  host.append(note);
  if (kind !== "error") setTimeout(close, 5000);
}

export function typing() {
  const at = document.activeElement;
  return Boolean(at && at.matches("input:not([type=checkbox], [type=range]), textarea, select"));
}
