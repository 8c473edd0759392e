// An answer as tokens that tell how likely they were: on hover, and by arrow keys once one of them has the focus.

const card = document.getElementById("token-card");
const LEVELS = [0.05, 0.25, 0.6, 0.9]; // below these a token's underline grows stronger

export const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

/** Shows whitespace, and bytes that are no character of their own. */
function visible(entry) {
  const text = entry.token;
  if (text.includes("\ufffd") && entry.bytes) {
    return entry.bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "(nothing)";
}

/** Adds a piece of text that came with these log-probabilities (one entry a token) to `parent`. */
export function addTokens(parent, text, entries) {
  if (!entries.length) {
    parent.append(text);
    return;
  }
  const span = document.createElement("span");
  const least = Math.min(...entries.map((entry) => Math.exp(entry.logprob)));
  const level = LEVELS.findIndex((bound) => least < bound);
  span.className = level < 0 ? "token" : `token p${level}`;
  span.textContent = text;
  span.tabIndex = parent.querySelector(".token") ? -1 : 0; // one stop of the Tab key per answer
  span.dataset.entries = JSON.stringify(entries);
  span.setAttribute("aria-label", `${text}, ${entries.map((entry) => percent(entry.logprob)).join(", ")}`);
  parent.append(span);
}

function show(span) {
  const tables = JSON.parse(span.dataset.entries).map((entry) => {
    const likely = entry.top_logprobs.some((other) => other.token === entry.token)
      ? entry.top_logprobs
      : [entry, ...entry.top_logprobs];
    const table = document.createElement("table");
    for (const other of likely) {
      const row = table.insertRow();
      row.className = other.token === entry.token ? "chosen" : "";
      const code = document.createElement("code");
      code.textContent = visible(other);
      row.insertCell().append(code);
      row.insertCell().append(percent(other.logprob));
    }
    return table;
  });
  card.replaceChildren(...tables);
  card.hidden = false;
  const place = span.getBoundingClientRect();
  const left = Math.min(place.left, innerWidth - card.offsetWidth - 8);
  const isBelow = place.bottom + card.offsetHeight + 8 < innerHeight;
  card.style.left = `${Math.max(left, 8)}px`;
  card.style.top = `${isBelow ? place.bottom + 4 : Math.max(place.top - card.offsetHeight - 4, 8)}px`;
  span.setAttribute("aria-describedby", "token-card");
}

function hide(event) {
  card.hidden = true;
  event.target.removeAttribute?.("aria-describedby");
}

function move(event) {
  const span = event.target.closest?.(".token");
  if (!span) return;
  if (event.key === "Escape") hide(event);
  const all = [...span.parentElement.querySelectorAll(".token")];
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const to = Math.min(Math.max(all.indexOf(span) + steps[event.key], 0), all.length - 1);
  span.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

/** Makes the tokens within `root` tell, those to come as well. */
export function watch(root) {
  const onToken = (action) => (event) => {
    const span = event.target.closest?.(".token");
    if (span) action(span);
  };
  root.addEventListener("mouseover", onToken(show));
  root.addEventListener("focusin", onToken(show));
  root.addEventListener("mouseout", hide);
  root.addEventListener("focusout", hide);
  root.addEventListener("keydown", move);
  document.getElementById("conversation").addEventListener("scroll", () => { card.hidden = true; });
}
