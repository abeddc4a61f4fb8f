// The page: takes files, lists results with those to look at first, and shows one of them.

import { fetchHeatmap, fetchModel, fetchTraining, predict } from "./api.js";
import { Viewer, decode } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const MARKS = { bad: "✕", review: "!", open: "?", good: "✓" };
const KINDS = Object.keys(MARKS);  // in the order of the list
const FILES_AT_ONCE = 1000, BYTES_AT_ONCE = 500 * 2 ** 20;  // in a request
const PAUSE_MS = 150;  // before a heat map is asked for, so that turning pages asks for none
let model, results = [], notes = [], unread = 0, shown = null, upload = null, heating = null;

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function box(kind, title, text) {
  const made = element("div", "", `box ${kind}`);
  made.append(element("b", `${MARKS[kind]} ${title} `), element("span", text));
  return made;
}

// ---- files

async function readEntry(entry, path = "") {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: path + file.name }];
  }
  const reader = entry.createReader(), inside = [];
  for (;;) {  // a reader returns its entries in parts
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) break;
    inside.push(...part);
  }
  inside.sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  return readEntries(inside, `${path}${entry.name}/`);
}

// Reads files and folders; what the browser cannot read is counted in `unread`.
async function readEntries(entries, path = "") {
  const found = [];
  for (const each of entries) {
    try {
      found.push(...await readEntry(each, path));
    } catch {
      unread += 1;
    }
  }
  return found;
}

function clear() {
  upload?.abort();
  heating?.abort();
  results = [];
  notes = [];
  shown = null;
  $("list").replaceChildren();
  $("view").hidden = $("answer").hidden = $("actions").hidden = $("progress").hidden = true;
  $("status").textContent = $("count").textContent = "";
  $("list").removeAttribute("aria-activedescendant");
}

async function take(files) {
  if (!files.length && !unread) return;
  clear();
  if (unread) notes.push(`${unread} files or folders could not be read by the browser`);
  unread = 0;
  upload = new AbortController();
  const { signal } = upload, parts = divide(files), names = new Set();
  $("progress").hidden = false;
  $("progress").max = files.length || 1;
  $("progress").value = 0;
  if (parts.length > 1) {
    notes.push("sent in several requests, so without means over series and patients; " +
      "use predict.py, or one archive");
  }
  for (const part of parts) {
    try {
      await predict(part, (result) => {
        if (signal.aborted || (parts.length > 1 && ["series", "patient"].includes(result.kind))) {
          return;  // its other slices may be in another part
        }
        add(result);
        if (result.kind === "slice") names.add(result.file.replace(/#\d+$/, ""));
        $("progress").value = Math.min(files.length, names.size);
        $("count").textContent = `${results.length} results`;
      }, signal);
    } catch (error) {
      if (signal.aborted) return;
      for (const { path } of part.filter((each) => !names.has(each.path))) {
        add({ kind: "slice", file: path, error: error.message, left: true });
      }
    }
  }
  $("progress").hidden = true;
  $("count").textContent = "";
  $("status").textContent = [`${results.length} results`, ...summarise(), ...notes].join("; ");
  $("actions").hidden = !results.length;
}

function summarise() {
  const count = (isOne) => results.filter(isOne).length;
  const isUnread = (each) => Boolean(each.error);
  const kinds = {
    "need review": (each) => classify(each) === "review",
    "out of distribution": (each) => !isUnread(each) && each.out_of_distribution,
    "not checked in full": (each) => classify(each) === "open",
    "unreadable": (each) => isUnread(each) && !each.left,
    "not predicted": (each) => each.left,
  };
  return Object.entries(kinds).map(([words, isOne]) => [count(isOne), words])
    .filter(([n, words]) => n || words === "need review").map(([n, words]) => `${n} ${words}`);
}

// Divides files into requests that the program takes.
function divide(files) {
  const parts = [];
  let left = 0;
  for (const each of files) {
    if (!parts.length || parts.at(-1).length === FILES_AT_ONCE || each.file.size > left) {
      parts.push([]);
      left = BYTES_AT_ONCE;
    }
    parts.at(-1).push(each);
    left -= each.file.size;
  }
  return parts;
}

// ---- list

function classify(result) {
  if (result.error || result.out_of_distribution) return "bad";
  if (result.needs_review) return "review";
  return [result.needs_review, result.out_of_distribution].includes(null) ? "open" : "good";
}

function describeFlag(result) {
  if (result.error) return result.left ? "not predicted" : "unreadable";
  if (result.out_of_distribution) return "out of distribution";
  return { review: "needs review", open: "not checked in full", good: "no flag" }[classify(result)];
}

function add(result) {
  if (result.kind === "note") return notes.push(result.note);
  if (result.picture) {
    const bytes = Uint8Array.from(atob(result.picture), (letter) => letter.charCodeAt(0));
    result.blob = new Blob([bytes], { type: "image/png" });
    delete result.picture;  // a copy of it
  }
  result.place = results.length;
  result.rank = [result.kind === "slice" ? 1 : 0, KINDS.indexOf(classify(result)), result.place];
  results.push(result);
  results.sort((one, other) => {
    for (let i = 0; i < 3; i++) if (one.rank[i] !== other.rank[i]) return one.rank[i] - other.rank[i];
    return 0;
  });
  const item = element("li");
  const kind = classify(result);
  item.id = `result-${result.place}-${Date.now()}`;
  item.role = "option";
  const mark = element("b", MARKS[kind], kind);
  mark.ariaHidden = "true";
  item.append(mark, element("span", result.file));
  const answer = result.error ? "" : `${result.predicted} ${percent(result.confidence)}, `;
  item.append(element("span", answer + describeFlag(result), kind));
  item.addEventListener("click", () => select(result));
  result.item = item;
  const next = results[results.indexOf(result) + 1];
  $("list").insertBefore(item, next?.item ?? null);
  if (!shown && result.kind === "slice" && !result.error) select(result);
  else showPosition();
}

// Selects the next of the list.
function step(by) {
  const next = results[results.indexOf(shown) + by];
  if (next) select(next);
}

// Shows the next slice in the order of the files and frames.
function turn(by) {
  const slices = listSlices();
  const next = slices[slices.indexOf(shown) + by];
  if (next) select(next);
}

function listSlices() {
  return results.filter((each) => each.blob).sort((one, other) => one.place - other.place);
}

function showPosition() {
  if (!shown?.blob) return;
  const slices = listSlices();
  $("position").textContent = `Slice ${slices.indexOf(shown) + 1} of ${slices.length}`;
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

// ---- one result

async function select(result) {
  shown?.item.setAttribute("aria-selected", "false");
  shown = result;
  result.item.setAttribute("aria-selected", "true");
  result.item.scrollIntoView({ block: "nearest" });
  $("list").setAttribute("aria-activedescendant", result.item.id);
  describe(result);
  heating?.abort();
  $("view").hidden = !result.blob;
  if (!result.blob) return;
  const slice = await decode(result.blob);
  if (shown !== result) return;
  viewer.show(slice);
  $("canvas").setAttribute("aria-label", `Slice ${result.file}: ${result.predicted}`);
  showPosition();
  $("target").value = result.predicted;
  await heat();
}

function describe(result) {
  $("answer").hidden = false;
  $("name").textContent = result.file;
  const kind = classify(result);
  const titles = { bad: result.error ? "No prediction:" : "Out of distribution:",
    review: "Needs review by a radiologist:", open: "Not checked in full:", good: "No flag:" };
  const unfitted = kind === "open" && result.out_of_distribution === null
    ? " Whether the image is like those of training was not fitted." : "";
  const text = (result.error ?? (result.review || `mean over the slices of a ${result.kind}.`))
    + unfitted;
  $("review").replaceWith(box(kind, titles[kind], text));
  document.querySelector("#answer .box").id = "review";
  $("bars").replaceChildren(...Object.entries(result.probabilities ?? {}).map(([name, prob]) => {
    const line = element("div", "", "bar"), meter = element("meter");
    meter.value = prob;
    meter.setAttribute("aria-label", `Probability of ${name}`);
    const label = element(name === result.predicted ? "b" : "span", name);
    line.append(label, meter, element("span", percent(prob)));
    return line;
  }));
  $("note").textContent = result.note ?? "";
  $("nearest-title").hidden = !result.nearest?.length;
  $("nearest").replaceChildren(...(result.nearest ?? []).map(showNeighbour));
}

function showNeighbour({ sha256, label, is_shown: isShown }) {
  const figure = element("figure");
  figure.append(element("figcaption", isShown ? label : `${label} (not in the data folder)`));
  if (isShown) {
    fetchTraining(sha256).then((blob) => {
      const image = element("img");
      image.alt = `Training slice, ${label}`;
      image.src = URL.createObjectURL(blob);
      image.onload = () => URL.revokeObjectURL(image.src);
      figure.prepend(image);
    }, () => {});
  }
  return figure;
}

// Computes the heat map of the shown slice for the chosen class, once.
async function heat() {
  const result = shown, name = $("target").value;
  heating?.abort();
  heating = new AbortController();
  const { signal } = heating;
  result.maps ??= {};
  viewer.setMap(null);
  $("legend").textContent = `The heat map for ${name} is being computed …`;
  if (!result.maps[name]) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  if (signal.aborted) return;
  try {
    result.maps[name] ??= await decode(await fetchHeatmap(result.blob, name, signal));
  } catch (error) {
    if (!signal.aborted) $("legend").textContent = error.message;
    return;
  }
  if (signal.aborted) return;
  viewer.setMap(result.maps[name]);
  $("legend").textContent = `Brighter colours contribute more to the score of ${name}. The heat ` +
    `map is not an outline of a tumour. ${model.heatmaps}`;
}

// ---- table

function writeTable() {
  const columns = ["file", "patient", "predicted", "confidence",
    ...model.classes.map((name) => `p_${name}`),
    "prediction_set", "needs_review", "out_of_distribution", "error"];
  const flag = (value) => (value === null || value === undefined ? "" : value ? "True" : "False");
  const name = (text) => (/^[=+\-@\t\r]/.test(text ?? "") ? `'${text}` : text);
  const lines = results.map((each) => [name(each.file), name(each.patient), each.predicted,
    each.confidence, ...model.classes.map((label) => each.probabilities?.[label]),
    (each.prediction_set ?? []).join("|"), flag(each.needs_review),
    flag(each.out_of_distribution), name(each.error)]);
  const quote = (cell) => {
    const text = String(cell ?? "");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...lines].map((cells) => `${cells.map(quote).join(",")}\n`).join("");
}

function download() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([writeTable()], { type: "text/csv" }));
  link.download = "predictions-research-use-only.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- events

const viewer = new Viewer($("canvas"), (level, span) => {
  $("level").value = level;
  $("width").value = span;
}, turn);

function chooseFrom(input) {
  input.addEventListener("change", () => {
    take([...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
    input.value = "";
  });
}
chooseFrom($("files"));
chooseFrom($("folder"));
for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
  });
}
addEventListener("drop", async (event) => {
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry());
  take(await readEntries(entries.filter(Boolean)));
});
$("csv").addEventListener("click", download);
$("clear").addEventListener("click", () => {
  clear();
  $("files").focus();
});
$("target").addEventListener("change", heat);
$("opacity").addEventListener("input", (event) => {
  viewer.opacity = Number(event.target.value);
  viewer.draw();
});
for (const id of ["level", "width"]) {
  $(id).addEventListener("input", () => {
    viewer.setWindow(Number($("level").value), Number($("width").value));
  });
}
$("reset").addEventListener("click", () => viewer.reset());
const KEYS = {
  "+": () => viewer.setZoom(viewer.zoom * 1.25), "-": () => viewer.setZoom(viewer.zoom / 1.25),
  r: () => viewer.reset(),
  h: () => { viewer.opacity = viewer.opacity ? 0 : Number($("opacity").value); viewer.draw(); },
};
const PANS = { ArrowUp: [0, 20], ArrowDown: [0, -20], ArrowLeft: [20, 0], ArrowRight: [-20, 0] };
const STEPS = { list: step, canvas: turn };
for (const [id, move] of Object.entries(STEPS)) {
  const arrows = { ArrowUp: () => move(-1), ArrowDown: () => move(1) };
  $(id).addEventListener("keydown", (event) => {
    const pan = event.shiftKey && PANS[event.key] && (() => viewer.pan(...PANS[event.key]));
    const act = pan || arrows[event.key] || KEYS[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
  });
}

try {
  model = await fetchModel();
  $("limit").textContent = model.limit;
  $("target").append(...model.classes.map((name) => new Option(name)));
  $("warnings").append(...model.warnings.map((line) => {
    const [title, ...rest] = line.split(": ");
    return box("review", `${title}:`, rest.join(": "));
  }));
} catch (error) {
  $("warnings").append(box("bad", "No answer:", error.message));
}
