// An answer as tokens that tell how likely they were: on hover, and by arrow keys once one of them has the focus.

import { element, field } from "../dom/elements.js";

const LEVELS = [0.05, 0.25, 0.6, 0.9]; // below these a token's underline grows stronger

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

/** Shows whitespace, and bytes that are no character of their own. */
function visible(entry) {
  const text = entry.token;
  if (text.includes("\ufffd") && entry.bytes) {
    return entry.bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "(nothing)";
}

export class TokensView {
  #numShown = 0;
  #entries = new WeakMap(); // of each token

  constructor() {
    this.root = element("div", { className: "tokens", role: "listbox", ariaLabel: "The answer as tokens" });
    const onToken = (action) => (event) => { if (this.#entries.has(event.target)) action(event.target); };
    this.root.addEventListener("mouseover", onToken((token) => this.#tell(token)));
    this.root.addEventListener("focusin", onToken((token) => this.#tell(token)));
    this.root.addEventListener("mouseout", onToken(hide));
    this.root.addEventListener("focusout", onToken(hide));
    this.root.addEventListener("keydown", (event) => { if (this.#entries.has(event.target)) this.#move(event); });
  }

  /** pieces: {text, entries} of the answer so far, an entry for each token. */
  show(pieces) {
    for (; this.#numShown < pieces.length; this.#numShown++) this.#add(pieces[this.#numShown]);
  }

  #add({ text, entries }) {
    const least = Math.min(...entries.map((entry) => Math.exp(entry.logprob)));
    const level = LEVELS.findIndex((bound) => least < bound);
    const token = element("span", { className: level < 0 ? "token" : `token p${level}`, role: "option" }, text);
    token.tabIndex = this.#numShown ? -1 : 0; // one stop of the Tab key per answer
    const chances = entries.map((entry) => percent(entry.logprob)).join(", ");
    token.ariaLabel = `${text.trim() || visible(entries[0])}, ${chances}`;
    this.#entries.set(token, entries);
    this.root.append(token);
  }

  #tell(token) {
    const card = field("token-card");
    card.replaceChildren(...this.#entries.get(token).map(table));
    card.hidden = false;
    const place = token.getBoundingClientRect();
    const left = Math.min(place.left, innerWidth - card.offsetWidth - 8);
    const isBelow = place.bottom + card.offsetHeight + 8 < innerHeight;
    card.style.left = `${Math.max(left, 8)}px`;
    card.style.top = `${isBelow ? place.bottom + 4 : Math.max(place.top - card.offsetHeight - 4, 8)}px`;
    token.setAttribute("aria-describedby", "token-card");
  }

  #move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const all = [...this.root.children];
    const to = Math.min(Math.max(all.indexOf(event.target) + steps[event.key], 0), all.length - 1);
    event.target.tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  }
}

/** What else could have stood there, and how likely it was. */
function table(entry) {
  const others = entry.top_logprobs;
  const likely = others.some((other) => other.token === entry.token) ? others : [entry, ...others];
  const made = element("table");
  for (const other of likely) {
    const row = made.insertRow();
    row.className = other.token === entry.token ? "chosen" : "";
    row.insertCell().append(element("code", {}, visible(other)));
    row.insertCell().append(percent(other.logprob));
  }
  return made;
}

function hide(token) {
  field("token-card").hidden = true;
  token.removeAttribute("aria-describedby");
}
