// A card for each tier and for video: demand against replicas, promises, and why there are so many.

import { element, gpus, percent, rounded, seconds, short } from "./dom.js";
import { remember, spark } from "./spark.js";

const CAUSES = {
  rise: "growing",
  fall: "shrinking",
  hold: "as it is",
  blind: "blind",
  budget: "held back by the GPU budget",
};

function badge(replicas) {
  const { ready, starting, draining, target } = replicas;
  if (ready === 0 && starting === 0 && !target) return ["calm", "asleep"];
  const parts = [`${ready} ready`];
  if (starting) parts.push(`${starting} starting`);
  if (draining) parts.push(`${draining} draining`);
  if (target !== null && target !== ready) parts.push(`target ${target}`);
  return [target === null || target <= ready ? "good" : "bad", parts.join(", ")];
}

function why(replicas) {
  if (replicas.reason === null) return null;
  return element("p", { class: "why" }, `${CAUSES[replicas.cause] ?? replicas.cause}: ${short(replicas.reason)}`);
}

function head(title, names, replicas) {
  const [mood, words] = badge(replicas);
  return element(
    "div",
    { class: "head" },
    element("h3", {}, title, names.length && names.join() !== title ? ` (${names.join(", ")})` : ""),
    element("span", { class: `badge ${mood}` }, words),
  );
}

const row = (term, value, bad = false) => [
  element("dt", {}, term),
  element("dd", bad ? { class: "bad" } : {}, value),
];

function promises(tier) {
  const { figures, slo } = tier;
  const late = (value, most) => value !== null && value > most;
  const window = figures.window_s < 90 ? `${Math.round(figures.window_s)} s` : `${Math.round(figures.window_s / 60)} min`;
  const kept = figures.kept_ratio;
  return [
    ...row(`Promises kept, last ${window}`, kept === null ? "–" : `${percent(kept)} of ${figures.ended}`, kept !== null && kept < slo.objective),
    ...row(
      `First token, p50 / p95 (≤ ${seconds(slo.ttft_s)})`,
      `${seconds(figures.ttft_p50_s)} / ${seconds(figures.ttft_p95_s)}`,
      late(figures.ttft_p95_s, slo.ttft_s),
    ),
    ...row(
      `Per token, p50 / p95 (≤ ${slo.tpot_ms} ms)`,
      `${seconds(figures.tpot_p50_s)} / ${seconds(figures.tpot_p95_s)}`,
      late(figures.tpot_p95_s, slo.tpot_ms / 1000),
    ),
  ];
}

function figuresOf(tier) {
  const { engines, figures } = tier;
  const cache = engines.kv_capacity_tokens ? percent(engines.kv_used_tokens / engines.kv_capacity_tokens) : "–";
  return element(
    "dl",
    {},
    ...row("Per second: requests / tokens", `${rounded(figures.arrivals_rps)} / ${rounded(figures.tokens_per_s)}`),
    ...row("Running / in engine queues", `${engines.running} / ${engines.waiting}`),
    ...row("Held in the gateway", `${tier.held_requests}`, tier.held_requests > 0),
    ...row("KV cache in use", cache),
    ...promises(tier),
    ...(figures.refused_rps > 0 ? row("Refused per second", rounded(figures.refused_rps), true) : []),
    ...(tier.breakers_open ? row("Replicas set aside after failures", `${tier.breakers_open}`, true) : []),
  );
}

function lines(name, demandTitle, demand, replicas) {
  const ready = remember(`${name} ready`, replicas.ready);
  const target = remember(`${name} target`, replicas.target ?? replicas.ready);
  return element(
    "div",
    { class: "sparks" },
    spark(demandTitle, remember(`${name} demand`, demand)),
    spark("replicas (dashed: target)", ready, target),
  );
}

function tierCard(state, tier) {
  const waiting = tier.ongoing_requests + tier.held_requests;
  return element(
    "article",
    { class: "card", "data-tier": tier.key },
    head(tier.key, tier.names, tier.replicas),
    element("p", { class: "quiet" }, `${tier.engine} engine, ${gpus(state, tier.ranks)} a replica, ${tier.replicas.min} to ${tier.replicas.max} replicas`),
    lines(tier.key, "open requests", waiting, tier.replicas),
    figuresOf(tier),
    why(tier.replicas),
  );
}

function videoCard(state) {
  const { video } = state;
  return element(
    "article",
    { class: "card", "data-tier": "video" },
    head("video", video.names, video.replicas),
    element("p", { class: "quiet" }, `${gpus(state, video.gpus)} a replica, ${video.replicas.min} to ${video.replicas.max} replicas, lent to tiers that need GPUs`),
    lines("video", "unfinished jobs", video.jobs ?? 0, video.replicas),
    element("dl", {}, ...row("Unfinished jobs", `${video.jobs ?? "–"}`), ...row("Promised within", seconds(video.deadline_s))),
    why(video.replicas),
  );
}

export const tierCards = (state) => [
  ...state.tiers.map((tier) => tierCard(state, tier)),
  ...(state.video === null ? [] : [videoCard(state)]),
];
