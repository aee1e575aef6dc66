// What the control loop did last and why, the newest first.

import { element, say, short } from "./dom.js";

const CAUSES = { blind: "goes blind", budget: "is held back by the GPU budget" };

function what(event) {
  if (event.cause === "lend") return `${event.name} lends: from ${event.before} to ${event.after}`;
  if (event.after > event.before) return `${event.name} grows from ${event.before} to ${event.after}`;
  if (event.after < event.before) return `${event.name} shrinks from ${event.before} to ${event.after}`;
  return `${event.name} ${CAUSES[event.cause] ?? `stays at ${event.after}`}`;
}

const clock = (event) => new Date(event.at_s * 1000).toLocaleTimeString([], { hour12: false });

export function decisions(state) {
  const newest = state.events[0];
  document.getElementById("newest").hidden = newest === undefined;
  if (newest === undefined) return [element("li", { class: "quiet" }, "Nothing has changed yet.")];
  say("newest", `Last decision, ${clock(newest)}: ${what(newest)}. ${short(newest.reason)}`);
  return state.events.map((event) => {
    const at = new Date(event.at_s * 1000);
    return element(
      "li",
      { "data-name": event.name },
      element("time", { datetime: at.toISOString() }, clock(event)),
      element("strong", {}, what(event)),
      element("span", {}, short(event.reason) || event.cause),
    );
  });
}
