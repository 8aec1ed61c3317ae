// Every model below the studio's folders: what it takes, its size, a preview, where it comes from.

import { get, query } from "./api.js";
import { emptyState, h, replace } from "./dom.js";
import { plural, short } from "./format.js";
import { TASK_TITLES } from "./form.js";
import { keep, recall } from "./store.js";

export async function modelsPage(host) {
  await get("/studio/state");
  const [listed, runs] = await Promise.all([get("/v1/models"), get("/studio/runs")]);
  const covers = new Map(runs.runs.map((run) => [run.path, run]));
  const known = new Set(listed.data.map((each) => each.path));
  const models = [...listed.data, ...runs.runs.filter((run) => run.has_model && run.kind === "autoencoder" && !known.has(run.path)).map(firstStage)];
  const head = h("header", {}, h("div", {}, h("h1", {}, "Models"), h("p", {}, models.length ? counted(models, runs.folders) : "")));
  const body = models.length ? h("div", { class: "cards" }, models.map((model) => card(model, covers.get(model.path))))
    : emptyState("No models here", "Models appear as soon as a training below the studio's folders has saved its first one.", h("a", { class: "button", href: "#/train" }, "Train one"));
  replace(host, h("div", { class: "page" }, head, body));
  return { dispose: () => {} };
}

// Models of the folders are counted apart from those of the package.
function counted(models, folders) {
  const shipped = models.filter((model) => model.shipped).map((model) => model.id);
  const own = `${plural(models.length - shipped.length, "model")} in ${folders.join(", ")}`;
  return shipped.length ? `${own}; ${shipped.join(" and ")} ${shipped.length === 1 ? "is" : "are"} part of the package` : own;
}

// An autoencoder alone: the first stage of other models.
const firstStage = (run) => ({ id: run.name, path: run.path, takes: ["images"], tasks: [], image_size: run.image_size, about: { autoencoder: { steps: run.step, images: run.images, hours: (run.seconds || 0) / 3600 } } });

function card(model, run) {
  const cover = model.shipped ? h("img", { src: `/studio/shipped/${model.shipped}`, alt: `Samples of ${model.id}`, class: "pixels", loading: "lazy" }) : run && run.previews && run.previews.length ? h("img", { src: query("/studio/file", { path: run.previews[run.previews.length - 1].path }), alt: `Latest preview of ${model.id}`, class: "pixels", loading: "lazy" }) : h("span", { class: "tiny" }, "no preview");
  const origin = Object.entries(model.about || {}).map(([stage, facts]) => (facts && typeof facts === "object" ? [stage, facts] : null)).filter(Boolean);
  return h("article", { class: "card" }, h("div", { class: "cover" }, cover), h("div", { class: "body" },
    h("div", {}, h("h2", {}, model.id), h("p", { class: "tiny soft clip", title: model.path }, model.description || model.path)),
    h("div", { class: "pills" }, (model.takes.length ? model.takes : ["unconditional"]).map((each) => h("span", { class: "pill" }, each.replaceAll("_", " "))), model.tiny_decoder ? h("span", { class: "pill plain" }, "tiny decoder") : null, model.loaded ? h("span", { class: "pill plain" }, "loaded") : null),
    h("dl", { class: "pairs" }, model.image_size ? row("images", `${model.image_size[1]} × ${model.image_size[0]} px${model.factor ? `, f = ${model.factor}` : ""}`) : null, row("tasks", model.tasks.length === 0 ? "compresses images: the first stage of others" : model.tasks.map((each) => (TASK_TITLES[each] || each).toLowerCase()).join(", ")),
      model.class_count ? row("classes", plural(model.class_count, "class", "classes")) : null, origin.map(([stage, facts]) => row(stage, described(facts)))),
    h("div", { class: "acts" }, model.tasks.length ? h("a", { class: "button", href: "#/make", onclick: () => keep("form", { ...recall("form", {}), model: model.id, task: model.default_task }) }, "Make images") : null, run ? h("a", { class: "button quiet", href: `#/train/${encodeURIComponent(run.path)}` }, "Its training") : null)));
}

const row = (key, value) => [h("dt", {}, key), h("dd", {}, value)];

function described(facts) {
  const data = facts.data && (facts.data.path || (facts.data.kind === "toy" ? "the toy world" : facts.data.kind));
  return [facts.steps !== undefined ? `${short(facts.steps)} steps` : null, facts.images !== undefined ? `${short(facts.images)} images` : null, facts.hours ? `${facts.hours < 1 ? `${Math.round(facts.hours * 60)} min` : `${facts.hours.toFixed(1)} h`}` : null, data ? `on ${data}` : null].filter(Boolean).join(", ");
}
