// Storyboards: shots are wished for, or an idea is; each is watched as it is rendered, rendered again, and seen in the cut.

import { file, json } from "./api.js";
import { element, say, settle } from "./dom.js";
import { shots } from "./shots.js";

const AGAIN_MS = 1000;
const LIST = "storyboards?limit=100";
const STATES = {
  in_progress: "Rendering the shots",
  joining: "Joining the shots",
  completed: "Ready",
  incomplete: "Some shots were not made; render them again",
  failed: "The shots are there; they could not be joined",
};
const NOTES = {
  shots: "Each shot is a clip of its own, one place and one movement; then they are joined.",
  script: "A language model writes the shots; read them, and render again what you want otherwise.",
};
const FILM = "The cut";
const place = (id) => document.getElementById(id);
const from = () => document.querySelector("input[name=from]:checked").value;
let model = null;
let boards = new Map();
let chosen = null;
let asked = null; // the shot that is to be rendered again
let seen = { name: "", url: "" }; // what is on the screen
let cut = { of: "", url: "" }; // the last film, kept for its download
let waiting = null;
let turns = 0;
let fault = () => {};

const version = (board) => [board.id, ...board.shots.map((shot) => shot.video?.id)].join(); // another for another cut
const working = (board) => board.status === "in_progress" || board.status === "joining";
const choices = (values) => values.map((value) => element("option", { value }, value));

export function open(found, models) {
  model = found;
  boards = new Map();
  choose(null);
  place("board-submit").disabled = model === null;
  if (model === null) return;
  settle(place("board-size"), choices(model.sizes));
  settle(place("board-style"), [element("option", { value: "" }, "none"), ...choices(model.styles)]);
  place("board-styles").classList.toggle("absent", model.styles.length === 0);
  const writers = models.filter((each) => each.structured).map((each) => each.id);
  settle(place("script-model"), [element("option", { value: "" }, "the best there is"), ...choices(writers)]);
  place("from-script").disabled = writers.length === 0;
  if (writers.length === 0) document.querySelector("input[name=from][value=shots]").checked = true;
  settle(place("wishes"), [wish(1)]);
  kinds();
  follow();
}

async function follow() {
  clearTimeout(waiting);
  const turn = ++turns;
  let pause = AGAIN_MS;
  try {
    const page = await json("GET", LIST);
    if (turn !== turns) return; // a later look is under way
    boards = new Map(page.data.map((board) => [board.id, board]));
    say("no-boards", boards.size ? "" : "There is none yet: make one.");
    show();
  } catch (error) {
    if (turn !== turns || error.status === 401) return;
    pause *= 2;
  }
  if ([...boards.values()].some(working) || pause > AGAIN_MS) waiting = setTimeout(follow, pause);
}

function choose(id) {
  chosen = id;
  screen("", null);
  show();
}

// Who stands on a button still does when it is drawn anew.
function settled(id, fresh) {
  const [list, button] = [place(id), document.activeElement];
  const called = (one) => one.getAttribute("aria-label") ?? one.dataset.board;
  settle(list, fresh);
  if (button === document.activeElement || called(button) === undefined) return;
  [...list.querySelectorAll("button")].find((one) => called(one) === called(button))?.focus();
}

function show() {
  const board = boards.get(chosen);
  settled("board-list", [...boards.values()].map(row));
  place("board-actions").hidden = board === undefined;
  place("board-bar").hidden = board === undefined || !working(board);
  say("board-state", board === undefined ? "" : STATES[board.status]);
  say("board-about", board === undefined ? "" : about(board));
  const doubts = (board?.warnings ?? []).filter((doubt) => doubt.shot === null);
  settle(place("doubts"), doubts.map((doubt) => element("li", {}, doubt.message)));
  settled("shots", board === undefined ? [] : shots(board, show));
  const ready = board?.status === "completed";
  place("watch-cut").hidden = !ready;
  place("cut-download").hidden = !ready || cut.of !== version(board);
  if (board === undefined) return;
  if (working(board)) place("board-bar").value = progress(board);
  if (ready && seen.name === "") film();
}

function row(board) {
  const current = board.id === chosen ? { "aria-current": "true" } : {};
  const name = board.title || board.shots[0].prompt;
  const count = `${board.shots.length} shot${board.shots.length === 1 ? "" : "s"}`;
  const label = element("span", {}, element("b", {}, name), element("small", {}, `${count}, ${board.status.replace("_", " ")}`));
  const kind = ["failed", "incomplete"].includes(board.status) ? "version failed" : "version";
  return element("li", {}, element("button", { type: "button", class: kind, "data-board": board.id, ...current }, label));
}

function progress(board) {
  const done = board.shots.map((shot) => shot.video?.progress ?? 0);
  return done.reduce((sum, each) => sum + each, 0) / done.length;
}

function about(board) {
  const parts = [board.title, ...board.characters.map((one) => `${one.name}: ${one.phrase}`)];
  if (board.signed !== null) parts.push(board.signed ? "signed" : "not signed");
  if (board.error) parts.push(board.error.message);
  return parts.filter(Boolean).join(" · ");
}

function screen(name, url) {
  if (seen.url && seen.url !== cut.url) URL.revokeObjectURL(seen.url);
  seen = { name, url: url ?? "" };
  place("cut").hidden = url === null;
  place("uncut").hidden = url !== null;
  place("uncut").textContent = name ? `${name} …` : "Your film will be here.";
  if (url === null) place("cut").removeAttribute("src");
  else place("cut").src = url;
  place("cut").setAttribute("aria-label", name || FILM);
}

// Null where it cannot be had, or something else is to be on the screen by now.
async function fetched(path, name) {
  screen(name, null);
  const asked = seen;
  try {
    const url = URL.createObjectURL(await file(path));
    if (seen === asked) return url;
    URL.revokeObjectURL(url);
  } catch (error) {
    fault(error);
  }
  return null;
}

async function film(play = false) {
  const board = boards.get(chosen);
  const of = version(board);
  if (cut.of !== of) {
    const url = await fetched(`storyboards/${board.id}/content`, FILM);
    if (url === null) return;
    if (cut.url) URL.revokeObjectURL(cut.url);
    cut = { of, url };
    Object.assign(place("cut-download"), { href: url, download: `${board.id}.mp4`, hidden: false });
  }
  screen(FILM, cut.url);
  if (play) playing();
}

async function clip(index) {
  const name = `Shot ${index + 1}`;
  const url = await fetched(`videos/${boards.get(chosen).shots[index].video.id}/content`, name);
  if (url === null) return;
  screen(name, url);
  playing();
}

// What replaces it before it has begun is no fault.
const playing = () => place("cut").play().catch(() => {});

// A shot as it is wished for; read by `wished`.
function wish(number) {
  const wide = ["prompt", "dialogue"];
  const field = (name, label, made) => element("label", wide.includes(name) ? { class: "wide" } : {}, label, Object.assign(made, { name }));
  const lasts = element("select", {}, ...choices(model.seconds.map(String)));
  return element(
    "li",
    {},
    element(
      "fieldset",
      {},
      element("legend", {}, `Shot ${number}`),
      field("prompt", "What is seen", element("textarea", { rows: 2, maxlength: 23000, required: "" })),
      field("seconds", "Seconds", lasts),
      field("camera", "Camera", element("input", { maxlength: 1000, placeholder: "as it likes" })),
      field("dialogue", "What is said", element("input", { maxlength: 4000, placeholder: "nothing" })),
      element("button", { type: "button", class: "remove", "aria-label": `Remove shot ${number}` }, "Remove"),
    ),
  );
}

function character() {
  const field = (name, label, most) => element("label", {}, label, element("input", { name, maxlength: most, required: "" }));
  const remove = element("button", { type: "button", class: "remove", "aria-label": "Remove this character" }, "Remove");
  return element("li", {}, element("fieldset", {}, element("legend", {}, "Character"), field("name", "Name", 64), field("phrase", "Looks", 1000), remove));
}

const wished = (list) => [...place(list).children].map((one) => Object.fromEntries([...one.querySelectorAll("[name]")].map((field) => [field.name, field.value])));

function kinds() {
  const now = from();
  for (const part of document.querySelectorAll("[data-from]")) part.hidden = part.dataset.from !== now;
  for (const field of place("wishes").querySelectorAll("[name]")) field.disabled = now !== "shots";
  place("script").required = now === "script";
  const none = place("from-script").disabled && model !== null;
  say("from-note", NOTES[now] + (none ? " No language model here can write shots from an idea." : ""));
}

async function make(event) {
  event.preventDefault();
  fault(null);
  place("board-submit").disabled = true;
  say("board-state", from() === "script" ? "The shots are being written" : "");
  const body = { title: place("title").value, model: model.id, size: place("board-size").value, characters: wished("cast") };
  if (place("board-style").value) body.style = place("board-style").value;
  if (from() === "script") {
    body.script = place("script").value;
    if (place("script-model").value) body.script_model = place("script-model").value;
  } else body.shots = wished("wishes").map((shot) => ({ ...shot, seconds: Number(shot.seconds) }));
  try {
    const board = await json("POST", "storyboards", body);
    boards = new Map([[board.id, board], ...boards]);
    choose(board.id);
    await follow();
  } catch (error) {
    fault(error);
    say("board-state", "");
  } finally {
    place("board-submit").disabled = model === null;
  }
}

function askAgain(index) {
  asked = index;
  const shot = boards.get(chosen).shots[index];
  say("again-title", `Render shot ${index + 1} again`);
  place("again-prompt").value = shot.prompt;
  place("again-camera").value = shot.camera;
  place("again-seed").value = "";
  place("again-fault").hidden = true;
  place("again").showModal();
}

async function again(event) {
  event.preventDefault();
  const body = { prompt: place("again-prompt").value, camera: place("again-camera").value };
  if (place("again-seed").value) body.seed = Number(place("again-seed").value);
  try {
    const board = await json("POST", `storyboards/${chosen}/shots/${asked}`, body);
    boards.set(board.id, board);
    place("again").close();
    screen("", null);
    await follow();
  } catch (error) {
    place("again-fault").hidden = false;
    say("again-fault", error.message);
  }
}

async function remove() {
  if (!confirm("Delete this storyboard and its cut? The clips of its shots stay.")) return;
  try {
    await json("DELETE", `storyboards/${chosen}`);
    boards.delete(chosen);
    choose(null);
    await follow();
  } catch (error) {
    fault(error);
  }
}

function removed(event) {
  if (!event.target.matches(".remove")) return;
  const list = event.target.closest("ol, ul");
  event.target.closest("li").remove();
  if (list.id === "wishes" && list.children.length === 0) list.append(wish(1));
  [...place("wishes").children].forEach((one, index) => {
    one.querySelector("legend").textContent = `Shot ${index + 1}`;
    one.querySelector(".remove").setAttribute("aria-label", `Remove shot ${index + 1}`);
  });
  place(list.id === "wishes" ? "add-shot" : "add-character").focus();
}

export function start(told) {
  fault = told;
  place("board-make").addEventListener("submit", make);
  place("board-make").addEventListener("change", kinds);
  place("board-make").addEventListener("click", removed);
  place("add-shot").addEventListener("click", () => {
    if (model === null) return;
    place("wishes").append(wish(place("wishes").children.length + 1));
    place("wishes").lastElementChild.querySelector("textarea").focus();
  });
  place("add-character").addEventListener("click", () => {
    place("cast").append(character());
    place("cast").lastElementChild.querySelector("input").focus();
  });
  place("board-list").addEventListener("click", (event) => {
    const button = event.target.closest("[data-board]");
    if (button) choose(button.dataset.board);
  });
  place("shots").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button === null) return;
    const index = Number(button.dataset.shot);
    if (button.dataset.does === "again") askAgain(index);
    else clip(index);
  });
  place("watch-cut").addEventListener("click", () => film(true));
  place("board-delete").addEventListener("click", remove);
  place("again-form").addEventListener("submit", again);
  place("again-cancel").addEventListener("click", () => place("again").close());
  kinds();
}
