// Small lines of the last minutes, with their figures in words for those who do not see them.

import { drawn, element, rounded } from "./dom.js";

const POINTS = 180; // a second each
const FEWEST = 45; // over the whole width, while the page is young
const WIDTH = 180;
const HEIGHT = 36;
const past = new Map();

export function remember(name, value) {
  const values = past.get(name) ?? [];
  values.push(value ?? 0);
  if (values.length > POINTS) values.shift();
  past.set(name, values);
  return values;
}

function line(values, most, kind) {
  const step = WIDTH / (Math.max(FEWEST, values.length) - 1);
  const points = values.map((value, index) => {
    const x = WIDTH - (values.length - 1 - index) * step;
    return `${x.toFixed(1)},${(HEIGHT - 2 - (value / most) * (HEIGHT - 6)).toFixed(1)}`;
  });
  return drawn("polyline", { points: points.join(" "), ...(kind ? { class: kind } : {}) });
}

// `aim`: what the line should follow, dashed.
export function spark(title, values, aim = null) {
  const most = Math.max(1e-9, ...values, ...(aim ?? []));
  const now = values.at(-1);
  const label = `${title}: now ${rounded(now)}, most ${rounded(Math.max(...values))} in this view`;
  const picture = drawn(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    aim === null ? null : line(aim, most, "aim"),
    line(values, most, ""),
  );
  return element("figure", {}, picture, element("figcaption", {}, title));
}
