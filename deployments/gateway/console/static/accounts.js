// Accounts, for operators: keys, plans, usage and acts, by the API of admins. The key is in its field and nowhere else.

import * as acts from "./acts.js";
import { json } from "./api.js";
import { say } from "./dom.js";
import * as keys from "./keys.js";
import * as plans from "./plans.js";
import { fault, told } from "./told.js";
import * as usage from "./usage.js";

const VIEWS = { keys, plans, usage, acts };
const place = (id) => document.getElementById(id);
const wanted = () => (location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "keys");
let open = false;

function link(kind, text) {
  place("link").className = kind;
  say("link", text);
}

function look() {
  const view = wanted();
  for (const part of document.querySelectorAll("[data-view]")) part.hidden = !open || part.dataset.view !== view;
  for (const to of document.querySelectorAll("[data-to]")) {
    if (to.dataset.to === view) to.setAttribute("aria-current", "page");
    else to.removeAttribute("aria-current");
  }
  document.title = `Moray ${view}`;
  place("key-form").hidden = open;
  place("lock").hidden = !open;
  fault(null);
  if (open) VIEWS[view].show();
}

function locked() {
  open = false;
  place("key").value = "";
  for (const view of Object.values(VIEWS)) view.clear();
  look();
}

async function enter(event) {
  event.preventDefault();
  fault(null);
  link("waits", "Opening");
  try {
    const { data } = await json("GET", "admin/plans");
    open = true;
    keys.plans(data.map((plan) => plan.id));
    plans.serve(data);
    link("lives", "Open");
    look();
    place("main").focus();
  } catch (error) {
    link("lost", "Not open");
    fault(error);
  }
}

place("key-form").addEventListener("submit", enter);
place("lock").addEventListener("click", () => {
  locked();
  link("waits", "No key yet");
  place("key").focus();
});
window.addEventListener("hashchange", look);
told.refused = (error) => {
  locked();
  link("lost", "Not open");
  fault(error);
};
for (const view of Object.values(VIEWS)) view.start();
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
look();
