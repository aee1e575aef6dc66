// The clip on its frame: played, and marked by dragging or by keys. What is marked is in the form's fields alone.

const place = (id) => document.getElementById(id);
const REGION = ["x", "y", "width", "height"];
const STEPS = 32; // of a key's, over the width
let size = { width: 0, height: 0 };
let fps = 1;
let begun = null;
let onMark = () => {};

const clamp = (value, most) => Math.min(Math.max(value, 0), most);

// Null where nothing is said of it; what is left open reaches to the edge.
export const region = () => {
  const [x, y, width, height] = REGION.map((name) => place(name).value);
  if (x + y + width + height === "") return null;
  const [left, top] = [Number(x), Number(y)];
  return { x: left, y: top, width: Number(width) || size.width - left, height: Number(height) || size.height - top };
};

export function mark(found) {
  for (const name of REGION) place(name).value = found === null ? "" : found[name];
  draw();
}

function draw() {
  const found = region();
  const box = place("mark").querySelector("rect");
  for (const name of REGION) box.setAttribute(name, found === null ? 0 : found[name]);
  const said = found === null ? "the whole picture" : `${found.width} x ${found.height} at ${found.x}, ${found.y}`;
  place("mark").setAttribute("aria-label", `Region of the picture: ${said}`);
}

// In pixels of the clip.
function point(event) {
  const box = place("mark").getBoundingClientRect();
  return {
    x: clamp(Math.round(((event.clientX - box.left) / box.width) * size.width), size.width),
    y: clamp(Math.round(((event.clientY - box.top) / box.height) * size.height), size.height),
  };
}

function dragged(event) {
  if (begun === null) return;
  const end = point(event);
  const made = { x: Math.min(begun.x, end.x), y: Math.min(begun.y, end.y) };
  Object.assign(made, { width: Math.abs(begun.x - end.x), height: Math.abs(begun.y - end.y) });
  if (made.width && made.height) {
    mark(made);
    onMark();
  }
}

function pressed(event) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Escape") mark(null);
  if (!(event.key in moves)) return;
  event.preventDefault();
  const [across, down] = moves[event.key].map((way) => way * Math.max(1, Math.round(size.width / STEPS)));
  const found = region();
  if (found === null) {
    const [width, height] = [Math.ceil(size.width / 2), Math.ceil(size.height / 2)];
    mark({ x: Math.floor(width / 2), y: Math.floor(height / 2), width, height });
  } else if (event.shiftKey) {
    const width = Math.max(1, clamp(found.width + across, size.width - found.x));
    mark({ ...found, width, height: Math.max(1, clamp(found.height + down, size.height - found.y)) });
  } else {
    const x = clamp(found.x + across, size.width - found.width);
    mark({ ...found, x, y: clamp(found.y + down, size.height - found.height) });
  }
  onMark();
}

function tell() {
  const video = place("video");
  place("play").textContent = video.paused ? "Play" : "Pause";
  place("position").value = video.currentTime;
  const ends = Number.isFinite(video.duration) ? video.duration : 0;
  place("time").textContent = `${video.currentTime.toFixed(2)} / ${ends.toFixed(2)} s`;
}

const toggle = () => (place("video").paused ? place("video").play() : place("video").pause());

// The start of the frame that is shown.
export const now = () => Math.floor(place("video").currentTime * fps + 1e-6) / fps;

export function show(url, job) {
  const [width, height] = job.size.split("x").map(Number);
  size = { width, height };
  fps = job.moray.fps;
  for (const [name, most] of Object.entries({ x: width, y: height, width, height })) place(name).max = most;
  place("mark").setAttribute("viewBox", `0 0 ${width} ${height}`);
  place("frame").style.aspectRatio = `${width} / ${height}`;
  place("frame").style.maxWidth = `calc(65vh * ${width / height})`;
  place("video").src = url;
  reveal(true);
  mark(null);
}

export function clear(text) {
  place("video").removeAttribute("src");
  place("video").load();
  place("blank").textContent = text;
  mark(null);
  reveal(false);
}

function reveal(shown) {
  place("blank").hidden = shown;
  for (const id of ["video", "controls", "mark-help"]) place(id).hidden = !shown;
  place("mark").toggleAttribute("hidden", !shown);
}

export function start(marked) {
  onMark = marked;
  const [video, over] = [place("video"), place("mark")];
  for (const event of ["timeupdate", "play", "pause", "loadedmetadata", "seeked"]) video.addEventListener(event, tell);
  video.addEventListener("loadedmetadata", () => (place("position").max = video.duration));
  place("position").addEventListener("input", () => (video.currentTime = place("position").value));
  place("play").addEventListener("click", toggle);
  over.addEventListener("pointerdown", (event) => {
    over.setPointerCapture(event.pointerId);
    begun = point(event);
  });
  over.addEventListener("pointermove", dragged);
  over.addEventListener("pointercancel", () => (begun = null));
  over.addEventListener("pointerup", (event) => {
    const end = point(event);
    if (begun !== null && end.x === begun.x && end.y === begun.y) toggle();
    begun = null;
  });
  over.addEventListener("keydown", pressed);
  for (const name of REGION) place(name).addEventListener("input", draw);
}
