// The shots of a storyboard in order: each with its picture, how it stands, what is doubtful, and what can be done.

import { element } from "./dom.js";
import { picture } from "./versions.js";

const STATES = { queued: "Waits", completed: "Ready", failed: "Failed", deleted: "Its clip is gone" };

const stands = (shot) => (shot.status === "in_progress" ? `Rendering, ${shot.video.progress} %` : STATES[shot.status]);

function shot(one, doubts, again) {
  const { index, video } = one;
  const said = [`${one.seconds} s`, one.camera && `camera: ${one.camera}`, one.dialogue && `“${one.dialogue}”`].filter(Boolean);
  const why = one.error?.message ?? video?.error?.message;
  const does = (name, what) =>
    element("button", { type: "button", "data-shot": index, "data-does": what, "aria-label": `${name}, shot ${index + 1}` }, name);
  return element(
    "li",
    { class: `shot ${one.status}` },
    video === null ? null : picture(video, again),
    element(
      "div",
      {},
      element("p", { class: "stands" }, element("b", {}, `Shot ${index + 1}`), ` ${stands(one)}`),
      element("p", {}, one.prompt),
      element("p", { class: "quiet" }, said.join(" · ")),
      ...doubts.map((doubt) => element("p", { class: "doubt" }, doubt.message)),
      why ? element("p", { class: "doubt" }, why) : null,
      one.status === "in_progress" ? element("progress", { max: 100, value: video.progress, "aria-label": `Progress of shot ${index + 1}` }) : null,
      element("p", { class: "foot" }, one.status === "completed" ? does("Watch", "watch") : null, does("Render again", "again")),
    ),
  );
}

export const shots = (board, again) =>
  board.shots.map((one) => shot(one, board.warnings.filter((doubt) => doubt.shot === one.index), again));
