// What the control loop did last and why, the newest first.

import { element, say, short } from "./dom.js";

const CAUSES = { blind: "goes blind", budget: "is held back by the GPU budget" };

function what(event) {
  if (event.cause === "lend") return `${event.name} lends: from ${event.before} to ${event.after}`;
  if (event.after > event.before) return `${event.name} grows from ${event.before} to ${event.after}`;
  if (event.after < event.before) return `${event.name} shrinks from ${event.before} to ${event.after}`;
  return `${event.name} ${CAUSES[event.cause] ?? `stays at ${event.after}`}`;
}

export function decisions(state) {
  const newest = state.events[0];
  if (newest !== undefined) say("newest", `${what(newest)}: ${newest.reason}`);
  if (newest === undefined) return [element("li", { class: "quiet" }, "Nothing has changed yet.")];
  return state.events.map((event) => {
    const at = new Date(event.at_s * 1000);
    return element(
      "li",
      { "data-name": event.name },
      element("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false })),
      element("strong", {}, what(event)),
      element("span", {}, short(event.reason) || event.cause),
    );
  });
}
