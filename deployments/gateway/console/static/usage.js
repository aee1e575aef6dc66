// What was used, by whom, at which price and cost, over a chosen time.

import { json } from "./api.js";
import { bars } from "./bars.js";
import { comma } from "./comma.js";
import { element, settle } from "./dom.js";
import { asking, count, forget, hours, long, minute, money, pages, table } from "./told.js";

const LIMIT = 100;
const MOST = 10_000; // rows of one answer
const MOST_S = 400 * 86_400;
const WIDTHS = { "1m": 60, "1h": 3600, "1d": 86_400 };
const FIGURES = {
  price_usd: ["list price", money],
  cost_usd: ["cost", money],
  margin_usd: ["margin", money],
  requests: ["requests", count],
  input_tokens: ["tokens in", count],
  input_cached_tokens: ["of these cached", count],
  output_tokens: ["tokens out", count],
  video_seconds: ["video seconds", count],
};
const SHOWN = ["requests", "input_tokens", "input_cached_tokens", "output_tokens", "video_seconds", "price_usd", "cost_usd", "margin_usd"];
const GROUPS = {
  organization_id: "organisation",
  project_id: "project",
  api_key_id: "key",
  model: "model",
  tier_asked: "tier asked",
  tier_served: "tier served",
};
const place = (id) => document.getElementById(id);
const turn = pages("usage-pages", { back: "Before", on: "More" }, load);
let asked = null; // what is shown: its time, its groups, and its query

const seconds = (id) => Date.parse(`${place(id).value}Z`) / 1000;

function span() {
  const chosen = place("usage-span").value;
  const now_s = Math.floor(Date.now() / 1000);
  if (chosen !== "own") {
    const width_s = chosen === "3600" ? 60 : Number(chosen) > 86_400 * 7 ? 86_400 : 3600; // whole buckets, that of now too
    const end_s = Math.ceil((now_s + 1) / width_s) * width_s;
    return { start_s: end_s - Number(chosen), end_s };
  }
  const [start_s, end_s] = [seconds("usage-from"), seconds("usage-to")];
  if (!(start_s < end_s)) throw new Error("Give a time to begin, and a later one to end.");
  if (end_s - start_s > MOST_S) throw new Error("At most 400 days are shown: choose fewer.");
  return { start_s, end_s };
}

const width = ({ start_s, end_s }) => (end_s - start_s <= 3 * 3600 ? "1m" : end_s - start_s <= 8 * 86_400 ? "1h" : "1d");

function question() {
  const time = span();
  const groups = place("usage-by").value.split(" ");
  const query = [["start_time", time.start_s], ["end_time", time.end_s]];
  const filters = { organization_ids: "usage-org", project_ids: "usage-project", api_key_ids: "usage-key" };
  for (const [name, id] of Object.entries(filters)) if (place(id).value.trim()) query.push([name, place(id).value.trim()]);
  return { ...time, groups, query, only: query.length > 2 };
}

const get = ({ query }, pairs) => json("GET", `admin/usage?${new URLSearchParams([...query, ...pairs])}`);
const grouped = ({ groups }) => groups.map((name) => ["group_by", name]);

function name(row, group) {
  const [id, called] = [row[group], row.api_key_name];
  return group === "api_key_id" ? element("span", {}, element("b", {}, called ?? "unknown"), element("code", {}, id)) : id;
}

const figures = () => SHOWN.map((id) => ({ name: FIGURES[id][0], number: true, of: (row) => FIGURES[id][1](row[id]) }));

function rows(answer) {
  const columns = [...asked.groups.map((group) => ({ name: GROUPS[group], of: (row) => name(row, group) })), ...figures()];
  const caption = `By ${asked.groups.map((group) => GROUPS[group]).join(" and ")}, the dearest first`;
  place("usage-rows").replaceChildren(...(answer.data.length ? [table(caption, columns, answer.data)] : []));
  turn.offer(answer.next_page);
}

function totals({ total, unallocated }) {
  const cells = SHOWN.map((id) => element("div", {}, element("dt", {}, FIGURES[id][0]), element("dd", {}, FIGURES[id][1](total[id]))));
  settle(place("usage-total"), cells);
  const columns = [
    { name: "tier", of: (row) => row.tier_served },
    { name: "held", number: true, of: (row) => hours(row.gpu_seconds) },
    { name: "cost", number: true, of: (row) => money(row.cost_usd) },
  ];
  const caption = "Unallocated: GPUs held in hours in which nobody used their tier, beside the costs above";
  const none = element("p", { class: "quiet" }, "No GPU was held in an hour in which nobody used its tier.");
  const idle = unallocated.length ? table(caption, columns, unallocated) : none;
  place("usage-unallocated").replaceChildren(...(asked.only ? [] : [idle]));
}

function chart() {
  const { found, start_s, end_s } = asked;
  const width_s = WIDTHS[width(asked)];
  const [title, said] = FIGURES[place("usage-figure").value];
  const first_s = Math.floor(start_s / width_s) * width_s;
  const starts = Array.from({ length: Math.ceil((end_s - first_s) / width_s) }, (_, index) => first_s + index * width_s);
  const at = new Map(found.map((row) => [row.start_time, row]));
  const values = starts.map((start) => at.get(start)?.[place("usage-figure").value] ?? 0);
  const times = starts.map((start) => (width_s === 86_400 ? minute(start).slice(0, 10) : minute(start)));
  place("usage-bars").replaceChildren(...bars(title, values, times, said));
  const columns = [{ name: "from", of: (row) => minute(row.start_time) }, ...figures()];
  place("usage-buckets").replaceChildren(found.length ? table("Where anything was used", columns, found) : "Nothing was used.");
}

async function refusals() {
  const state = await (await fetch("state")).json();
  const found = Object.entries(state.refusals.by_limit);
  const columns = [
    { name: "limit", of: ([limit]) => limit.replaceAll("_", " ") },
    { name: "requests refused", number: true, of: ([, number]) => count(number) },
  ];
  const since = `by this gateway since it began, ${long(state.refusals.since_s)} ago; Prometheus has moray_limit_refusals_total over time`;
  const none = element("p", { class: "quiet" }, `Nothing was refused ${since}.`);
  place("usage-refusals").replaceChildren(found.length ? table(`Requests refused ${since}`, columns, found) : none);
}

async function answers() {
  if (turn.number() === 1) asked = question();
  const page = turn.at();
  const [answer, over] = await Promise.all([
    get(asked, [...grouped(asked), ["limit", LIMIT], ...(page === null ? [] : [["page", page]])]),
    page === null ? get(asked, [["bucket_width", width(asked)], ["limit", MOST]]) : null,
    refusals(),
  ]);
  return { answer, over };
}

function shown({ answer, over }) {
  place("usage-shown").hidden = false;
  if (over !== null) {
    asked.found = over.data;
    totals(answer);
    chart();
  }
  rows(answer);
  return `${minute(asked.start_s)} to ${minute(asked.end_s)}${answer.data.length ? "" : ": nothing was used"}`;
}

function load() {
  return asking("usage-state", answers, shown);
}

// Every row of what the form asks, in as many pages as it takes.
async function file() {
  const wish = question();
  const found = [];
  let page = { next_page: "0" };
  while (page.next_page !== null) {
    page = await get(wish, [...grouped(wish), ["limit", MOST], ["page", page.next_page]]);
    found.push(...page.data);
  }
  const named = wish.groups.flatMap((group) => (group === "api_key_id" ? [group, "api_key_name"] : [group]));
  const idle = page.unallocated.map((row) => ({ ...row, unallocated: "yes", margin_usd: -row.cost_usd }));
  const columns = [...named, ...SHOWN.slice(0, -2), "gpu_seconds", "cost_usd", "margin_usd", "unallocated"];
  return { wish, text: comma(columns, [...found, ...idle]) };
}

function save({ wish, text }) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const day = (s) => minute(s).slice(0, 10);
  element("a", { href: url, download: `usage-${day(wish.start_s)}-${day(wish.end_s)}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  return "Downloaded.";
}

// Of one key, as another part asks.
export function only(key) {
  place("usage-form").reset();
  own();
  place("usage-key").value = key;
  place("usage-by").value = "model";
  location.hash = "usage";
}

function own() {
  for (const field of document.querySelectorAll(".own")) field.hidden = place("usage-span").value !== "own";
}

export function show() {
  turn.first();
  load();
}

export function clear() {
  forget("usage-state");
  asked = null;
  place("usage-shown").hidden = true;
  for (const id of ["usage-rows", "usage-total", "usage-bars", "usage-buckets", "usage-unallocated", "usage-pages", "usage-state"]) {
    place(id).replaceChildren();
  }
  place("usage-form").reset();
  own();
}

export function start() {
  const choices = Object.entries(FIGURES).map(([id, [title]]) => element("option", { value: id }, title));
  settle(place("usage-figure"), choices);
  place("usage-figure").addEventListener("change", () => asked && chart());
  place("usage-span").addEventListener("change", own);
  place("usage-csv").addEventListener("click", () => asking("usage-state", file, save));
  place("usage-form").addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
}
