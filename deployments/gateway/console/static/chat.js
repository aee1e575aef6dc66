// A chat of one question, streamed. The key is in its field and nowhere else.

import { refusal } from "./api.js";
import { element, settle } from "./dom.js";

const place = (id) => document.getElementById(`chat-${id}`);
let asking = null;

export function models(state) {
  const names = state.tiers.flatMap((tier) => tier.names);
  settle(place("model"), names.map((name) => element("option", { value: name }, name)));
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

function add(text) {
  const answer = place("answer");
  const follows = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 40;
  answer.append(text);
  if (follows) answer.scrollTop = answer.scrollHeight;
}

async function ask(signal) {
  const body = {
    model: place("model").value,
    messages: [{ role: "user", content: place("message").value }],
    stream: true,
  };
  const headers = { "content-type": "application/json", authorization: `Bearer ${place("key").value.trim()}` };
  const begun = performance.now();
  const response = await fetch("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await refusal(response));
  let first = null;
  let pieces = 0;
  for await (const chunk of chunks(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    const text = chunk.choices?.[0]?.delta?.content;
    if (!text) continue;
    first ??= performance.now() - begun;
    pieces += 1;
    add(text);
  }
  const took = ((performance.now() - begun) / 1000).toFixed(1);
  return pieces ? `First text after ${first.toFixed(0)} ms, whole answer in ${took} s.` : `An empty answer in ${took} s.`;
}

async function submitted(event) {
  event.preventDefault();
  if (asking !== null) return;
  asking = new AbortController();
  place("send").disabled = true;
  place("stop").disabled = false;
  place("answer").replaceChildren();
  place("answer").classList.remove("bad");
  place("answer").setAttribute("aria-busy", "true");
  place("note").textContent = "Waiting for the first token";
  try {
    place("note").textContent = await ask(asking.signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    place("note").textContent = stopped ? "Stopped." : "The answer failed.";
    if (!stopped) place("answer").classList.add("bad");
    if (!stopped) add(`${place("answer").textContent ? "\n" : ""}${error.message}`);
  } finally {
    asking = null;
    place("answer").removeAttribute("aria-busy");
    place("send").disabled = false;
    place("stop").disabled = true;
  }
}

export function start() {
  place("form").addEventListener("submit", submitted);
  place("stop").addEventListener("click", () => asking?.abort());
}
