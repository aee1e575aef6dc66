// Cells with their nodes: every GPU a square, in the colour of who holds it; and the budget as one bar.

import { colour, drawn, element, gpus, short } from "./dom.js";

const SQUARE = 18;
const STEP = 22;
const ACROSS = 16;
const STATES = { ready: "", changing: "starts or stops", leaving: "makes room" };

function squares(state, node) {
  const lent = new Set(node.lent.map((one) => one.tier));
  const kinds = node.holdings.flatMap((one) =>
    Array(one.gpus).fill(`${colour(state, one.owner)} ${one.state}${lent.has(one.owner) ? " lent" : ""}`),
  );
  while (kinds.length < node.gpus) kinds.push("free");
  const width = Math.min(kinds.length, ACROSS) * STEP;
  const height = Math.ceil(kinds.length / ACROSS) * STEP;
  const rects = kinds.map((kind, index) =>
    drawn("rect", {
      x: 2 + (index % ACROSS) * STEP,
      y: 2 + Math.floor(index / ACROSS) * STEP,
      width: SQUARE,
      height: SQUARE,
      rx: 3,
      class: kind,
    }),
  );
  // The list below says the same in words.
  return drawn("svg", { class: "gpus", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...rects);
}

function holder(state, node, one) {
  const lent = node.lent.some((each) => each.tier === one.owner);
  return element(
    "li",
    { "data-owner": one.owner },
    element("span", {}, element("span", { class: `swatch ${colour(state, one.owner)}`, "aria-hidden": "true" }), one.owner),
    element("span", { class: "quiet" }, `${short(one.replica)}, ${gpus(state, one.gpus)}`),
    STATES[one.state] ? element("span", { class: "badge calm" }, STATES[one.state]) : null,
    lent ? element("span", { class: "badge bad" }, "on lent GPUs") : null,
  );
}

function nodeOf(state, node) {
  return element(
    "div",
    { class: "node" },
    element("p", { class: "quiet" }, `node ${short(node.node)}: ${node.free_gpus} of ${gpus(state, node.gpus)} free`),
    squares(state, node),
    node.holdings.length ? element("ul", { class: "who" }, ...node.holdings.map((one) => holder(state, node, one))) : null,
    ...node.lent.map((one) => element("p", { class: "why" }, `video lends ${gpus(state, one.gpus)} to ${one.tier}`)),
  );
}

export function cellCards(state) {
  const cards = state.cells.map((cell) =>
    element(
      "article",
      { class: "card" },
      element(
        "div",
        { class: "head" },
        element("h3", {}, cell.name),
        element("span", { class: "quiet" }, gpus(state, cell.gpus)),
      ),
      ...cell.nodes.map((node) => nodeOf(state, node)),
      cell.nodes.length ? null : element("p", { class: "quiet" }, "Nobody has looked at its nodes yet."),
    ),
  );
  const waiting = state.awaiting.map((one) =>
    element("li", {}, `a group of ${one.tier} waits for ${gpus(state, one.ranks)}`),
  );
  if (waiting.length)
    cards.push(element("article", { class: "card" }, element("h3", {}, "Waiting for GPUs"), element("ul", {}, ...waiting)));
  return cards;
}

export function budget(state) {
  const { held, gpus: there, most_gpus: most } = state.budget;
  const owners = Object.entries(held).filter(([, number]) => number > 0);
  const used = owners.reduce((sum, [, number]) => sum + number, 0);
  let x = 0;
  const rects = owners.map(([owner, number]) => {
    x += number;
    return drawn("rect", { x: x - number, y: 0, width: number, height: 1, class: colour(state, owner) });
  });
  const words = `${used} of the ${gpus(state, most)} of the budget are held`;
  const fewer = there !== null && there < most ? `; only ${there} are there now` : "";
  return [
    element("p", {}, words + fewer),
    drawn("svg", { class: "budget", viewBox: `0 0 ${Math.max(most, used)} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...rects),
    element(
      "ul",
      { class: "legend" },
      ...owners.map(([owner, number]) =>
        element("li", {}, element("span", { class: `swatch ${colour(state, owner)}`, "aria-hidden": "true" }), `${owner} ${number}`),
      ),
      element("li", {}, element("span", { class: "swatch", "aria-hidden": "true" }), `free ${Math.max(0, Math.min(most, there ?? most) - used)}`),
    ),
  ];
}
