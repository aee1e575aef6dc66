// The link to the gateway: each second a snapshot. Where it breaks, the page says so, keeps what it has, and tries again.

import { budget, cellCards } from "./cells.js";
import * as chat from "./chat.js";
import { decisions } from "./decisions.js";
import { age, say, settle } from "./dom.js";
import { tierCards } from "./tiers.js";

const LOST_MS = 3500; // without a word; a stream that ends is followed by the next one sooner
const AWAY_S = 5; // the control loop speaks each second
const AGAIN_MS = 2000;
const begun = performance.now();
let heard = null;

function show(state) {
  heard = performance.now();
  say("family", state.family);
  document.title = `Moray ${state.family}`;
  settle(document.getElementById("budget"), budget(state));
  settle(document.getElementById("tier-list"), tierCards(state));
  settle(document.getElementById("cell-list"), cellCards(state));
  settle(document.getElementById("decision-list"), decisions(state));
  chat.models(state);
  control(state.control);
  look();
}

function control({ picture_age_s: old }) {
  const away = old === null || old > AWAY_S;
  const notice = document.getElementById("notice");
  notice.hidden = !away;
  for (const id of ["cell-list", "decision-list", "newest", "budget"]) document.getElementById(id).classList.toggle("old", away);
  if (old === null) say("notice", "The control loop has not been heard yet: who runs where, and what was decided, is not known.");
  else if (away) say("notice", `The control loop is away: cells, GPUs and decisions are as they were ${age(old)} ago.`);
}

function look() {
  const silent = performance.now() - (heard ?? begun);
  const link = document.getElementById("link");
  const lost = silent > LOST_MS;
  link.className = lost ? "lost" : heard === null ? "waits" : "lives";
  document.querySelector("main").classList.toggle("old", lost && heard !== null);
  if (!lost) say("link", heard === null ? "Connecting" : "Live");
  else if (heard === null) say("link", "The gateway does not answer; trying again");
  else say("link", `Connection lost; trying again. This is from ${age(silent / 1000)} ago`);
}

function follow() {
  const events = new EventSource("console/events");
  events.onmessage = (event) => show(JSON.parse(event.data));
  // A browser comes back by itself after a stream that ended, not after a refusal.
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, AGAIN_MS);
  };
}

chat.start();
follow();
setInterval(look, 1000);
