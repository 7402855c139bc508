// The page: it draws what the server counts. Everything that comes from a file is written as text, never as HTML.

const ROW = 2.6 * parseFloat(getComputedStyle(document.documentElement).fontSize); // pixels of a row of the list
const NAMED = 12; // marks whose names are drawn unasked
const STEP = 0.05;
const ZOOM = 3;
const NARROW = 900; // pixels of a window up to which the parts of the page stand one above the other, as in page.css
const [BELOW, LEAST] = [140, 200]; // pixels for the words below a picture, and of its height at least
const get = (id) => document.getElementById(id);
const state = { start: null, rows: [], totals: [], kind: "", at: 0, image: null, number: -1, chosen: null, asked: 0 };
const shown = { truth: true, runs: [true, true], names: false, zoom: false };

async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function made(tag, text = "", classes = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = classes;
  return element;
}

function button(text, pressed, act, classes = "") {
  const element = made("button", text, classes);
  element.type = "button";
  element.setAttribute("aria-pressed", pressed);
  element.addEventListener("click", act);
  return element;
}

// New content of a part of the page; a button that had the focus has it again
function renew(place, parts) {
  const focused = [...place.querySelectorAll("button")].indexOf(document.activeElement);
  place.replaceChildren(...parts);
  if (focused >= 0) place.querySelectorAll("button")[focused]?.focus({ preventScroll: true });
}

const score = () => Number(get("score").value);
const chosenNumber = (id) => Number(get(id).value);
const complain = (error) => {
  get("fault").textContent = `${String(error.message ?? error).trim()}; is the command still running?`;
};

// The list of images and the totals, as the server counts them

async function refresh() {
  const ticket = ++state.asked;
  const query = new URLSearchParams({
    score: score(), label: get("label").value, size: get("size").value, order: get("order").value });
  if (state.kind) query.set("kind", state.kind);
  const found = await load(`list.json?${query}`);
  if (ticket !== state.asked) return; // a newer question is on its way
  [state.rows, state.totals] = [found.rows, found.totals];
  const again = state.rows.findIndex((row) => row[0] === state.number);
  drawTotals();
  await open(again >= 0 ? again : 0);
  document.body.dataset.counted = query; // for those who wait for the counts
}

function drawTotals() {
  const table = get("totals"), head = made("tr"), kinds = Object.entries(state.start.kinds);
  head.append(made("th", "run"), made("th", "objects"), made("th", "right"), made("th", "not found"));
  for (const [kind, meaning] of kinds) {
    const cell = made("th"), choose = button(kind, state.kind === kind, () => pick(kind));
    choose.title = meaning;
    cell.append(choose);
    head.append(cell);
  }
  head.append(made("th", "precision"), made("th", "recall"));
  const rows = state.totals.map((total, run) => {
    const row = made("tr"), objects = total.right + total.unfound;
    const wrong = kinds.reduce((sum, [kind]) => sum + (kind === "Miss" ? 0 : total[kind]), 0);
    const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "-");
    const name = state.start.runs[run] + (state.start.judged[run] === "masks" ? " (by masks)" : "");
    const cells = [name, objects, total.right, total.unfound, ...kinds.map(([kind]) => total[kind]),
      share(total.right, total.right + wrong), share(total.right, objects)];
    row.append(...cells.map((text) => made("td", text)));
    return row;
  });
  renew(table, [head, ...rows]);
}

function pick(kind) {
  state.kind = state.kind === kind ? "" : kind;
  refresh().catch(complain);
}

function drawList() {
  const list = get("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(state.rows.length, first + Math.ceil(list.clientHeight / ROW) + 9);
  get("space").style.height = `${state.rows.length * ROW}px`;
  const lines = [];
  for (let i = first; i < last; i++) {
    const [number, ...counts] = state.rows[i], line = made("div", "", "row"), numbers = made("div");
    line.style.top = `${i * ROW}px`;
    line.id = `row${i}`;
    line.setAttribute("role", "option");
    line.setAttribute("aria-selected", i === state.at);
    line.addEventListener("click", () => open(i).catch(complain));
    for (let run = 0; run < state.totals.length; run++) {
      const [right, wrong, unfound, errors] = counts.slice(4 * run, 4 * run + 4);
      if (run) numbers.append(made("span", "|"));
      numbers.append(made("span", `${right} ✓`, "right"));
      if (state.kind) numbers.append(made("span", `${errors} ${state.kind}`)); // beside all others a second run would not fit
      else numbers.append(made("span", `${wrong} ✗`, "wrong"), made("span", `${unfound} ○`, "lost"));
    }
    line.title = state.start.images[number];
    line.append(made("div", state.start.images[number]), numbers);
    lines.push(line);
  }
  get("space").replaceChildren(...lines);
  list.setAttribute("aria-activedescendant", `row${state.at}`);
}

// The image

async function open(at) {
  state.at = Math.min(Math.max(at, 0), Math.max(state.rows.length - 1, 0));
  const list = get("list"), top = state.at * ROW;
  if (top < list.scrollTop || top + ROW > list.scrollTop + list.clientHeight) {
    list.scrollTop = top - (list.clientHeight - ROW) / 2;
  }
  get("space").style.height = `${state.rows.length * ROW}px`;
  drawList();
  get("stage").hidden = !state.rows.length;
  if (!state.rows.length) {
    [state.image, state.number, state.chosen] = [null, -1, null];
    get("name").textContent = "No image has any of these.";
    get("place").textContent = get("said").textContent = get("fault").textContent = "";
    return get("items").replaceChildren();
  }
  const number = state.rows[state.at][0];
  get("place").textContent = `${state.at + 1} of ${state.rows.length}`;
  if (number !== state.number) {
    state.number = number;
    const asked = Promise.all([load(`image/${number}.json`), pictureOf(number)]);
    const [image, [picture, fault]] = await asked.catch((error) => { state.number = -1; throw error; });
    if (number !== state.number) return; // another one is asked for meanwhile
    [state.image, state.chosen] = [image, null];
    if (get("items").contains(document.activeElement)) document.activeElement.blur(); // it was of the other image
    get("picture").replaceWith(picture); // together with its marks
    get("fault").textContent = fault;
    get("name").textContent = image.name;
  }
  draw();
}

// The picture when it can be shown, and why it cannot
async function pictureOf(number) {
  const picture = new Image();
  [picture.id, picture.alt, picture.src] = ["picture", state.start.images[number], `image/${number}.jpg`];
  try {
    await picture.decode();
    return [picture, ""];
  } catch {
    picture.hidden = true;
    return [picture, await fetch(picture.src).then((answer) => answer.text(), String)];
  }
}

const fits = (mark) => (chosenNumber("label") < 0 || mark.label === chosenNumber("label")) &&
  (chosenNumber("size") < 0 || mark.size === chosenNumber("size"));

// Of each object and run: the detection that finds it, and whether it is missed from this score on
function fates(run) {
  const detections = state.image.runs[run].detections;
  return state.image.objects.map((object, i) => {
    const hit = detections.find((d) => d.kind === "right" && d.object === i);
    const near = detections.some((d) => d.score >= score() && d.object === i && (d.kind === "Cls" || d.kind === "Loc"));
    const found = hit !== undefined && hit.score >= score();
    return { hit, found, missed: !found && !near };
  });
}

// What is drawn and listed: objects, then the detections of the runs that are shown, from this score on
function marks() {
  const all = [], runs = state.image.runs.map((_, run) => run).filter((run) => shown.runs[run]);
  const every = state.image.runs.map((_, run) => fates(run));
  const judges = runs.length ? runs : state.image.runs.map((_, run) => run);
  state.image.objects.forEach((object, i) => {
    const found = judges.every((run) => every[run][i].found);
    const ofKind = !state.kind || (state.kind === "Miss" && judges.some((run) => every[run][i].missed));
    all.push({ ...object, key: `o${i}`, run: -1, number: i, verdict: found ? "found" : "lost", fates: every.map((f) => f[i]),
      aside: !(fits(object) && ofKind), hidden: !shown.truth });
  });
  for (const run of runs) {
    state.image.runs[run].detections.forEach((found, i) => {
      if (found.score < score()) return;
      all.push({ ...found, key: `d${run}-${i}`, run, number: i, verdict: found.kind === "right" ? "right" : "wrong",
        aside: !(fits(found) && (!state.kind || state.kind === found.kind)), hidden: false });
    });
  }
  return all;
}

const title = (mark) => state.start.classes[mark.label] + (mark.run < 0 ? "" : ` ${mark.score.toFixed(2)}`);

function draw() {
  const all = marks();
  drawSwitches();
  layOut();
  drawMarks(all.filter((mark) => !mark.hidden));
  drawItems(all);
  const chosen = all.find((mark) => mark.key === state.chosen);
  get("said").textContent = chosen ? said(chosen) : "";
}

function layOut() {
  const { width, height } = state.image, room = get("room").clientWidth;
  const above = get("room").getBoundingClientRect().top + window.scrollY;
  const high = Math.max(window.innerWidth > NARROW ? window.innerHeight - above - BELOW : window.innerHeight / 2, LEAST);
  const scale = Math.min(room / width, high / height) * (shown.zoom ? ZOOM : 1);
  get("room").style.maxHeight = shown.zoom ? `${high}px` : "none";
  get("room").style.overflow = shown.zoom ? "auto" : "visible";
  get("stage").style.width = `${width * scale}px`;
  get("stage").style.height = `${height * scale}px`;
  get("marks").setAttribute("viewBox", `0 0 ${width} ${height}`);
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function way(mark) {
  const [x, y, w, h] = mark.box;
  const loops = mark.outlines.length ? mark.outlines : [[x, y, x + w, y, x + w, y + h, x, y + h]];
  return loops.map((loop) => `M${loop.join(" ")}Z`).join("");
}

function drawMarks(all) {
  const size = 13 * state.image.width / Math.max(get("stage").clientWidth, 1);
  const nameable = (mark) => !mark.aside && (mark.run >= 0 || mark.verdict === "lost");
  const few = all.filter(nameable).length <= NAMED;
  const picked = all.find((mark) => mark.key === state.chosen);
  const depth = (mark) => (mark === picked ? -1 : mark.box[2] * mark.box[3]); // small ones and the chosen one on top
  const finds = (detection, object) => object.run < 0 && detection.run >= 0 && detection.object === object.number;
  const belongs = (mark) => finds(picked, mark) || finds(mark, picked);
  const groups = [...all].sort((a, b) => depth(b) - depth(a)).map((mark) => {
    const chosen = mark === picked;
    const dim = picked ? !chosen && !belongs(mark) : mark.aside;
    const classes = [mark.verdict, mark.run < 0 ? "object" : mark.run ? "second" : "first", dim ? "aside" : "",
      mark.outlines.length ? "masked" : "", chosen ? "chosen" : ""];
    const group = svg("g", { class: classes.join(" "), "data-key": mark.key });
    group.append(svg("path", { d: way(mark) }));
    group.addEventListener("click", () => choose(mark.key));
    if (chosen || !dim && nameable(mark) && (shown.names || few)) {
      const [, top, , high] = mark.box; // names of objects below, of right detections above, of wrong ones inside
      const y = { found: top + high + size, lost: top + high + size, right: top - size / 4, wrong: top + size }[mark.verdict];
      const [inX, inY] = [Math.max(mark.box[0], 0) + size / 5, Math.min(Math.max(y, size), state.image.height - size / 4)];
      const text = svg("text", { x: inX, y: inY, "stroke-width": size / 5 });
      text.style.fontSize = `${size}px`;
      text.textContent = title(mark) + (mark.kind && mark.kind !== "right" ? ` ${mark.kind}` : "");
      group.append(text);
    }
    return group;
  });
  get("marks").replaceChildren(...groups);
}

function drawSwitches() {
  const items = [button("Truth (t)", shown.truth, () => toggle("t"))];
  state.start.runs.forEach((name, run) => {
    items.push(button(state.start.runs.length > 1 ? `${name} (${run + 1})` : "Detections (d)", shown.runs[run],
      () => toggle(String(run + 1))));
  });
  items.push(button("Names (n)", shown.names, () => toggle("n")), button("Zoom (z)", shown.zoom, () => toggle("z")));
  renew(get("switches"), items);
}

function drawItems(all) {
  const lists = [];
  const list = (name, part, note) => {
    lists.push(made("h3", `${name}: ${part.length}`));
    for (const mark of part) {
      const item = button("", mark.key === state.chosen, () => choose(mark.key), mark.aside ? "aside" : "");
      item.append(made("span", title(mark)), made("span", note(mark), mark.verdict));
      item.dataset.key = mark.key;
      lists.push(item);
    }
  };
  const misses = (mark) => mark.fates.map((fate) => (fate.found ? "found" : fate.missed ? "Miss" : "not found")).join(" | ");
  list("Objects", all.filter((mark) => mark.run < 0), misses);
  state.start.runs.forEach((name, run) => {
    const own = all.filter((mark) => mark.run === run);
    if (shown.runs[run]) list(state.start.runs.length > 1 ? name : "Detections", own, (mark) => mark.kind);
  });
  const kept = get("items").scrollTop;
  renew(get("items"), lists);
  get("items").scrollTop = kept;
}

// A sentence about the chosen mark

function said(mark) {
  const size = state.start.sizes[mark.size], place = mark.box.map((value) => Math.round(value)).join(", ");
  if (mark.run < 0) {
    const who = (run) => (state.start.runs.length > 1 ? `${state.start.runs[run]}: ` : "");
    const fate = mark.fates.map((f, run) => who(run) + fateOf(f, run, mark.number));
    return `Object ${title(mark)}, ${size}, box ${place} (x, y, width, height). ${fate.join(" ")}`;
  }
  const object = state.image.objects[mark.object];
  const target = object ? ` The object is ${state.start.classes[object.label]}, IoU ${mark.iou.toFixed(2)}.` : "";
  const verdict = mark.kind === "right" ? "right" : `${mark.kind}: ${state.start.kinds[mark.kind]}`;
  return `Detection ${title(mark)}, box ${place} (x, y, width, height): ${verdict}.${target}`;
}

function fateOf(fate, run, number) {
  if (fate.found) return `Found with score ${fate.hit.score.toFixed(2)}, IoU ${fate.hit.iou.toFixed(2)}.`;
  if (fate.hit) return `Found with score ${fate.hit.score.toFixed(2)} alone, which is below the one chosen above.`;
  const step = state.image.runs[run].lost[number];
  return step ? `Not found at any score. Lost as \u201c${step}\u201d: ${state.start.steps[step]}.` : "Not found at any score.";
}

function choose(key) {
  state.chosen = state.chosen === key ? null : key;
  draw();
  document.querySelector(`#items [data-key="${key}"]`)?.scrollIntoView({ block: "nearest" });
  if (shown.zoom) document.querySelector("#marks .chosen")?.scrollIntoView({ block: "center", inline: "center" });
}

// Keys and controls

function toggle(key) {
  if (key === "t") shown.truth = !shown.truth;
  if (key === "n") shown.names = !shown.names;
  if (key === "z") shown.zoom = !shown.zoom;
  if (key === "d") shown.runs.fill(!shown.runs.some((on, run) => on && run < state.start.runs.length));
  if (key === "1") shown.runs[0] = !shown.runs[0];
  if (key === "2" && state.start.runs.length > 1) shown.runs[1] = !shown.runs[1];
  if (state.image) draw();
}

let waiting = 0;
function move() {
  get("least").textContent = score().toFixed(2);
  if (state.image) draw();
  clearTimeout(waiting);
  waiting = setTimeout(() => refresh().catch(complain), 60);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || get("help").open) return;
  const key = event.key, own = event.target.matches?.("input, select");
  if (own && /^(Arrow|Home|End|Page)/.test(key) || event.target.matches?.("select")) return; // the control's own keys
  const go = { ArrowRight: state.at + 1, ArrowDown: state.at + 1, j: state.at + 1, ArrowLeft: state.at - 1,
    ArrowUp: state.at - 1, k: state.at - 1, Home: 0, End: state.rows.length - 1 }[key];
  if (go !== undefined) open(go).catch(complain);
  else if ("td12nz".includes(key)) toggle(key);
  else if (key === "?") get("help").showModal();
  else if (key === "Escape" && state.chosen) choose(state.chosen);
  else if (key === "-" || key === "+" || key === "=") {
    get("score").value = score() + (key === "-" ? -STEP : STEP);
    move();
  } else return;
  event.preventDefault();
}

function fill(id, names, first) {
  get(id).replaceChildren(...(first ? [new Option(first, -1)] : []), ...names.map(([name, value]) => new Option(name, value)));
  get(id).addEventListener("change", () => refresh().catch(complain));
}

async function begin() {
  const start = state.start = await load("data.json");
  const orders = { errors: "most errors", split: "as in the split", worse: "second run worse", better: "second run better" };
  const numbered = (names) => names.map((name, i) => [name, i]);
  document.title = get("title").textContent = start.runs.join(" | ");
  fill("label", numbered(start.classes), "all");
  fill("size", numbered(start.sizes), "all");
  fill("order", start.orders.map((name) => [orders[name], name]));
  get("kinds").replaceChildren(...Object.entries(start.kinds).map(([kind, meaning]) => {
    const row = made("tr");
    row.append(made("td", kind), made("td", meaning));
    return row;
  }));
  get("score").addEventListener("input", move);
  get("score").addEventListener("pointerup", () => get("score").blur()); // so that arrows walk through the images again
  get("list").addEventListener("scroll", drawList);
  get("back").addEventListener("click", () => open(state.at - 1).catch(complain));
  get("on").addEventListener("click", () => open(state.at + 1).catch(complain));
  get("ask").addEventListener("click", () => get("help").showModal());
  window.addEventListener("resize", () => { drawList(); if (state.image) draw(); });
  document.addEventListener("keydown", press);
  await refresh();
}

begin().catch(complain);
