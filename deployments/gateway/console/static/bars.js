// A figure over time as bars, with what they say in words for those who do not see them.

import { drawn, element } from "./dom.js";

const WIDTH = 720;
const HEIGHT = 140;

// `values`: one of each bucket; `times`: what each bucket is called; `said`: a value in words.
export function bars(title, values, times, said) {
  const most = Math.max(0, ...values);
  const least = Math.min(0, ...values);
  const scale = HEIGHT / (most - least || 1);
  const step = WIDTH / values.length;
  const gap = Math.min(2, step / 4);
  const parts = values.map((value, index) =>
    drawn(
      "rect",
      {
        x: (index * step + gap / 2).toFixed(2),
        width: (step - gap).toFixed(2),
        y: ((most - Math.max(0, value)) * scale).toFixed(2),
        height: (Math.abs(value) * scale).toFixed(2),
        ...(value < 0 ? { class: "below" } : {}),
      },
      drawn("title", {}, `${times[index]}: ${said(value)}`),
    ),
  );
  const peak = values.indexOf(most);
  const sum = values.reduce((total, value) => total + value, 0);
  const label = `${title}: ${said(sum)} in all${most > 0 ? `; most at ${times[peak]}, ${said(most)}` : ""}`;
  const picture = drawn(
    "svg",
    { class: "bars", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    ...parts,
  );
  const ends = element("span", { class: "ends" }, element("span", {}, times[0]), element("span", {}, times.at(-1)));
  return [picture, element("figcaption", {}, ends, label)];
}
