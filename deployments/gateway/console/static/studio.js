// The studio: clips are made, watched while they render, marked, and made anew. What is here is what the API says.

import { file, json, key } from "./api.js";
import { age, element, say, settle } from "./dom.js";
import * as player from "./player.js";
import * as storyboards from "./storyboards.js";
import { versions } from "./versions.js";

const AGAIN_MS = 1000;
const LIST = "videos?limit=100";
const NOTES = {
  create: "A clip of its own.",
  edit: "Only what is marked in time and in the picture is made anew; mark nothing for all of it.",
  remix: "The whole clip again, by another prompt; strength says how much of it is drawn anew.",
  extend: "The clip goes on behind its last picture.",
};
const STAGES = { queued: "Queued", rendering: "Rendering", decoding: "Decoding", encoding: "Encoding", signing: "Signing", storing: "Storing" };
const place = (id) => document.getElementById(id);
const task = () => document.querySelector("input[name=task]:checked").value;
let jobs = new Map();
let model = null;
let chosen = null;
let shown = null; // the id whose file is on the frame, and its URL
let waiting = null;
let turns = 0;

function fault(error) {
  place("fault").hidden = error === null;
  say("fault", error?.message ?? "");
}

function link(kind, text) {
  place("link").className = kind;
  say("link", text);
}

const choices = (values, name = (value) => value) => values.map((value) => element("option", { value }, name(value)));

function offered(facts) {
  const { takes } = facts;
  settle(place("size"), choices(facts.sizes));
  settle(place("seconds"), choices(facts.seconds.map(String)));
  settle(place("style"), [element("option", { value: "" }, "none"), ...choices(facts.styles)]);
  place("styles").classList.toggle("absent", facts.styles.length === 0);
  place("modes").classList.toggle("absent", takes !== null && !takes.fast);
}

async function open(event) {
  event.preventDefault();
  fault(null);
  try {
    const { data } = await json("GET", "models");
    model = data.find((each) => each.tier === "video") ?? null;
    if (model === null) throw new Error("model: this family serves no video; add a video part to the family file");
    offered(model);
    jobs = new Map();
    say("none", "");
    storyboards.open(model, data);
    choose(null);
    await follow();
  } catch (error) {
    model = null;
    storyboards.open(null, []);
    link("lost", "Not open");
    fault(error);
  }
  tasks();
}

const unfinished = (job) => job.status === "queued" || job.status === "in_progress";

async function follow() {
  clearTimeout(waiting);
  const turn = ++turns;
  let pause = AGAIN_MS;
  try {
    const page = await json("GET", LIST);
    if (turn !== turns) return; // a later look is under way
    jobs = new Map(page.data.map((job) => [job.id, job]));
    link("lives", "Open");
    say("none", jobs.size ? "" : "There is none yet: make one.");
    await show();
  } catch (error) {
    if (turn !== turns) return;
    if (error.status === 401) {
      link("lost", "Not open");
      fault(error);
      return;
    }
    link("lost", "The gateway does not answer; trying again");
    pause *= 2;
  }
  if (turn === turns && ([...jobs.values()].some(unfinished) || pause > AGAIN_MS)) waiting = setTimeout(follow, pause);
}

function choose(id) {
  chosen = id;
  player.clear("Your clip will be here.");
  if (shown !== null) URL.revokeObjectURL(shown.url);
  shown = null;
  for (const field of ["from", "to"]) place(field).value = "";
  fault(null);
  return show();
}

async function show() {
  const job = jobs.get(chosen);
  versions(jobs, chosen, show);
  tasks();
  place("actions").hidden = job === undefined;
  place("doing").hidden = job === undefined || !unfinished(job);
  say("state", job === undefined ? "" : stands(job));
  say("about", job === undefined ? "" : about(job));
  if (job === undefined) return;
  place("download").hidden = shown?.id !== job.id || shown.url === "";
  if (unfinished(job)) progress(job);
  if (job.status === "failed") {
    place("blank").textContent = "This clip was not made.";
    fault(new Error(job.error?.message ?? "no reason is known"));
  }
  if (job.status === "completed" && shown?.id !== job.id) await load(job);
}

async function load(job) {
  shown = { id: job.id, url: "" };
  try {
    const url = URL.createObjectURL(await file(`videos/${job.id}/content`));
    if (chosen !== job.id) return URL.revokeObjectURL(url);
    shown.url = url;
    player.show(url, job);
    Object.assign(place("download"), { href: url, download: `${job.id}.mp4`, hidden: false });
    place("to").max = place("from").max = job.moray.frames / job.moray.fps;
  } catch (error) {
    player.clear("The file of this clip cannot be shown.");
    fault(error);
  }
}

const stands = (job) => (unfinished(job) ? STAGES[job.moray.stage] : job.status === "failed" ? "Failed" : "Ready");

function progress(job) {
  const { queue_position: position, estimated_start_at: starts, estimated_completed_at: ends } = job.moray;
  const soon = (at) => {
    const left = at - Date.now() / 1000;
    return left < 1 ? "a moment" : `about ${age(left)}`;
  };
  place("bar").value = job.progress;
  place("blank").textContent = `${stands(job)} …`;
  const parts = [`${job.progress} % of the steps`];
  if (position) parts.push(position === 1 ? "the next to begin" : `${position - 1} before it`);
  if (starts !== null) parts.push(`begins in ${soon(starts)}`);
  if (ends !== null) parts.push(`ready in ${soon(ends)}`);
  say("left", parts.join("; "));
}

function about(job) {
  const { edit, style, seed, frames, fps, signed, steps } = job.moray;
  const parts = [job.prompt, job.size, `${frames} frames at ${fps}/s`, `${steps} steps`, `seed ${seed}`];
  if (style) parts.push(`style ${style}`);
  if (edit?.region) parts.push(`region ${edit.region.width}x${edit.region.height} at ${edit.region.x}, ${edit.region.y}`);
  if (edit?.time_range) parts.push(`${edit.time_range.start_seconds} to ${edit.time_range.end_seconds} s`);
  if (edit) parts.push(edit.mode);
  if (signed !== null) parts.push(signed ? "signed" : "not signed");
  return parts.join(" · ");
}

// What can be made of the chosen clip, and the fields that it needs.
function tasks() {
  const ready = jobs.get(chosen)?.status === "completed";
  const able = model?.takes?.tasks ?? Object.keys(NOTES);
  for (const radio of document.querySelectorAll("input[name=task]"))
    radio.disabled = !able.includes(radio.value) || (radio.value !== "create" && !ready);
  if (document.querySelector("input[name=task]:checked").disabled) document.querySelector("input[value=create]").checked = true;
  const now = task();
  for (const field of document.querySelectorAll("[data-of]")) field.hidden = !field.dataset.of.split(" ").includes(now);
  for (const field of document.querySelectorAll("fieldset[data-of]")) field.disabled = field.hidden;
  place("submit").disabled = model === null;
  say("seconds-name", now === "extend" ? "Seconds more" : "Seconds");
  say("task-note", ready || now === "create" ? NOTES[now] : "");
}

function wish() {
  const base = { prompt: place("prompt").value };
  const seed = place("seed").value;
  if (seed !== "") base.seed = seed;
  if (place("style").value) base.style = place("style").value;
  const seconds = Number(place("seconds").value);
  switch (task()) {
    case "edit":
      return ["videos/edits", { ...base, video: { id: chosen }, ...marked() }];
    case "remix":
      return [`videos/${chosen}/remix`, { ...base, strength: Number(place("strength").value) }];
    case "extend":
      return ["videos/extensions", { ...base, video: { id: chosen }, seconds }];
    default:
      return ["videos", { ...base, model: model.id, size: place("size").value, seconds: String(seconds) }];
  }
}

function marked() {
  const [from, to] = [place("from").value, place("to").value];
  const found = { edit_mode: place("mode").value };
  const region = player.region();
  if (region !== null) found.region = region;
  if (from !== "" || to !== "") found.time_range = { start_seconds: Number(from), ...(to === "" ? {} : { end_seconds: Number(to) }) };
  return found;
}

async function make(event) {
  event.preventDefault();
  fault(null);
  place("submit").disabled = true;
  try {
    const job = await json("POST", ...wish());
    jobs = new Map([[job.id, job], ...jobs]);
    await choose(job.id);
    await follow();
  } catch (error) {
    fault(error);
  } finally {
    tasks();
  }
}

async function remove() {
  if (!confirm("Delete this clip and its file? What was made from it stays.")) return;
  try {
    await json("DELETE", `videos/${chosen}`);
    jobs.delete(chosen);
    await choose(null);
    await follow();
  } catch (error) {
    fault(error);
  }
}

player.start(() => {
  document.querySelector("input[value=edit]").checked = true;
  tasks();
});
place("key-form").addEventListener("submit", open);
place("make").addEventListener("submit", make);
place("make").addEventListener("change", tasks);
place("delete").addEventListener("click", remove);
place("unmark").addEventListener("click", () => player.mark(null));
place("from-here").addEventListener("click", () => (place("from").value = player.now()));
place("to-here").addEventListener("click", () => (place("to").value = player.now()));
place("tree").addEventListener("click", (event) => {
  const button = event.target.closest("[data-id]");
  if (button) choose(button.dataset.id);
});
// One page for clips and storyboards, so that the key is given once.
function view() {
  const now = ["#storyboard", "#board-maker", "#boards"].includes(location.hash) ? "storyboards" : "clips";
  for (const section of document.querySelectorAll("[data-view]")) section.hidden = section.dataset.view !== now;
  if (location.hash) document.querySelector(location.hash)?.scrollIntoView();
}

storyboards.start(fault);
addEventListener("hashchange", view);
view();
if (key()) place("key").value = ""; // a browser that kept it over a reload
tasks();
