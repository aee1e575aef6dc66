// What each plan allows, and how much of it a project has taken.

import { json } from "./api.js";
import { element } from "./dom.js";
import { asking, count, forget, long, money, pages } from "./told.js";

const LIMIT = 20;
const place = (id) => document.getElementById(id);
const UNITS = { gpu_s: "GPU-seconds", video_s: "video seconds", gpu: "GPU", usd: "USD" };
const words = (name) => name.replace(/^(gpu_s|video_s)(?=_)|usd|gpu/g, (unit) => UNITS[unit]).replaceAll("_", " ");
const turn = pages("projects-pages", { back: "Before", on: "More" }, load);
let chosen = null;

function said(value) {
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" ? count(value) : String(value);
}

function card({ id, object, ...plan }) {
  const given = Object.entries(plan).filter(([, value]) => value !== null);
  const rows = given.flatMap(([name, value]) => [element("dt", {}, words(name)), element("dd", {}, said(value))]);
  return element("article", { class: "card", "data-plan": id }, element("h3", {}, id), element("dl", {}, ...rows));
}

export function serve(data) {
  const none = element("p", { class: "quiet" }, "The family file has no plans: every key may use every tier.");
  place("plans-list").replaceChildren(...(data.length ? data.map(card) : [none]));
}

function project(one) {
  const name = `${one.organization_id}/${one.project_id}`;
  const keys = `${count(one.keys)} key${one.keys === 1 ? "" : "s"}, ${count(one.valid_keys)} not revoked`;
  const made = element("button", { type: "button", "data-id": one.id }, element("b", {}, name), element("small", {}, keys));
  made.addEventListener("click", () => choose(one));
  return element("li", {}, made);
}

function shown({ data, has_more, last_id }) {
  place("projects-list").replaceChildren(...data.map(project));
  turn.offer(has_more ? last_id : null);
  mark();
  if (data.length === 1 && chosen === null) choose(data[0]);
  return data.length ? "Choose a project to see what it has taken." : "No project is found: projects exist with their first key.";
}

function mark() {
  for (const button of place("projects-list").querySelectorAll("button")) {
    if (button.dataset.id === chosen?.id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function load() {
  const asked = { limit: LIMIT, search: place("projects-search").value.trim(), after: turn.at() };
  const given = Object.entries(asked).filter(([, value]) => value);
  return asking("projects-state", () => json("GET", `admin/projects?${new URLSearchParams(given)}`), shown);
}

function choose(one) {
  chosen = one;
  mark();
  const query = new URLSearchParams({ organization_id: one.organization_id, project_id: one.project_id });
  return asking("projects-state", () => json("GET", `admin/limits?${query}`), taken);
}

function bar(limit) {
  const figure = limit.limit.startsWith("usd") ? money : count;
  const back = limit.resets_in_s ? `; all of it is back in ${long(limit.resets_in_s)}` : "";
  const label = words(limit.limit);
  const full = limit.taken >= limit.amount ? " full" : "";
  return element(
    "div",
    { class: `limit${full}`, "data-limit": limit.limit },
    element("span", {}, label),
    element("progress", { max: limit.amount, value: limit.taken, "aria-label": label }),
    element("span", { class: "quiet" }, `${figure(limit.taken)} of ${figure(limit.amount)} taken${back}`),
  );
}

function standing({ plan, limits }) {
  const name = plan === null ? "Keys without a plan" : `Plan ${plan}`;
  const none = element("p", { class: "quiet" }, "No limits.");
  return element("article", { class: "card" }, element("h3", {}, name), ...(limits.length ? limits.map(bar) : [none]));
}

function taken({ data }) {
  const again = element("button", { type: "button" }, "Look again");
  again.addEventListener("click", () => choose(chosen));
  const title = element("h3", {}, `${chosen.organization_id}/${chosen.project_id}`);
  place("taken").replaceChildren(element("div", { class: "title" }, title, again), element("div", { class: "cards" }, ...data.map(standing)));
  return "What requests under way have put aside counts as taken.";
}

export function show() {
  turn.first();
  load();
}

export function clear() {
  forget("projects-state");
  chosen = null;
  for (const id of ["plans-list", "projects-list", "projects-pages", "projects-state", "taken"]) place(id).replaceChildren();
  place("projects-find").reset();
}

export function start() {
  place("projects-find").addEventListener("submit", (event) => {
    event.preventDefault();
    chosen = null;
    place("taken").replaceChildren();
    show();
  });
}
