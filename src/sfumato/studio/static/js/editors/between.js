// Two images of the gallery to interpolate between: their seeds and prompts.

import { h, replace } from "../dom.js";

const seedOf = (image) => image.seed;
const promptOf = (image) => image.settings && image.settings.request && image.settings.request.prompt;

// `images` are those of the gallery; `chosen({ seeds, prompt })` fills the form.
export function betweenEditor(images, model, chosen) {
  const able = images.filter((each) => each.settings && each.settings.request && each.settings.request.task === "sample" && each.model === model.id).slice(0, 60);
  const ends = [able[1] || null, able[0] || null];
  let open = null;
  const element = h("div", { class: "between" });

  function tell() {
    if (!ends[0] || !ends[1]) return;
    const prompts = ends.map(promptOf);
    chosen({ seeds: ends.map(seedOf), prompt: prompts.every(Boolean) ? prompts : null });
  }
  function end(i) {
    const image = ends[i];
    const label = i ? "To" : "From";
    return h("button", { type: "button", class: "endpoint", "aria-expanded": String(open === i), "aria-label": `${label}: ${image ? `seed ${image.seed}` : "choose an image"}`, onclick: () => { open = open === i ? null : i; draw(); } },
      h("span", { class: "tiny soft" }, label), image ? h("img", { src: image.url, alt: "", class: image.width <= 160 ? "pixels" : "" }) : h("i", {}, "choose"), h("span", { class: "tiny clip" }, image ? promptOf(image) || `seed ${image.seed}` : ""));
  }
  function draw() {
    if (able.length < 2) {
      replace(element, h("p", { class: "soft" }, "Generate two images with this model first: an interpolation goes from one to the other. Or type seeds and prompts at the left."));
      return;
    }
    const picks = open === null ? null : h("div", { class: "picks", role: "group", "aria-label": "Images of the gallery" }, able.map((each) => h("button", { type: "button", class: "pick", "aria-pressed": String(ends[open] === each), "aria-label": `seed ${each.seed}`, onclick: () => { ends[open] = each; open = null; draw(); tell(); } }, h("img", { src: each.url, alt: "", class: each.width <= 160 ? "pixels" : "" }))));
    replace(element, h("div", { class: "ends" }, end(0), h("span", { class: "arrow soft", "aria-hidden": "true" }, "⟶"), end(1)), picks);
  }
  draw();
  return { element, values: async () => ({}), start: tell };
}
