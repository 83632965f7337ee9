// What both pages use: times that keep moving, elements from text, and the live stream with its "connection lost" notice.

const SIZES = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const LOST_AFTER_MS = 40000; // the server says something at least every 15 s
let skewMs = 0;

export const now = () => Date.now() + skewMs;

export function setServerTime(ms) {
  skewMs = ms - Date.now();
}

// The same words as web/words.py, `relative`.
export function relative(ms) {
  const seconds = Math.floor(Math.abs(now() - ms) / 1000);
  if (seconds < 1) return "now";
  const [size, unit] = SIZES.find(([least]) => seconds >= least);
  const text = `${Math.floor(seconds / size)} ${unit}`;
  return ms > now() ? `in ${text}` : `${text} ago`;
}

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short" };
const local = (ms) => new Date(ms).toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", ...CLOCK });

function showTime(node) {
  const ms = Number(node.dataset.ms);
  const text = node.closest("dd") ? `${local(ms)} (${relative(ms)})` : relative(ms);
  if (node.textContent !== text) node.textContent = text;
  if (!node.dataset.told) {
    node.title = local(ms);
    node.dataset.told = "1";
  }
}

export function showTimes(root = document) {
  root.querySelectorAll("time[data-ms]").forEach(showTime);
}

export function keepTimesMoving() {
  showTimes();
  setInterval(showTimes, 1000);
}

// An element. Text is always text: nothing here parses HTML.
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

export function when(ms) {
  if (!ms) return "never";
  const node = make("time", { datetime: new Date(ms).toISOString(), "data-ms": ms });
  showTime(node);
  return node;
}

export const dot = () => make("span", { class: "dot", "aria-hidden": "true" });

export function showBanners(items) {
  const box = document.getElementById("banners");
  box.replaceChildren(...items.map((text) => make("p", { class: "banner" }, text)));
}

function showLive(isLive, since) {
  const live = document.getElementById("live");
  live.hidden = false;
  live.classList.toggle("off", !isLive);
  document.getElementById("live-text").textContent = isLive ? "Live" : "Not live";
  const lost = document.getElementById("lost");
  lost.hidden = isLive;
  lost.textContent = isLive ? "" : `Connection lost. You see what was known at ${since.toLocaleTimeString(undefined, CLOCK)}; trying again.`;
}

// Opens the stream and opens it again for ever. handlers: event name → function of the document.
export function follow(url, handlers) {
  let source = null;
  let heardAt = new Date();
  let isLive = true;

  const lose = () => {
    if (isLive) showLive(false, heardAt);
    isLive = false;
  };
  const open = () => {
    source = new EventSource(url);
    for (const [name, handle] of Object.entries({ still: () => {}, ...handlers })) {
      source.addEventListener(name, (event) => {
        heardAt = new Date();
        if (name === "snapshot") {
          isLive = true;
          showLive(true, heardAt);
        }
        handle(JSON.parse(event.data));
      });
    }
    source.onerror = () => {
      lose();
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
    };
  };
  open();
  // A connection that hangs raises no error: only its silence tells.
  setInterval(() => {
    if (Date.now() - heardAt.getTime() < LOST_AFTER_MS || source.readyState === EventSource.CLOSED) return;
    lose();
    source.close();
    heardAt = new Date();
    open();
  }, 5000);
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => event.persisted && open());
}
