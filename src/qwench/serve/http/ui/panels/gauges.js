// What the server does: figures twice a second, and a picture of its batch over the last minute.

import { metrics } from "../api/stream.js";
import { field } from "../dom/elements.js";

const EVERY_MS = 500;
const COLUMNS = 120; // a minute
const history = [];
const canvas = field("batch");
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Each column is a moment: a filled cell for each answer in the batch, a hollow one for each that waits. */
function draw() {
  const colour = (name) => {
    const probe = document.createElement("i"); // resolves light-dark() for the canvas
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  const rows = Math.max(8, ...history.map((moment) => moment.running + moment.waiting));
  const [cellWidth, cellHeight] = [width / COLUMNS, height / rows];
  const gap = cellHeight > 4 ? 1 : 0;
  const [running, waiting, cache] = ["running", "waiting", "cache"].map(colour);
  history.forEach((moment, i) => {
    const x = width - (history.length - i) * cellWidth;
    context.fillStyle = running;
    for (let row = 0; row < moment.running; row++) {
      context.fillRect(x, height - (row + 1) * cellHeight, cellWidth - 1, cellHeight - gap);
    }
    context.strokeStyle = waiting;
    for (let row = moment.running; row < moment.running + moment.waiting; row++) {
      context.strokeRect(x + 0.5, height - (row + 1) * cellHeight + 0.5, cellWidth - 2, Math.max(cellHeight - gap - 1, 1));
    }
  });
  context.strokeStyle = cache;
  context.lineWidth = 2;
  context.beginPath();
  history.forEach((moment, i) => {
    const x = width - (history.length - i - 0.5) * cellWidth;
    context[i ? "lineTo" : "moveTo"](x, height - 1 - moment.cache * (height - 2));
  });
  context.stroke();
  context.lineWidth = 1;
}

function show(now, before) {
  const [used, total] = [now.qwench_kv_blocks_used, now.qwench_kv_blocks];
  const moment = {
    running: now.qwench_requests_running,
    waiting: now.qwench_requests_waiting,
    cache: total ? used / total : 0,
  };
  history.push(moment);
  history.splice(0, history.length - COLUMNS);
  field("running").textContent = moment.running;
  field("waiting").textContent = moment.waiting;
  field("cache").value = moment.cache;
  field("cache-text").textContent = `${(100 * moment.cache).toFixed(1)} %`;
  field("cache").title = `${used} of ${total} blocks`;
  const words = `${moment.running} running, ${moment.waiting} waiting, KV cache ${(100 * moment.cache).toFixed(0)} % in use`;
  canvas.setAttribute("aria-label", `The batch over the last minute; now ${words}`);
  if (before) {
    const tokens = now.qwench_generated_tokens_total - before.values.qwench_generated_tokens_total;
    const seconds = (performance.now() - before.at) / 1000;
    field("server-speed").textContent = `${Math.max(tokens / seconds, 0).toFixed(1)} tokens/s`;
  }
}

/** Begins to watch; `say` is told when the server can't be reached, and "" once it can again. */
export async function watch(say) {
  let before = null;
  let isLost = false;
  for (;;) {
    if (!document.hidden) {
      try {
        const values = await metrics();
        show(values, before);
        draw();
        before = { values, at: performance.now() };
        if (isLost) say("");
        isLost = false;
      } catch {
        if (!isLost) say("The server can't be reached; trying again.");
        isLost = true;
        before = null;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

dark.addEventListener("change", draw);
