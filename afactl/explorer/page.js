"use strict";

const $ = id => document.getElementById(id);
const SLIDERS = {
  "cam.beta_low": {title: "beta_low", min: 0, max: 1, step: 0.01},
  "cam.beta_high": {title: "beta_high", min: 0, max: 1, step: 0.01},
  "affinity.radius": {title: "radius, tokens", min: 0, max: 16, step: 1},
  "affinity.alpha": {title: "alpha", min: 0.25, max: 8, step: 0.25},
  "par.iterations": {title: "PAR iterations", min: 0, max: 30, step: 1},
};
const IGNORE = 255;

// What is shown. `photo` is what the server said of it; a layer is {label, probability} of its pixels.
const state = {about: null, list: [], total: 0, place: null, photo: null, point: null, hover: null, picture: null,
  layers: {}, maps: {}, turn: 0, polling: 0};
const panels = {};

// The server

async function ask(path, asked = {}, options = {}) {
  let response;
  try {
    response = await fetch(`/api/${path}?${new URLSearchParams(asked)}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the program behind this page does not answer; start `afactl explore` again");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

/** Does something for the person, and says what went wrong where it did. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, true);
  }
}

/** The latest call only: an earlier one that is still on its way is given up. */
function latest(work, pause) {
  let running = new AbortController(), waiting = 0;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      running.abort();
      running = new AbortController();
      const signal = running.signal;
      attempt(() => work(signal));
    }, pause);
  };
}

// The list of photos

async function load(more = false) {
  clearTimeout(state.polling);
  const asked = {split: $("split").value, search: $("search").value, order: $("order").value,
    start: more ? state.list.length : 0};
  const page = await ask("photos", asked);
  state.list = more ? [...state.list, ...page.photos] : page.photos;
  state.total = page.total;
  const pending = page.all !== undefined && page.known < page.all && !page.note;
  $("found").textContent = page.note || `${page.total} ${page.total === 1 ? "photo" : "photos"}` +
    (pending ? `; ${page.known} of ${page.all} looked at so far` : "");
  if (pending) state.polling = setTimeout(() => attempt(() => load()), 1500);
  showList();
}

function showList() {
  $("photos").replaceChildren(...state.list.map(entry => {
    const button = document.createElement("button"), image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `/api/thumbnail?${new URLSearchParams({split: $("split").value, photo: entry.id})}`;
    button.append(image, line(entry.id), line(entry.labels.join(", ") || "no tags"), line(remark(entry)));
    button.setAttribute("aria-current", String(isShown(entry.id)));
    button.onclick = () => attempt(() => open({split: $("split").value, photo: entry.id}));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  $("more").hidden = state.list.length >= state.total;
}

function line(text) {
  const span = document.createElement("span");
  span.textContent = text;
  return span;
}

function remark(entry) {
  const told = [];
  if (entry.verdict) told.push(entry.verdict);
  if (entry.miou !== undefined) told.push(`mIoU ${entry.miou.toFixed(1)}`);
  if (entry.entropy !== undefined) told.push(`entropy ${entry.entropy.toFixed(2)}`);
  if (entry.denied?.length) told.push(`found without a tag: ${entry.denied.join(", ")}`);
  if (entry.missed?.length) told.push(`not found: ${entry.missed.join(", ")}`);
  return told.join("; ");
}

function isShown(id) {
  return state.place !== null && state.place.photo === id && state.place.split === $("split").value;
}

/** The photo so many places after the one that is shown. */
async function step(by) {
  const here = state.list.findIndex(entry => isShown(entry.id)), there = here + by;
  if (there >= state.list.length && state.list.length < state.total) await load(true);
  const entry = state.list[there];
  if (entry) await open({split: $("split").value, photo: entry.id});
  else tell(by > 0 ? "that was the last photo of the list" : "that is the first photo of the list");
}

// One photo

async function open(place, point = null) {
  const turn = ++state.turn;
  tell("passing the photo through the network ...");
  const photo = await ask("photo", place);
  const picture = await loadPicture(`/api/picture?${new URLSearchParams(place)}`);
  if (turn !== state.turn) return;
  Object.assign(state, {place, photo, picture, layers: {}, maps: {}, hover: null});
  state.point = point ?? [Math.floor(photo.width / 2), Math.floor(photo.height / 2)];
  $("look").hidden = false;
  $("name").textContent = photo.name;
  $("tags").textContent = `${photo.found ? "found by the network" : "tags"}: ${photo.labels.join(", ") || "none"}; ` +
    `${photo.width} x ${photo.height} pixels, ${photo.grid[1]} x ${photo.grid[0]} tokens` +
    (photo.truth ? "" : "; no true mask, so no scores");
  showVerdict(photo.verdict);
  [...$("photos").children].forEach((item, number) => {
    item.firstChild.setAttribute("aria-current", String(isShown(state.list[number].id)));
  });
  panels.truth.figure.hidden = !photo.truth;
  tell("");
  remember();
  drawAll();
  pointed();
  relabelled();
  for (const name of state.about.masks) {
    if (name === "truth" && !photo.truth) continue;
    const mask = await ask("mask", {...place, mask: name});
    if (turn !== state.turn) return;
    state.layers[name] = {...await decode(mask.png), miou: mask.miou};
    draw(name);
  }
}

function loadPicture(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the photo cannot be shown"));
    image.src = source;
  });
}

/** A mask: red is the class, green its probability in 1/255. */
async function decode(png) {
  const image = await loadPicture(`data:image/png;base64,${png}`);
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const label = new Uint8Array(pixels.length / 4), probability = new Uint8Array(pixels.length / 4);
  for (let place = 0; place < label.length; place++) {
    label[place] = pixels[4 * place];
    probability[place] = pixels[4 * place + 1];
  }
  return {label, probability};
}

function remember() {
  const [x, y] = state.point;
  history.replaceState(null, "", `#${new URLSearchParams({...state.place, x, y})}`);
}

// Maps of the point, and the pseudo label

const pointed = latest(async signal => {
  const [x, y] = state.point, place = state.place, [layer, head] = $("heads").value.split("/");
  const maps = await ask("maps", {...place, x, y, ...(layer && {layer}), ...(head && {head})}, {signal});
  if (place !== state.place) return;
  state.maps = {attention: maps.attention, affinity: maps.affinity};
  panels.attention.title = maps.title;
  remember();
  draw("attention");
  draw("affinity");
}, 0);

const relabelled = latest(async signal => {
  const place = state.place;
  const label = await ask("label", {...place, ...values(), walk: $("walk").value}, {signal});
  const layer = {...await decode(label.png), miou: label.miou, exact: true};
  if (place !== state.place) return;
  state.layers["pseudo label"] = layer;
  const ignored = `${(100 * label.ignored).toFixed(1)} % ignored, where beta_low and beta_high disagree`;
  $("score").textContent = label.miou === null ? ignored
    : `mIoU ${label.miou.toFixed(1)} % at beta_low against the truth of this photo; ${ignored}`;
  draw("pseudo label");
}, 40);

function values() {
  const chosen = {"cam.refiner": $("refiner").value};
  for (const key of Object.keys(SLIDERS)) chosen[key] = $(key).value;
  return chosen;
}

/** The options that make a training use what is chosen here. */
function options() {
  const chosen = Object.entries(values()).filter(([key, value]) => String(state.about.values[key]) !== String(value));
  if ($("walk").value === "off" && state.about.affinity) chosen.push(["affinity.enabled", "false"]);
  return chosen.map(([key, value]) => `--set ${key}=${value}`).join(" ");
}

function setControls() {
  for (const [key, slider] of Object.entries(SLIDERS)) {
    $(key).max = Math.max(slider.max, state.about.values[key]);
    $(key).value = state.about.values[key];
    $(key).previousSibling.value = $(key).value;
  }
  $("refiner").value = state.about.values["cam.refiner"];
  $("walk").value = state.about.affinity ? "affinity" : "off";
  showOptions();
}

function showOptions() {
  $("set").textContent = options();
}

function moved(key) {
  const low = $("cam.beta_low"), high = $("cam.beta_high");
  // Each of the two takes the other along.
  if (Number(low.value) > Number(high.value)) (key === "cam.beta_low" ? high : low).value = $(key).value;
  for (const name of Object.keys(SLIDERS)) $(name).previousSibling.value = $(name).value;
  showOptions();
  relabelled();
}

// Drawing

function addPanel(name, title, row) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption"), heading = document.createElement("b"), value = line("");
  caption.append(heading, value);
  figure.append(canvas, caption);
  $(row).append(figure);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  panels[name] = {figure, canvas, heading, value, title};
  const at = event => {
    const box = canvas.getBoundingClientRect();
    const inside = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
    return [inside((event.clientX - box.left) / box.width, state.photo.width),
      inside((event.clientY - box.top) / box.height, state.photo.height)];
  };
  canvas.onpointermove = event => { state.hover = at(event); showValues(); };
  canvas.onpointerleave = () => { state.hover = null; showValues(); };
  canvas.onclick = event => { state.point = at(event); drawAll(); pointed(); };
  canvas.onkeydown = event => {
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    const {width, height, grid} = state.photo;
    state.point = [Math.min(width - 1, Math.max(0, Math.round(state.point[0] + move[0] * width / grid[1]))),
      Math.min(height - 1, Math.max(0, Math.round(state.point[1] + move[1] * height / grid[0])))];
    drawAll();
    pointed();
  };
}

function drawAll() {
  for (const name of Object.keys(panels)) draw(name);
  showLegend();
}

function draw(name) {
  const {canvas, heading, title} = panels[name], {width, height} = state.photo;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d"), map = state.maps[name], layer = state.layers[name];
  context.filter = map ? "grayscale(1)" : "none";
  context.drawImage(state.picture, 0, 0, width, height);
  context.filter = "none";
  if (map) drawMap(context, map);
  if (layer) drawLayer(context, layer);
  drawPoint(context);
  const score = layer?.miou === undefined || layer?.miou === null ? "" : `, mIoU ${layer.miou.toFixed(1)}`;
  heading.textContent = `${title}${score}`;
  canvas.setAttribute("aria-label", heading.textContent);
  if (layer) showLegend();
  showValues();
}

function drawMap(context, map) {
  const [rows, columns] = state.photo.grid, small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  map.values.forEach((value, place) => pixels.data.set([...state.about.colors[value], 255], 4 * place));
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.globalAlpha = 0.72;
  context.drawImage(small, 0, 0, state.photo.width, state.photo.height);
  context.globalAlpha = 1;
}

function drawLayer(context, layer) {
  const {width, height} = state.photo, over = new OffscreenCanvas(width, height), pixels = new ImageData(width, height);
  const strength = 255 * Number($("strength").value);
  layer.label.forEach((value, place) => {
    if (value) pixels.data.set([...state.about.palette[value], strength], 4 * place);
  });
  over.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(over, 0, 0);
}

function drawPoint(context) {
  const [x, y] = state.point, reach = Math.max(5, state.photo.width / 40);
  for (const [color, thickness] of [["#000", 5], ["#ffd400", 2.5]]) {
    context.strokeStyle = color;
    context.lineWidth = thickness;
    context.beginPath();
    context.arc(x + 0.5, y + 0.5, reach, 0, 2 * Math.PI);
    context.moveTo(x - 2 * reach, y + 0.5); context.lineTo(x - reach, y + 0.5);
    context.moveTo(x + reach, y + 0.5); context.lineTo(x + 2 * reach, y + 0.5);
    context.moveTo(x + 0.5, y - 2 * reach); context.lineTo(x + 0.5, y - reach);
    context.moveTo(x + 0.5, y + reach); context.lineTo(x + 0.5, y + 2 * reach);
    context.stroke();
  }
}

function className(value) {
  if (value === IGNORE) return "ignored";
  return value ? state.about.classes[value - 1] : "background";
}

/** What each panel has under the pointer, or at the point where there is no pointer. */
function showValues() {
  if (!state.photo) return;
  const [x, y] = state.hover ?? state.point, {width, height, grid} = state.photo;
  for (const [name, panel] of Object.entries(panels)) {
    const map = state.maps[name], layer = state.layers[name];
    let text = name === "photo" ? `${x}, ${y}` : "";
    if (map) {
      const share = map.values[Math.floor(y * grid[0] / height) * grid[1] + Math.floor(x * grid[1] / width)] / 255;
      text = `${(map.low + share * (map.high - map.low)).toPrecision(3)} here; ` +
        `${map.low.toPrecision(2)} to ${map.high.toPrecision(2)}`;
    }
    if (layer) {
      const value = layer.label[y * width + x], probability = layer.probability[y * width + x] / 255;
      text = className(value) + (name === "truth" || layer.exact ? "" : `, ${probability.toFixed(2)}`);
    }
    panel.value.textContent = text;
  }
}

function showLegend() {
  const present = new Set();
  for (const layer of Object.values(state.layers)) for (const value of layer.label) present.add(value);
  present.delete(0);
  $("legend").replaceChildren(...[...present].sort((a, b) => a - b).map(value => {
    const entry = document.createElement("span"), color = document.createElement("i");
    color.style.background = `rgb(${state.about.palette[value].join(",")})`;
    entry.append(color, className(value));
    return entry;
  }));
}

// Review

function showVerdict(verdict) {
  for (const button of $("review").querySelectorAll("[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
    button.disabled = state.place?.split === "own";
  }
}

function showCounts(counts) {
  $("counts").textContent = Object.entries(counts).map(([verdict, count]) => `${count} ${verdict}`).join(", ");
}

/** Keep a verdict and go to the next photo; the same verdict again takes it back. */
async function judge(verdict) {
  const place = state.place, entry = state.list.find(one => isShown(one.id));
  const again = state.photo.verdict === verdict;
  showCounts(await ask("verdict", {...place, verdict: again ? "" : verdict}, {method: "POST"}));
  state.photo.verdict = again ? "" : verdict;
  if (entry) entry.verdict = state.photo.verdict;
  showVerdict(state.photo.verdict);
  showList();
  if (!again && entry) await step(1);
}

// Start

function build() {
  addPanel("photo", "photo", "pointed");
  addPanel("attention", "MHSA", "pointed");
  addPanel("affinity", "learned affinity", "pointed");
  addPanel("pseudo label", "pseudo label", "pointed");
  for (const name of state.about.masks) addPanel(name, name, "masks");
  panels.affinity.figure.hidden = !state.about.affinity;
  for (const [key, {title, ...range}] of Object.entries(SLIDERS)) {
    const label = document.createElement("label"), output = document.createElement("output"), input = document.createElement("input");
    Object.assign(input, {type: "range", id: key, ...range});
    input.oninput = () => moved(key);
    label.append(line(title), output, input);
    $("sliders").append(label);
  }
  for (const [name, title] of Object.entries(state.about.refiners)) $("refiner").add(new Option(title, name));
  if (!state.about.affinity) $("walk").querySelector("[value=affinity]").remove();
  $("heads").add(new Option("all heads", ""));
  for (let layer = state.about.layers; layer >= 1; layer--) {
    $("heads").add(new Option(`layer ${layer}`, layer));
    for (let head = 1; head <= state.about.heads; head++) $("heads").add(new Option(`layer ${layer}, head ${head}`, `${layer}/${head}`));
  }
  for (const name of state.about.splits) $("split").add(new Option(name, name));
  $("split").value = state.about.first_split;
  if (!$("split").value) $("split").selectedIndex = 0;
  setControls();
}

function listen() {
  const reload = () => attempt(() => load());
  $("split").onchange = reload;
  $("order").onchange = reload;
  $("search").oninput = latest(() => load(), 200);
  $("more").onclick = () => attempt(() => load(true));
  for (const id of ["walk", "refiner"]) $(id).onchange = () => { showOptions(); relabelled(); };
  $("heads").onchange = pointed;
  $("strength").oninput = drawAll;
  $("reset").onclick = () => { setControls(); relabelled(); };
  $("copy").onclick = () => attempt(async () => {
    const text = options();
    if (text) await navigator.clipboard.writeText(text);
    tell(text ? "copied" : "these are the run's own values: there is nothing to set");
  });
  $("figure").onclick = () => attempt(async () => {
    const [x, y] = state.point, [layer, head] = $("heads").value.split("/");
    const asked = {...state.place, x, y, ...values(), walk: $("walk").value, ...(layer && {layer}), ...(head && {head})};
    tell(`saved: ${(await ask("figure", asked, {method: "POST"})).file}`);
  });
  $("previous").onclick = () => attempt(() => step(-1));
  $("next").onclick = () => attempt(() => step(1));
  for (const button of $("review").querySelectorAll("[data-verdict]")) {
    button.onclick = () => attempt(() => judge(button.dataset.verdict));
  }
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const verdict = {k: "keep", w: "wrong", u: "unsure"}[event.key.toLowerCase()], by = {n: 1, p: -1}[event.key.toLowerCase()];
    if (verdict && state.place && state.place.split !== "own") attempt(() => judge(verdict));
    if (by) attempt(() => step(by));
  });
  $("own").onchange = () => attempt(() => takeOwn($("own").files[0]));
  document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("drop").classList.remove("over");
    attempt(() => takeOwn(event.dataTransfer.files[0]));
  });
}

async function takeOwn(file) {
  if (file) await open(await ask("own", {name: file.name}, {method: "POST", body: file}));
}

attempt(async () => {
  state.about = await ask("run");
  document.title = `${state.about.run} - afactl explore`;
  $("run").textContent = `${state.about.run}, step ${state.about.step}`;
  build();
  listen();
  showCounts(state.about.counts);
  const asked = new URLSearchParams(location.hash.slice(1)), split = asked.get("split");
  if (state.about.splits.includes(split)) $("split").value = split;
  if (state.about.no_photos) {
    tell(`No photos of the run's dataset: ${state.about.no_photos}. Drop some of your own.`, true);
    return;
  }
  await load();
  const place = {split: $("split").value, photo: asked.get("photo") ?? state.list[0]?.id};
  const point = asked.has("x") ? [Number(asked.get("x")), Number(asked.get("y"))] : null;
  if (place.photo !== undefined && split !== "own") await open(place, point);
});
