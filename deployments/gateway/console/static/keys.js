// Keys: found, made, rotated, revoked. A secret is on the page once, until it is done with.

import { json } from "./api.js";
import { element, settle } from "./dom.js";
import { asking, count, fault, forget, pages, table, time } from "./told.js";
import { only } from "./usage.js";

const LIMIT = 50;
const place = (id) => document.getElementById(id);
const turn = pages("keys-pages", { back: "Newer", on: "Older" }, load);
let meant = null; // the key that a dialog is about

const now = () => Date.now() / 1000;
const state = (key) => (key.revoked_at !== null ? "revoked" : key.expires_at !== null && key.expires_at <= now() ? "expired" : "valid");
const kinds = { valid: "good", expired: "calm", revoked: "bad" };
const nothing = () => element("span", { class: "quiet" }, "–");
const whose = (key) => `${key.organization_id}/${key.project_id}`;

function ends(key) {
  if (key.revoked_at !== null) return element("span", {}, "revoked ", time(key.revoked_at));
  return key.expires_at === null ? element("span", { class: "quiet" }, "never") : time(key.expires_at);
}

function button(text, key, act) {
  const made = element("button", { type: "button", "aria-label": `${text}: ${key.name}`, "data-key": key.id }, text);
  made.addEventListener("click", () => act(key));
  return made;
}

function acts(key) {
  const valid = state(key) === "valid";
  return element(
    "span",
    { class: "acts" },
    button("Usage", key, (of) => only(of.id)),
    valid ? button("Rotate", key, (of) => ask("turning", of)) : null,
    key.revoked_at === null ? button("Revoke", key, (of) => ask("ending", of)) : null,
  );
}

const COLUMNS = [
  { name: "Name", of: (key) => element("span", {}, element("b", {}, key.name), element("code", {}, key.id)) },
  { name: "Project", of: whose },
  { name: "Plan", of: (key) => key.plan ?? nothing() },
  { name: "Scopes", of: (key) => key.scopes.join(", ") },
  { name: "State", of: (key) => element("span", { class: `badge ${kinds[state(key)]}` }, state(key)) },
  { name: "Made", of: (key) => time(key.created_at) },
  { name: "Ends", of: ends },
  { name: "Last used", of: (key) => (key.last_used_at === null ? nothing() : time(key.last_used_at)) },
  { name: "Do", of: acts },
];

function shown({ data, has_more }) {
  place("keys-rows").replaceChildren(...(data.length ? [table("Keys, the newest first", COLUMNS, data)] : []));
  turn.offer(has_more ? data.at(-1).id : null);
  if (!data.length) return turn.number() > 1 ? "No more keys." : "No key is found.";
  const from = (turn.number() - 1) * LIMIT;
  return `Keys ${count(from + 1)} to ${count(from + data.length)}${has_more ? ", and more" : ""}`;
}

function load() {
  const asked = { limit: LIMIT, search: place("keys-search").value.trim(), status: place("keys-status").value, after: turn.at() };
  const given = Object.entries(asked).filter(([, value]) => value);
  return asking("keys-state", () => json("GET", `admin/keys?${new URLSearchParams(given)}`), shown);
}

// A dialog that closes gives the focus back to where it was, which is drawn anew meanwhile.
function back(id) {
  if (document.activeElement === document.body) document.querySelector(`[data-key="${CSS.escape(id)}"]`)?.focus();
}

function ask(id, key = null) {
  meant = key;
  fault(null, `${id}-fault`);
  if (key !== null) place(`${id}-name`).textContent = `${key.name} (${key.id})`;
  place(id).showModal();
}

function tell(key) {
  place("secret-name").textContent = `${key.name} (${key.id})`;
  place("secret-value").value = key.value;
  place("secret").dataset.of = key.id;
  place("secret-copied").textContent = "";
  place("secret").showModal();
  place("secret-value").select();
}

// A page that came over plain HTTP from elsewhere may not write to the clipboard but by the selection.
async function copy() {
  place("secret-value").select();
  let copied = true;
  try {
    await navigator.clipboard.writeText(place("secret-value").value);
  } catch {
    copied = document.execCommand("copy");
  }
  place("secret-copied").textContent = copied ? "Copied." : "The browser does not let this page copy: it is selected, copy it by hand.";
}

// A dialog's form: what it does, and what follows. It stays open, and says why, where it is refused.
function form(id, work, then) {
  place(`${id}-form`).addEventListener("submit", async (event) => {
    event.preventDefault();
    const [send] = event.target.querySelectorAll("[type=submit]");
    send.disabled = true;
    fault(null, `${id}-fault`);
    try {
      const answer = await work();
      place(id).close();
      then?.(answer);
      await load();
      back(answer.id);
    } catch (error) {
      fault(error, `${id}-fault`);
    } finally {
      send.disabled = false;
    }
  });
}

function making() {
  const ends_s = place("making-ends").value;
  const scopes = [...place("making-scopes").querySelectorAll(":checked")].map((tick) => tick.value);
  if (!scopes.length) throw new Error("It may do nothing: tick what it may.");
  return json("POST", "admin/keys", {
    name: place("making-name").value.trim(),
    organization_id: place("making-org").value.trim(),
    project_id: place("making-project").value.trim(),
    plan: place("making-plan").value || null,
    scopes,
    expires_at: ends_s ? Math.floor(now()) + Number(ends_s) : null,
  });
}

export function plans(names) {
  const none = element("option", { value: "" }, "none: every tier, no limits");
  settle(place("making-plan"), [none, ...names.map((name) => element("option", { value: name }, name))]);
}

export function show() {
  turn.first();
  load();
}

export function clear() {
  forget("keys-state");
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  for (const id of ["keys-rows", "keys-pages", "keys-state"]) place(id).replaceChildren();
  place("keys-find").reset();
}

export function start() {
  place("keys-find").addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
  place("new-key").addEventListener("click", () => {
    place("making-form").reset();
    ask("making");
  });
  const path = () => `admin/keys/${encodeURIComponent(meant.id)}`;
  form("making", async () => making(), (key) => {
    turn.first();
    tell(key);
  });
  form("turning", () => json("POST", `${path()}/rotate`, { grace_seconds: Number(place("turning-grace").value) }), tell);
  form("ending", () => json("DELETE", path()));
  place("secret-copy").addEventListener("click", copy);
  place("secret").addEventListener("cancel", (event) => event.preventDefault()); // it is not shown again
  place("secret").addEventListener("close", () => {
    place("secret-value").value = "";
    back(place("secret").dataset.of);
  });
}
