// A place for an image: drop one, choose a file, or take one of the gallery.

import { upload } from "../api.js";
import { h, icon, replace, say } from "../dom.js";

const READABLE = "image/png,image/jpeg,image/webp,image/bmp,image/tiff,image/gif";

// `input` of a file: { ref, url, width, height, settings }.
export async function inputOf(blob) {
  const sent = await upload(blob, blob.name || "image.png");
  return { ref: `upload:${sent.id}`, url: sent.url, width: sent.width, height: sent.height, settings: sent.settings };
}

// `small`: one line instead of a large place.
export function imageSlot({ title, current, changed, small = false }) {
  const file = h("input", { type: "file", accept: READABLE, class: "visually-hidden", "aria-label": title });
  const body = h("div", {});
  const element = h("div", { class: `slot${small ? " small" : ""}` }, file, body);
  let input = current || null;

  const take = async (blob) => {
    try {
      set(await inputOf(blob));
    } catch (error) {
      say(error.message, "error");
    }
  };
  function set(next, quiet = false) {
    input = next;
    draw();
    if (!quiet) changed(input);
  }
  function draw() {
    const choose = h("button", { type: "button", onclick: () => file.click() }, icon("image"), input ? "Another image" : "Choose an image");
    const empty = h("div", { class: "drop" }, h("p", {}, title), choose, h("p", { class: "hint" }, "or drop one here, or take one of the gallery"));
    const filled = input && h("div", { class: "filled" }, h("img", { src: input.url, alt: title, class: input.width < 200 ? "pixels" : "" }),
      h("div", {}, h("span", { class: "tiny soft" }, `${input.width} × ${input.height}`), choose,
        h("button", { type: "button", class: "quiet", onclick: () => set(null) }, "Remove")));
    replace(body, filled || empty);
  }
  file.addEventListener("change", () => { if (file.files[0]) take(file.files[0]); file.value = ""; });
  element.addEventListener("dragover", (event) => { event.preventDefault(); element.classList.add("over"); });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    element.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  draw();
  return { element, get: () => input, set };
}
