// The conversation: sends it, shows the answer as it comes, stops it.

import { chat, model } from "./stream.js";
import { addTokens, watch as watchTokens } from "./tokens.js";
import { watch as watchServer } from "./gauges.js";

const field = (id) => document.getElementById(id);
const [messages, prompt, status] = ["messages", "prompt", "status"].map(field);
let conversation = []; // {role, content} as the API wants them
let running = null; // the AbortController of the answer that is being written

const say = (text) => { status.textContent = text; };

function addMessage(role) {
  field("welcome").hidden = true;
  const item = document.createElement("li");
  item.className = role;
  const title = document.createElement("h2");
  title.textContent = role === "user" ? "You" : "Model";
  const text = document.createElement("div");
  text.className = "text";
  item.append(title, text);
  messages.append(item);
  return { item, text };
}

function note(item, words, isError = false) {
  const line = document.createElement("p");
  line.className = isError ? "note error" : "note";
  line.textContent = words;
  item.append(line);
}

function requestBody() {
  const form = new FormData(field("parameters"));
  const body = { messages: [...conversation] };
  const system = form.get("system").trim();
  if (system) body.messages.unshift({ role: "system", content: system });
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    if (form.get(name) !== "") body[name] = Number(form.get(name));
  }
  if (form.get("probabilities")) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

/** Follows the end of the answer, unless the reader has scrolled up. */
function follow() {
  const view = field("conversation");
  const isAtEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 80;
  return () => { if (isAtEnd) view.scrollTop = view.scrollHeight; };
}

/** Tokens after the first by the time they took. An answer that came all at once counts from the question on. */
function showSpeed(numTokens, start, first, last, isWhole) {
  const isTold = last - first > 50;
  if (!isTold && !(isWhole && last > start)) return;
  const perMs = isTold ? (numTokens - 1) / (last - first) : numTokens / (last - start);
  field("answer-speed").textContent = `${(1000 * perMs).toFixed(1)} tokens/s`;
}

/** Shows an answer as it comes; returns its text, its end and what it cost. */
async function write(text, body, signal) {
  const start = performance.now();
  let [first, last] = [0, 0];
  let numTokens = 0;
  const answer = { text: "", finish: null, usage: null, pending: [] };
  for await (const chunk of chat(body, signal)) {
    answer.usage = chunk.usage ?? answer.usage;
    if (chunk.usage) showSpeed(chunk.usage.completion_tokens, start, first, last, true);
    const [choice] = chunk.choices;
    if (!choice) continue;
    answer.finish = choice.finish_reason ?? answer.finish;
    const entries = choice.logprobs?.content ?? [];
    const piece = choice.delta.content ?? "";
    if (!piece && !entries.length) continue;
    last = performance.now();
    first ||= last;
    numTokens += Math.max(entries.length, 1);
    field("answer-ttft").textContent = `${((first - start) / 1000).toFixed(2)} s`;
    showSpeed(numTokens, start, first, last, false);
    answer.text += piece;
    answer.pending.push(...entries); // a character may take several tokens: they are shown with it
    if (piece) {
      const keepUp = follow();
      addTokens(text, piece, answer.pending.splice(0));
      keepUp();
    }
  }
  return answer;
}

const ENDS = { length: "The answer reached its longest length.", stop: "" };

async function send() {
  const content = prompt.value.trim();
  if (!content || running) return;
  const mine = conversation; // another one, should the reader start over meanwhile
  mine.push({ role: "user", content });
  addMessage("user").text.textContent = content;
  prompt.value = "";
  const { item, text } = addMessage("assistant");
  item.classList.add("is-writing");
  field("conversation").scrollTop = field("conversation").scrollHeight;
  running = new AbortController();
  setWriting(true);
  try {
    const answer = await write(text, requestBody(), running.signal);
    const { prompt_tokens: asked, completion_tokens: written, prompt_tokens_details: details } = answer.usage;
    const cached = details?.cached_tokens ? `, ${details.cached_tokens} of them known from before` : "";
    note(item, `${ENDS[answer.finish] ?? ""} ${written} tokens, after ${asked} of the conversation${cached}.`.trim());
    say("The answer is complete.");
  } catch (error) {
    const isStopped = error.name === "AbortError";
    note(item, isStopped ? "Stopped." : error.message, !isStopped);
    say(isStopped ? "Stopped." : `No answer: ${error.message}`);
  } finally {
    item.classList.remove("is-writing");
    // What came before a stop belongs to the conversation; a question without any answer is given back.
    if (text.textContent) {
      mine.push({ role: "assistant", content: text.textContent });
    } else {
      mine.pop();
      if (!prompt.value && mine === conversation) prompt.value = content;
    }
    running = null;
    setWriting(false);
    prompt.focus();
  }
}

function setWriting(isWriting) {
  field("stop").hidden = !isWriting;
  field("send").disabled = isWriting;
  messages.setAttribute("aria-busy", String(isWriting));
  if (isWriting) say("The answer is being written.");
}

function startOver() {
  running?.abort();
  conversation = [];
  messages.replaceChildren();
  field("welcome").hidden = false;
  say("");
  prompt.focus();
}

field("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!field("parameters").reportValidity()) return;
  send();
});
field("parameters").addEventListener("submit", (event) => event.preventDefault());
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    field("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
field("stop").addEventListener("click", () => running?.abort());
field("new-chat").addEventListener("click", startOver);

watchTokens(messages);
watchServer(say);
for (;;) {
  try {
    const { id, max_model_len: length } = await model();
    field("model").textContent = length ? `${id}, ${length.toLocaleString()} tokens of context` : `${id} is being loaded`;
    if (length) break;
  } catch {
    field("model").textContent = "the server can't be reached";
  }
  await new Promise((resolve) => setTimeout(resolve, 1000));
}
