// The log of acts, the newest first.

import { json } from "./api.js";
import { element } from "./dom.js";
import { asking, count, forget, pages, table, time } from "./told.js";

const LIMIT = 50;
const CHANGES = "keys.create,keys.rotate,keys.revoke";
const WHICH = { changes: { act: CHANGES }, refused: { refused: "true" }, all: {} };
const place = (id) => document.getElementById(id);
const turn = pages("acts-pages", { back: "Newer", on: "Older" }, load);
const second = (s) => new Date(s * 1000).toISOString().slice(0, 19).replace("T", " ");
const outcome = ({ outcome: said }) => element("span", { class: `badge ${said === "ok" ? "good" : "bad"}` }, said);

const COLUMNS = [
  { name: "When", of: (act) => time(act.at, second(act.at)) },
  { name: "Who", of: (act) => element("code", {}, act.actor) },
  { name: "From", of: (act) => act.from },
  { name: "Act", of: (act) => act.act },
  { name: "Upon", of: (act) => (act.subject ? element("code", {}, act.subject) : "–") },
  { name: "Outcome", of: outcome },
];

function shown({ data, has_more }) {
  const rows = data.toReversed();
  place("acts-rows").replaceChildren(...(rows.length ? [table("Acts, the newest first", COLUMNS, rows)] : []));
  turn.offer(has_more ? data[0].id : null);
  const from = (turn.number() - 1) * LIMIT;
  return rows.length ? `Acts ${count(from + 1)} to ${count(from + rows.length)}${has_more ? ", and older ones" : ""}` : "None yet.";
}

function load() {
  const query = new URLSearchParams({ limit: LIMIT, ...WHICH[place("acts-which").value] });
  if (turn.at() !== null) query.set("before", turn.at());
  return asking("acts-state", () => json("GET", `admin/acts?${query}`), shown);
}

export function show() {
  turn.first();
  load();
}

export function clear() {
  forget("acts-state");
  for (const id of ["acts-rows", "acts-pages", "acts-state"]) place(id).replaceChildren();
}

export function start() {
  place("acts-find").addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
}
