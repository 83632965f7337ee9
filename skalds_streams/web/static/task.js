// A task's page, live: when the task has changed, the page is asked for again and its article swapped.
import { follow, keepTimesMoving, setServerTime, showBanners, showTimes } from "./common.js";

const LIVE_MS = 2000;
const shown = () => document.getElementById("task");
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
    const open = shown().querySelector("details")?.open;
    if (open) fresh.querySelector("details")?.setAttribute("open", "");
    shown().replaceWith(fresh);
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
