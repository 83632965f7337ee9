// The status page, live: keeps all tasks in memory, shows those that match, in the order asked for.
import { dot, follow, keepTimesMoving, make, now, setServerTime, showBanners, when } from "./common.js";

const MOST_ROWS = 500;
// What needs a look comes first when sorted by status.
const STATUSES = ["Failed", "Assigning", "Paused", "Created", "Running", "Finished", "Cancelled"];

const tasks = new Map();
const rows = new Map();
const body = document.getElementById("tasks");
const filter = document.getElementById("filter");
const chips = [...document.querySelectorAll("#chips a")];
let chosen = new URLSearchParams(location.search).get("status") ?? "";
let sortBy = "task_id";
let rising = true;
let drawing = false;

// -- one row ---------------------------------------------------------------------------------------------------------------------

const faint = (text) => make("span", { class: "faint" }, text);
const isLooping = (task) => task.crash_looping && !(task.stable_at_ms && now() >= task.stable_at_ms);

function badge(text, kind) {
  return make("span", { class: `badge ${kind}` }, dot(), text);
}

// The parameters with places to break the line between them, not in their names.
const pairs = (text) => text.split(/(?<=,)(?=")/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));

function updateCell(task) {
  if (!task.update_state) return [faint("none")];
  const time = task.update_at_ms ? [" · ", when(task.update_at_ms)] : [];
  const at = make("span", { class: "faint nowrap" }, `v${task.update_version}`, ...time);
  const why = task.update_refused ? make("span", { class: "why bad" }, task.update_refused) : "";
  return [make("span", { class: `update ${task.update_state}` }, task.update_state), " ", at, why];
}

function fill(row, task) {
  const [, className, status, skald, parameters, update, situation, since] = row.cells;
  className.textContent = task.class_name ?? "not known";
  status.replaceChildren(badge(task.status, task.status.toLowerCase()), ...(isLooping(task) ? [" ", badge("Crash looping", "looping")] : []));
  skald.replaceChildren(task.skald ?? faint("nobody"), ...(task.epoch ? [" ", make("span", { class: "faint nowrap" }, `epoch ${task.epoch}`)] : []));
  parameters.replaceChildren(task.parameters ? make("code", {}, ...pairs(task.parameters)) : faint("none"));
  update.replaceChildren(...updateCell(task));
  situation.className = `tone ${task.tone}`;
  situation.replaceChildren(task.situation, ...(task.situation_at_ms ? [" ", when(task.situation_at_ms)] : []));
  since.replaceChildren(when(task.since_ms));
}

function rowOf(task) {
  const known = rows.get(task.task_id);
  if (known?.task === task && known.looping === isLooping(task)) return known.row;
  let row = known?.row;
  if (!row) {
    const cell = (label) => make("td", { "data-label": label });
    const link = make("a", { href: task.href }, task.task_id);
    row = make(
      "tr", { "data-id": task.task_id }, make("th", { scope: "row", "data-label": "Task" }, link),
      ...["Class", "Status", "Skald", "Parameters", "Applied", "Situation", "Since"].map(cell),
    );
  }
  fill(row, task);
  rows.set(task.task_id, { row, task, looping: isLooping(task) });
  return row;
}

// -- which rows, in which order --------------------------------------------------------------------------------------------------

function matches(task, words) {
  if (chosen && task.status !== chosen) return false;
  if (!words.length) return true;
  const text = `${task.task_id} ${task.class_name} ${task.skald} ${task.status} ${task.situation} ${task.parameters}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function sortKey(task) {
  if (sortBy === "status") return isLooping(task) ? -1 : STATUSES.indexOf(task.status);
  return task[sortBy] ?? "";
}

function compare(one, other) {
  const [a, b] = [sortKey(one), sortKey(other)];
  const order = a < b ? -1 : a > b ? 1 : 0;
  return (rising ? order : -order) || (one.task_id < other.task_id ? -1 : 1);
}

function draw() {
  drawing = false;
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...tasks.values()].filter((task) => matches(task, words)).sort(compare);
  const shown = found.slice(0, MOST_ROWS);
  const wanted = shown.map(rowOf);
  const keep = new Set(wanted);
  for (const row of [...body.children]) if (!keep.has(row)) row.remove();
  wanted.forEach((row, at) => {
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
  });
  const none = document.getElementById("no-tasks");
  none.hidden = found.length > 0;
  if (tasks.size) none.textContent = "No task matches.";
  const more = document.getElementById("more");
  more.hidden = found.length <= shown.length;
  more.textContent = `Shown are ${shown.length} of ${found.length}. Narrow the search to see the others.`;
  drawChips();
}

function drawChips() {
  const counts = new Map();
  for (const task of tasks.values()) counts.set(task.status, (counts.get(task.status) ?? 0) + 1);
  for (const chip of chips) {
    const status = chip.dataset.status;
    const count = status ? counts.get(status) ?? 0 : tasks.size;
    chip.querySelector("b").textContent = count;
    chip.classList.toggle("empty", Boolean(status) && !count);
    if (status === chosen) chip.setAttribute("aria-current", "true");
    else chip.removeAttribute("aria-current");
  }
}

function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}

// -- skalds ----------------------------------------------------------------------------------------------------------------------

const tags = (items) => (items.length ? items.flatMap((text) => [make("span", { class: "tag" }, text), " "]) : [faint("none")]);
const cell = (label, ...children) => make("td", { "data-label": label }, ...children);

function skaldRow(skald) {
  const meter = make("meter", { min: 0, max: Math.max(skald.capacity, 1), value: skald.load, "aria-hidden": "true" });
  const labels = Object.entries(skald.labels).sort().map(([name, value]) => `${name}=${value}`);
  const broken = skald.not_loadable.map((name) => make("span", { class: "why bad" }, `not loadable: ${name}`));
  return make(
    "tr", {},
    make(
      "th", { scope: "row", "data-label": "Skald" }, skald.skald_id, skald.is_this ? " " : "", skald.is_this ? make("span", { class: "tag" }, "this node") : "",
      skald.role === "both" ? "" : " ", skald.role === "both" ? "" : make("span", { class: "tag" }, skald.role),
      " ", make("span", { class: "faint nowrap", title: `incarnation ${skald.incarnation}` }, "incarnation ", make("span", { class: "mono" }, skald.incarnation.slice(0, 8))),
    ),
    cell("State", badge(skald.state, `state-${skald.state}`), skald.settings_differ ? make("span", { class: "why bad" }, "other settings than this node") : ""),
    cell("Load", make("span", { class: "load" }, meter, ` ${skald.load} / ${skald.capacity}`)),
    cell("Classes", ...tags(Object.keys(skald.classes).sort()), ...broken),
    cell("Labels", ...tags(labels)),
    cell("Last beat", when(skald.beat_at_ms)),
    cell("Page", skald.web ? make("a", { href: skald.web, rel: "noreferrer" }, "open") : faint("none")),
  );
}

function drawSkalds(items) {
  const table = document.getElementById("skalds");
  const focused = table.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  table.replaceChildren(...items.map(skaldRow));
  if (focused) [...table.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
  document.getElementById("no-skalds").hidden = items.length > 0;
}

// -- what the reader does --------------------------------------------------------------------------------------------------------

function remember() {
  const query = new URLSearchParams();
  if (chosen) query.set("status", chosen);
  if (filter.value) query.set("q", filter.value);
  history.replaceState(null, "", query.size ? `/?${query}` : "/");
  drawSoon();
}

function sortable(header) {
  const button = make("button", { type: "button" }, header.textContent);
  header.replaceChildren(button);
  button.addEventListener("click", () => {
    rising = sortBy === header.dataset.sort ? !rising : header.dataset.sort !== "since_ms";
    sortBy = header.dataset.sort;
    document.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", rising ? "ascending" : "descending");
    drawSoon();
  });
}

filter.addEventListener("input", remember);
filter.form.addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll("th[data-sort]").forEach(sortable);
for (const chip of chips) {
  chip.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    chosen = chip.dataset.status;
    remember();
  });
}

keepTimesMoving();
follow("/api/events?detail=brief", {
  snapshot: (all) => {
    setServerTime(all.now_ms);
    tasks.clear();
    rows.clear();
    for (const task of all.tasks) tasks.set(task.task_id, task);
    drawSkalds(all.skalds);
    showBanners(all.banners);
    drawSoon();
  },
  task: (task) => {
    tasks.set(task.task_id, task);
    drawSoon();
  },
  gone: ({ task_id }) => {
    tasks.delete(task_id);
    rows.delete(task_id);
    drawSoon();
  },
  skalds: (all) => {
    setServerTime(all.now_ms);
    drawSkalds(all.items);
  },
  banners: ({ items }) => showBanners(items),
});
