// The page: takes files, lists results with those to look at first, and shows one of them.

import { fetchHeatmap, fetchModel, fetchTraining, predict } from "./api.js";
import { Viewer, decode } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const MARKS = { bad: "✕", review: "!", good: "✓" };
const FILES_AT_ONCE = 200;  // in a request
let model, results = [], notes = [], shown = null, upload = null, heating = null;

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
  const found = [];
  for (const each of inside) found.push(...await readEntry(each, `${path}${entry.name}/`));
  return found;
}

async function take(files) {
  if (!files.length) return;
  upload?.abort();
  upload = new AbortController();
  const { signal } = upload;
  results = [];
  notes = [];
  shown = null;
  $("list").replaceChildren();
  $("view").hidden = $("answer").hidden = $("actions").hidden = true;
  $("progress").hidden = false;
  $("progress").max = files.length;
  $("progress").value = 0;
  let failure = "";
  const names = new Set();
  for (const part of divide(files)) {
    try {
      await predict(part, (result) => {
        if (signal.aborted) return;
        add(result);
        if (result.kind === "slice") names.add(result.file.replace(/#\d+$/, ""));
        $("progress").value = Math.min(files.length, names.size);
        $("status").textContent = `${results.length} results`;
      }, signal);
    } catch (error) {
      if (signal.aborted) return;
      failure = error.message;
      for (const { path } of part) {
        if (!names.has(path)) add({ kind: "slice", file: path, error: failure, nearest: [] });
      }
    }
  }
  $("progress").hidden = true;
  const count = (kind) => results.filter((each) => classify(each) === kind).length;
  $("status").textContent = [`${results.length} results`, `${count("review")} need review`,
    `${count("bad")} out of distribution or unreadable`, ...notes].join("; ");
  $("actions").hidden = !results.length;
}

// Divides files into requests; a folder stays together, so that its series is found.
function divide(files) {
  const folders = Map.groupBy(files, ({ path }) => path.split("/").slice(0, -1).join("/"));
  const parts = [[]];
  for (const inside of folders.values()) {
    if (parts.at(-1).length + inside.length > FILES_AT_ONCE && parts.at(-1).length) parts.push([]);
    parts.at(-1).push(...inside);
  }
  return parts;
}

// ---- list

function classify(result) {
  if (result.error || result.out_of_distribution) return "bad";
  return result.needs_review ? "review" : "good";
}

function add(result) {
  if (result.kind === "note") return notes.push(result.note);
  results.push(result);
  const rank = (each) => [each.kind === "slice" ? 1 : 0,
    ["bad", "review", "good"].indexOf(classify(each))];
  const place = results.indexOf(result);
  result.rank = [...rank(result), place];
  results.sort((one, other) => {
    for (let i = 0; i < 3; i++) if (one.rank[i] !== other.rank[i]) return one.rank[i] - other.rank[i];
    return 0;
  });
  const item = element("li");
  const kind = classify(result);
  item.id = `result-${place}-${Date.now()}`;
  item.role = "option";
  item.append(element("b", MARKS[kind], kind), element("span", result.file));
  const text = result.error ? "unreadable" : `${result.predicted} ${percent(result.confidence)}`;
  item.append(element("span", text, kind));
  item.addEventListener("click", () => select(result));
  result.item = item;
  const next = results[results.indexOf(result) + 1];
  $("list").insertBefore(item, next?.item ?? null);
  if (!shown && result.kind === "slice" && !result.error) select(result);
}

function step(by) {
  const place = results.indexOf(shown) + by;
  if (results[place]) select(results[place]);
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
  $("view").hidden = !result.picture;
  if (!result.picture) return;
  const bytes = Uint8Array.from(atob(result.picture), (letter) => letter.charCodeAt(0));
  result.blob ??= new Blob([bytes], { type: "image/png" });
  const slice = await decode(result.blob);
  if (shown !== result) return;
  viewer.show(slice);
  $("canvas").setAttribute("aria-label", `Slice ${result.file}: ${result.predicted}`);
  $("position").textContent = `${results.indexOf(result) + 1} of ${results.length}`;
  $("target").value = result.predicted;
  await heat();
}

function describe(result) {
  $("answer").hidden = false;
  $("name").textContent = result.file;
  const kind = classify(result);
  const titles = { bad: result.error ? "No prediction:" : "Out of distribution:",
    review: "Needs review by a radiologist:", good: "No flag:" };
  const text = result.error ?? (result.review || `mean over the slices of a ${result.kind}.`);
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
    flag(each.out_of_distribution), each.error]);
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
}, step);

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
  const found = await Promise.all(entries.filter(Boolean).map((entry) => readEntry(entry)));
  take(found.flat());
});
$("csv").addEventListener("click", download);
$("clear").addEventListener("click", () => location.reload());
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
  ArrowUp: () => step(-1), ArrowDown: () => step(1), "+": () => viewer.setZoom(viewer.zoom * 1.25),
  "-": () => viewer.setZoom(viewer.zoom / 1.25), r: () => viewer.reset(),
  h: () => { viewer.opacity = viewer.opacity ? 0 : Number($("opacity").value); viewer.draw(); },
};
for (const id of ["list", "canvas"]) {
  $(id).addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    KEYS[event.key]();
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
