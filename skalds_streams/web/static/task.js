// A task's page, live: when the task has changed, the page is asked for again and its article swapped. Its log, when
// this node has it, too.
import { follow, keepTimesMoving, setServerTime, showBanners, showTimes } from "./common.js";

const LIVE_MS = 2000;
const LOG_LINES = 200;
const shown = () => document.getElementById("task");
const log = () => document.getElementById("log");
let fetching = false;
let again = false;

async function freshPage() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
}

async function refresh() {
  if (fetching) {
    again = true;
    return;
  }
  fetching = true;
  try {
    const page = await freshPage();
    if (!page) return location.reload();
    const fresh = page.getElementById("task");
    if (!fresh) return;
    for (const { id } of shown().querySelectorAll("details[open]")) {
      fresh.querySelector(`#${id}`)?.setAttribute("open", "");
    }
    shown().replaceWith(fresh);
    showLog(page.getElementById("log"));
    document.title = `${fresh.dataset.id} · ${fresh.querySelector(".badge").textContent}`;
    showTimes();
  } catch {
    // The stream says that the connection is lost, and its next snapshot brings us here again.
  } finally {
    fetching = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

function showLog(fresh) {
  const place = (node) => `${node.dataset.place} ${node.dataset.here}`;
  if (fresh && place(fresh) !== place(log())) {
    log().replaceWith(fresh);
    showEnd();
  }
}

function showEnd() {
  const pane = log().querySelector("pre");
  if (pane) pane.scrollTop = pane.scrollHeight;
}

// Asked again and again, not followed: a browser has six connections to a node, and each open page has one already.
async function showLines() {
  if (!log().dataset.here || document.hidden) return;
  try {
    const path = `/api/tasks/${encodeURIComponent(shown().dataset.id)}/logs?lines=${LOG_LINES}`;
    const answer = await fetch(path, { headers: { Accept: "text/plain" }, redirect: "error" });
    if (!answer.ok) return;
    const text = await answer.text();
    const pane = log().querySelector("pre");
    if (!pane || pane.textContent === text || !text) return;
    const atEnd = pane.scrollTop + pane.clientHeight >= pane.scrollHeight - 40;
    pane.textContent = text;
    if (atEnd) showEnd();
  } catch {
    // The live stream says that the connection is lost; the next look is in LIVE_MS.
  }
}

function take(task) {
  if (task && String(task.revision) !== shown().dataset.revision) refresh();
}

// What the worker says of itself changes no row: it is asked for while somebody looks.
setInterval(async () => {
  if (!document.getElementById("metrics") || document.hidden || fetching) return;
  const fresh = (await freshPage().catch(() => null))?.getElementById("metrics");
  if (!fresh) return;
  document.getElementById("metrics")?.replaceWith(fresh);
  showTimes();
}, LIVE_MS);

keepTimesMoving();
showEnd();
setInterval(showLines, LIVE_MS);
follow(`/api/events?detail=brief&task=${encodeURIComponent(shown().dataset.id)}`, {
  snapshot: (all) => {
    setServerTime(all.now_ms);
    showBanners(all.banners);
    take(all.tasks[0]);
  },
  task: take,
  gone: () => location.reload(),
  banners: ({ items }) => showBanners(items),
});
