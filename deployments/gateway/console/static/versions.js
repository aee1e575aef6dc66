// Every clip under the one that it was made from, newest first, with its picture.

import { file } from "./api.js";
import { element, settle } from "./dom.js";

const NAMES = { create: "new", edit: "edit", remix: "remix", extend: "extension" };
const pictures = new Map(); // by id; null while it is fetched, or where there is none

export function picture(job, again) {
  if (job.status !== "completed") return null;
  if (!pictures.has(job.id)) {
    pictures.set(job.id, null);
    file(`videos/${job.id}/content?variant=thumbnail`)
      .then(createImageBitmap)
      .then((found) => pictures.set(job.id, found) && again())
      .catch(() => {});
  }
  const found = pictures.get(job.id);
  if (found === null) return null;
  const made = element("canvas", { width: found.width, height: found.height, "aria-hidden": "true" });
  made.getContext("2d").drawImage(found, 0, 0);
  return made;
}

const stands = (job) => (job.status === "in_progress" ? `${job.progress} %` : job.status.replace("_", " "));

function version(job, all, chosen, again) {
  const below = all.filter((other) => other.moray.parent === job.id);
  const label = element("span", {}, element("b", {}, job.prompt), element("small", {}, `${NAMES[job.moray.task]}, ${stands(job)}`));
  const kind = job.status === "failed" ? "version failed" : "version";
  const current = job.id === chosen ? { "aria-current": "true" } : {};
  const button = element("button", { type: "button", class: kind, "data-id": job.id, ...current }, picture(job, again), label);
  const children = below.map((other) => version(other, all, chosen, again));
  return element("li", {}, button, children.length ? element("ul", {}, ...children) : null);
}

export function versions(jobs, chosen, again) {
  const all = [...jobs.values()];
  // One whose parent is deleted, or further back than was read, stands by itself.
  const roots = all.filter((job) => !jobs.has(job.moray.parent));
  const tree = document.getElementById("tree");
  const held = document.activeElement?.dataset?.id;
  settle(tree, roots.map((job) => version(job, all, chosen, again)));
  if (held && tree.contains(document.activeElement) === false) tree.querySelector(`[data-id="${held}"]`)?.focus();
}
