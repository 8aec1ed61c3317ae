// Two images over each other with a slider, or side by side.

import { h, replace } from "./dom.js";
import { keep, recall } from "./store.js";

export function comparison(one, other, scale) {
  let beside = recall("beside", false);
  const host = h("div", { class: "comparison" });
  const imageOf = (image, wide = 1) => h("img", { src: image.url, alt: `seed ${image.seed}`, draggable: "false", class: scale >= 2 ? "pixels" : "", style: { width: `${one.width * scale * wide}px`, height: `${one.height * scale * wide}px` } });
  const named = () => h("p", { class: "named tiny soft" }, [one, other].map((each) => h("span", {}, `seed ${each.seed}`)));
  function draw() {
    const toggle = h("button", { type: "button", class: "quiet", onclick: () => { beside = !beside; keep("beside", beside); draw(); } }, beside ? "Slider" : "Side by side");
    if (beside) {
      replace(host, h("div", { class: "pair" }, imageOf(one, 0.5), imageOf(other, 0.5)), named(), toggle);
      return;
    }
    const range = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of the first image" });
    const over = h("div", { class: "over" }, imageOf(one));
    const rule = h("i", { class: "rule" });
    const set = () => { over.style.clipPath = `inset(0 ${100 - range.value}% 0 0)`; rule.style.left = `${range.value}%`; };
    range.addEventListener("input", set);
    set();
    replace(host, h("div", { class: "slider" }, imageOf(other), over, rule, range), named(), toggle);
  }
  draw();
  return host;
}
