// The jobs of the service, kept current by one stream of events; a reload finds them again.

import { events, get, post } from "./api.js";

const jobs = new Map();
const listeners = new Set();
let close = null;
let timer = 0;

export const active = (job) => job.state === "queued" || job.state === "running";
export const all = () => [...jobs.values()].sort((one, other) => other.created - one.created);

export function watch(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(job, what) {
  for (const listener of listeners) listener(job, what);
}

function merge(job, what) {
  const before = jobs.get(job.id);
  jobs.set(job.id, { previews: (before && before.previews) || new Map(), ...before, ...job });
  tell(jobs.get(job.id), what);
}

export async function start() {
  const listed = await get("/v1/jobs?limit=50");
  for (const job of listed.jobs) if (active(job)) merge(job, "state");
  if (close) close();
  let lost = false;
  close = events("/v1/events", {
    state: (job) => merge(job, "state"),
    progress: (data) => merge({ id: data.job, ...without(data) }, "progress"),
    preview: (data) => {
      const job = jobs.get(data.job);
      if (!job) return;
      job.previews.set(data.index, data.image);
      tell(job, "preview");
    },
    image: (data) => {
      const job = jobs.get(data.job);
      if (!job) return;
      job.images = [...(job.images || []).filter((each) => each.index !== data.index), without(data)];
      tell(job, "image");
    },
    end: (job) => merge(job, "end"),
  }, () => {
    lost = true;
  });
  const check = async () => {
    if (!lost) return;
    lost = false;
    await refresh();
  };
  clearInterval(timer);
  timer = setInterval(check, 3000);
}

// After a lost stream: what ended meanwhile.
async function refresh() {
  const listed = await get("/v1/jobs?limit=50").catch(() => null);
  if (!listed) return;
  const known = new Map(listed.jobs.map((job) => [job.id, job]));
  for (const job of jobs.values()) {
    if (!active(job)) continue;
    const now = known.get(job.id) || { ...job, state: "failed", error: "the studio was restarted: this job is lost" };
    merge(now, active(now) ? "state" : "end");
  }
}

function without(data) {
  const { job, ...rest } = data;
  return rest;
}

export async function submit(request) {
  const job = await post("/v1/jobs", request);
  if (!jobs.has(job.id)) merge(job, "state");
  return job;
}

export const cancel = (job) => post(`/v1/jobs/${job.id}/cancel`);
export const forget = (id) => jobs.delete(id);
