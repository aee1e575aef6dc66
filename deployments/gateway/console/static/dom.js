// Elements from values, and numbers as people read them. Text is set as text: nothing that is shown is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

export const element = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const drawn = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Only what has changed is replaced, so that a selection, or a screen reader's place, survives the second.
export function settle(parent, fresh) {
  fresh.forEach((node, index) => {
    const old = parent.children[index];
    if (old === undefined) parent.append(node);
    else if (!old.isEqualNode(node)) old.replaceWith(node);
  });
  while (parent.children.length > fresh.length) parent.lastElementChild.remove();
}

export const say = (id, text) => {
  const place = document.getElementById(id);
  if (place.textContent !== text) place.textContent = text;
};

// On accelerator cpu a rank's process stands for a GPU.
export const gpus = (state, number) => `${number} ${state.accelerator === "cpu" ? "slot" : "GPU"}${number === 1 ? "" : "s"}`;

export const rounded = (number) =>
  number >= 100 ? number.toFixed(0) : number >= 10 ? number.toFixed(1) : number.toFixed(2);

export const seconds = (s) => (s === null ? "–" : s < 1 ? `${(s * 1000).toFixed(0)} ms` : `${Number(rounded(s))} s`);

export const age = (s) => (s < 90 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);

// Ids of nodes are long; their beginning tells them apart.
export const short = (text) => text.replace(/\b([0-9a-f]{8})[0-9a-f]{24,}\b/g, "$1");

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share > 0.9 ? 1 : 0)} %`);

// The same colour for an owner everywhere: by its place in the family file.
export const colour = (state, owner) =>
  owner === "video" ? "owner-video" : `owner-${Math.max(0, state.tiers.findIndex((tier) => tier.key === owner)) % 6}`;
