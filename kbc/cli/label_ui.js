"use strict";
// The page of `kbc ui --labels`: one object at a time, its points dragged to where they belong.
// Points are pixels of the picture, (0, 0) the centre of the top-left one, which a drawing has at (0.5, 0.5).

const SVG = "http://www.w3.org/2000/svg";
const SURE = 0.8, LIKELY = 0.5;
const RADIUS = 6, DRAG_FROM = 4; // screen pixels
const CLOSE = 0.4; // of the object's size, around it
const FEW = 4, ROOM = 0.1; // fewer points do not show how large it is: so much of the picture around them
const VISIBLE = 2, HIDDEN = 1, ABSENT = 0;
const $ = name => document.getElementById(name);

let objects = [];
let here = 0; // the object shown
let chosen = 0; // its point that the keys change
let view = null; // {x, y, w, h}: the part of the picture shown
let whole = false;
let size = null; // of the picture, [width, height]
let saving = Promise.resolve();
let timer = null;

const current = () => objects[here];

async function ask(path, body) {
  const sent = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), keepalive: true,
  };
  const answer = await fetch(path, sent);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

function element(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function kind(object, index) {
  const visible = object.points[index][2];
  if (visible === ABSENT) return "absent";
  if (visible === HIDDEN) return "hidden";
  if (object.labelled) return "known";
  const sure = object.scores[index];
  return sure >= SURE ? "sure" : sure >= LIKELY ? "likely" : "doubtful";
}

// What is shown ------------------------------------------------------------------------------------------------------

async function load() {
  const state = await ask("/state");
  objects = state.objects;
  $("file").textContent = state.file;
  await show(0);
}

async function show(index) {
  if (!objects.length) { say("the file names no picture"); return; }
  here = Math.min(Math.max(index, 0), objects.length - 1);
  const object = current();
  object.fresh = object.id === null; // its points are set one after the other
  chosen = object.points.findIndex(point => point[2] === ABSENT);
  if (object.id !== null || chosen < 0) chosen = doubtful(object);
  const place = here;
  try {
    const shown = await measured(object.image);
    if (place !== here) return; // somebody went on meanwhile
    size = shown;
    say("");
  } catch {
    size = [1, 1];
    say(`the picture ${object.file} cannot be read`);
  }
  frame();
  draw();
  drawList();
  reference();
  const after = objects[here + 1];
  if (after) measured(after.image).catch(() => undefined); // it is there when it is asked for
}

function doubtful(object) {
  const there = object.scores.map((score, i) => (object.points[i][2] === ABSENT ? Infinity : score));
  return Math.max(there.indexOf(Math.min(...there)), 0);
}

async function measured(number) {
  const image = new Image();
  image.src = `/image/${number}`;
  await image.decode();
  return [image.naturalWidth, image.naturalHeight];
}

function close(object, [width, height]) {
  const there = object.points.filter(point => point[2] !== ABSENT);
  let box = object.box && object.box[2] > 0 && object.box[3] > 0 ? [...object.box] : null;
  if (!box && !there.length) return { x: 0, y: 0, w: width, h: height };
  box ??= [there[0][0], there[0][1], 0, 0];
  const xs = [box[0], box[0] + box[2], ...there.map(p => p[0])], ys = [box[1], box[1] + box[3], ...there.map(p => p[1])];
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const least = there.length < FEW ? ROOM * Math.max(width, height) : 8;
  const around = Math.max(CLOSE * Math.max(x1 - x0, y1 - y0) + 8, least);
  return { x: x0 - around, y: y0 - around, w: x1 - x0 + 2 * around, h: y1 - y0 + 2 * around };
}

function frame() {
  view = whole ? { x: 0, y: 0, w: size[0], h: size[1] } : close(current(), size);
  $("zoom").textContent = whole ? "close up" : "whole picture";
}

function unit(svg, shown) { // picture pixels a screen pixel covers
  const box = svg.getBoundingClientRect();
  return 1 / Math.min(box.width / shown.w, box.height / shown.h);
}

function paint(svg, object, shown, [width, height], handles) {
  svg.setAttribute("viewBox", `${shown.x} ${shown.y} ${shown.w} ${shown.h}`);
  const pixel = unit(svg, shown);
  const held = svg.querySelector("image");
  const group = document.createElementNS(SVG, "g");
  const href = `/image/${object.image}`;
  const image = held?.getAttribute("href") === href ? held : element("image", { href });
  image.setAttribute("width", width);
  image.setAttribute("height", height);
  group.append(image);
  for (const [from, to] of object.skeleton) {
    const ends = [object.points[from - 1], object.points[to - 1]];
    if (ends.some(end => !end || end[2] === ABSENT)) continue;
    const [[x1, y1], [x2, y2]] = ends.map(end => [end[0] + 0.5, end[1] + 0.5]);
    element("line", { x1, y1, x2, y2, "stroke-width": 1.5 * pixel }, group);
  }
  object.points.forEach(([x, y, visible], index) => {
    if (visible === ABSENT) return;
    const mark = element("circle", {
      class: `point ${kind(object, index)}${handles && index === chosen ? " here" : ""}`, "data-index": index,
      cx: x + 0.5, cy: y + 0.5, r: (handles && index === chosen ? 1.3 : 1) * RADIUS * pixel, "stroke-width": 2 * pixel,
    }, group);
    element("title", {}, mark, object.names[index]);
    element("text", {
      x: x + 0.5 + 8 * pixel, y: y + 0.5 - 6 * pixel, "font-size": 13 * pixel, "stroke-width": 3 * pixel,
    }, group, index + 1);
  });
  svg.replaceChildren(group);
}

function draw() {
  const object = current();
  paint($("picture"), object, view, size, true);
  $("picture").classList.toggle("placing", object.points[chosen][2] === ABSENT);
  $("title").textContent = `${object.file} · ${object.category}`;
  $("points").replaceChildren(...object.names.map((name, index) => row(
    `${index + 1} ${name}`, kind(object, index), index === chosen, said(object, index),
    () => { chosen = index; draw(); },
  )));
  $("remove").disabled = object.id === null;
  $("confirm").disabled = object.points.every(point => point[2] === ABSENT);
  const labelled = objects.filter(one => one.labelled).length;
  $("transfer").disabled = labelled === 0;
  $("transfer").title = labelled ? `with ${labelled} labelled as exemplars` : "put an object right first";
  $("count").textContent = `${objects.length} objects, ${labelled} labelled; the most doubtful first`;
}

function said(object, index) {
  const visible = object.points[index][2];
  if (visible === ABSENT) return "–";
  return object.labelled ? (visible === HIDDEN ? "occluded" : "") : object.scores[index].toFixed(2);
}

function row(name, dot, isHere, text, action) {
  const line = document.createElement("li");
  line.classList.toggle("here", isHere);
  const mark = document.createElement("span"), label = document.createElement("span"), value = document.createElement("b");
  mark.className = `dot ${dot}`;
  label.className = "name";
  label.textContent = name;
  label.title = name;
  value.textContent = text;
  line.append(mark, label, value);
  line.addEventListener("click", action);
  return line;
}

function drawList() {
  $("list").replaceChildren(...objects.map((object, index) => {
    const empty = object.id === null;
    const dot = empty ? "absent" : object.labelled ? "known"
      : object.score >= SURE ? "sure" : object.score >= LIKELY ? "likely" : "doubtful";
    const text = empty ? "none" : object.labelled ? "done" : object.score.toFixed(2);
    return row(object.file, dot, index === here, text, () => leave(index));
  }));
  $("list").children[here]?.scrollIntoView({ block: "nearest" });
}

async function reference() {
  const object = current();
  const one = objects.find(other => other.labelled && other !== object && other.category_id === object.category_id);
  $("reference").hidden = !one;
  if (!one) return;
  const shown = await measured(one.image).catch(() => null);
  if (!shown) { $("reference").hidden = true; return; }
  $("reference").querySelector("figcaption").textContent = `labelled: ${one.file}`;
  paint($("reference").querySelector("svg"), one, close(one, shown), shown, false);
}

// What is changed ----------------------------------------------------------------------------------------------------

function changed() {
  current().labelled = true;
  current().unsaved = true;
  draw();
  $("saved").textContent = "…";
  clearTimeout(timer);
  timer = setTimeout(save, 400);
}

function save() {
  clearTimeout(timer);
  for (const object of objects.filter(one => one.unsaved)) {
    object.unsaved = false;
    saving = saving.then(() => put(object)).catch(error => { object.unsaved = true; say(error.message); });
  }
  return saving;
}

async function put(object) {
  const told = object.id === null ? { image_id: object.image, category_id: object.category_id } : { id: object.id };
  const answer = await ask("/save", { ...told, keypoints: object.points });
  Object.assign(object, { id: answer.id, score: answer.score, scores: answer.scores, box: answer.box });
  $("saved").textContent = "saved";
  drawList();
}

async function leave(index) {
  await save();
  await show(index);
}

function confirm() {
  if ($("confirm").disabled) return;
  changed();
  leave(here + 1);
}

function mark(visible) {
  const point = current().points[chosen];
  if (visible === HIDDEN && point[2] === ABSENT) return; // its place is not known
  point[2] = point[2] === visible ? VISIBLE : visible;
  if (visible === ABSENT) point.splice(0, 3, 0, 0, ABSENT);
  changed();
}

async function undo() {
  const object = current();
  if (object.id === null) return;
  try {
    await save();
    Object.assign(object, await ask("/undo", { id: object.id }));
    draw();
    drawList();
  } catch (error) { say(error.message); }
}

async function remove() {
  const object = current();
  if (object.id === null) return;
  try {
    await save();
    await ask("/remove", { id: object.id });
    const place = here;
    objects = (await ask("/state")).objects;
    await show(place);
  } catch (error) { say(error.message); }
}

function inside([x, y]) {
  return [Math.min(Math.max(x, 0), size[0] - 1), Math.min(Math.max(y, 0), size[1] - 1)];
}

function at(event) {
  const place = new DOMPoint(event.clientX, event.clientY).matrixTransform($("picture").getScreenCTM().inverse());
  return [place.x - 0.5, place.y - 0.5];
}

function grab(event) {
  if (event.button !== 0 || !size) return;
  const picture = $("picture");
  const index = event.target.dataset?.index;
  const from = at(event), start = { ...view };
  let moved = false;
  if (index !== undefined) { chosen = Number(index); draw(); }
  const grip = index === undefined ? null : current().points[chosen].slice(0, 2);
  picture.setPointerCapture(event.pointerId);
  const move = to => {
    const away = Math.hypot(to.clientX - event.clientX, to.clientY - event.clientY);
    moved ||= away >= DRAG_FROM;
    if (!moved) return;
    if (grip) {
      const [x, y] = at(to);
      current().points[chosen].splice(0, 2, ...inside([grip[0] + x - from[0], grip[1] + y - from[1]]));
    } else {
      const pixel = unit(picture, start);
      view = { ...start, x: start.x - (to.clientX - event.clientX) * pixel, y: start.y - (to.clientY - event.clientY) * pixel };
    }
    draw();
  };
  const drop = () => {
    picture.removeEventListener("pointermove", move);
    if (grip && moved) changed();
    else if (!grip && !moved && current().points[chosen][2] === ABSENT) {
      current().points[chosen] = [...inside(from), VISIBLE];
      changed();
      const missing = current().points.findIndex((point, i) => i > chosen && point[2] === ABSENT);
      if (current().fresh && missing >= 0) { chosen = missing; draw(); }
    }
  };
  picture.addEventListener("pointermove", move);
  picture.addEventListener("pointerup", drop, { once: true });
}

function wheel(event) {
  event.preventDefault();
  const [x, y] = at(event).map(v => v + 0.5);
  const factor = Math.exp(0.0015 * event.deltaY);
  if (view.w * factor < 4 || view.w * factor > 20 * size[0]) return;
  view = { x: x - (x - view.x) * factor, y: y - (y - view.y) * factor, w: view.w * factor, h: view.h * factor };
  draw();
}

async function transfer() {
  try {
    await save();
    await ask("/transfer", {});
    $("transfer").disabled = true;
    let state;
    do {
      await new Promise(done => setTimeout(done, 300));
      state = await ask("/progress");
      $("progress").textContent = state.running ? `${state.done} of ${state.total} pictures` : "";
    } while (state.running);
    await save();
    await load();
    say(state.error);
    $("progress").textContent = state.error ? "" : "done; the list is sorted anew";
  } catch (error) { say(error.message); }
}

function key(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const actions = {
    ArrowRight: () => leave(here + 1), n: () => leave(here + 1),
    ArrowLeft: () => leave(here - 1), p: () => leave(here - 1),
    Enter: confirm, o: () => mark(HIDDEN), Delete: () => mark(ABSENT), Backspace: () => mark(ABSENT),
    u: undo, z: () => { whole = !whole; frame(); draw(); },
    ArrowDown: () => { chosen = (chosen + 1) % current().points.length; draw(); },
    ArrowUp: () => { chosen = (chosen + current().points.length - 1) % current().points.length; draw(); },
  };
  const action = actions[event.key];
  if (!action || (event.key === "Enter" && event.target.tagName === "BUTTON")) return;
  event.preventDefault();
  action();
}

addEventListener("keydown", key);
addEventListener("resize", () => { if (size) draw(); });
addEventListener("pagehide", () => { save(); });
$("picture").addEventListener("pointerdown", grab);
$("picture").addEventListener("wheel", wheel, { passive: false });
for (const [name, action] of Object.entries({
  previous: () => leave(here - 1), next: () => leave(here + 1), confirm, occluded: () => mark(HIDDEN),
  absent: () => mark(ABSENT), undo, zoom: () => { whole = !whole; frame(); draw(); }, remove, transfer,
})) $(name).addEventListener("click", event => { event.currentTarget.blur(); action(); });
load().catch(error => say(error.message));
