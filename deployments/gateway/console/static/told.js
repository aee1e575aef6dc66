// Rows as tables, what is being loaded, and what failed, said the same way in every part.

import { age, element, say } from "./dom.js";

const place = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en-US");
const cents = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const little = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 6 });

export const told = { refused: null }; // whom to tell that the key is good no more

export const count = (number) => whole.format(number);
export const money = (usd) => `$${(Math.abs(usd) >= 1 ? cents : little).format(usd)}`.replace("$-", "-$");
export const long = (s) => (s < 5400 ? age(s) : s < 129_600 ? `${Math.round(s / 3600)} hours` : `${Math.round(s / 86_400)} days`);
export const hours = (gpu_s) => `${little.format(Math.round((gpu_s / 3600) * 100) / 100)} GPU-hours`;
export const minute = (s) => new Date(s * 1000).toISOString().slice(0, 16).replace("T", " ");
export const time = (s, text = minute(s)) => element("time", { datetime: new Date(s * 1000).toISOString() }, text);

export function fault(error, id = "fault") {
  place(id).hidden = error === null;
  say(id, error?.message ?? "");
}

// One question of a part at a time: an answer that a later question has overtaken is dropped. `said`: where it is told how it stands.
const turns = new Map();

export async function asking(said, work, shown) {
  const turn = (turns.get(said) ?? 0) + 1;
  turns.set(said, turn);
  say(said, "Loading");
  fault(null);
  try {
    const answer = await work();
    if (turns.get(said) !== turn) return;
    say(said, shown(answer) ?? "");
  } catch (error) {
    if (turns.get(said) !== turn) return;
    say(said, "");
    if (error.status === 401) told.refused(error);
    else fault(error);
  }
}

export const forget = (said) => turns.set(said, (turns.get(said) ?? 0) + 1);

// `columns`: name, what a row has there, and whether it is a number. Roles are named: on a phone rows are blocks, and no table else.
export function table(caption, columns, rows) {
  const head = columns.map(({ name, number }) =>
    element("th", { scope: "col", role: "columnheader", ...(number ? { class: "number" } : {}) }, name),
  );
  const body = rows.map((row) =>
    element(
      "tr",
      { role: "row" },
      ...columns.map(({ name, of, number }) =>
        element("td", { role: "cell", "data-name": name, ...(number ? { class: "number" } : {}) }, of(row)),
      ),
    ),
  );
  return element(
    "table",
    { role: "table" },
    element("caption", {}, caption),
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head)),
    element("tbody", { role: "rowgroup" }, ...body),
  );
}

// Pages of a list that is asked behind, or before, an id: back by what was asked before.
export function pages(id, label, load) {
  let edges = [null];
  const at = () => edges.at(-1);
  const button = (text, step) => {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", () => {
      step();
      load();
    });
    return made;
  };
  return {
    at,
    number: () => edges.length,
    first: () => (edges = [null]),
    offer: (next) =>
      place(id).replaceChildren(
        ...(edges.length > 1 ? [button(label.back, () => edges.pop())] : []),
        ...(next === null ? [] : [button(label.on, () => edges.push(next))]),
      ),
  };
}
