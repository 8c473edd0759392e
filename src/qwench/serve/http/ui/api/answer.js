// One answer: what comes from the server, put together in a message; and how fast it came.

import { chat } from "./stream.js";

/** The pieces of each answer that came with log-probabilities: [{text, entries}]. They aren't kept beyond the page. */
export const piecesOf = new WeakMap();

/** Fills `message` with the answer to `body`, and calls `changed(figures)` whenever there is more of it. */
export async function write(message, body, signal, changed) {
  const answer = new Answer(message);
  for await (const chunk of chat(body, signal)) {
    answer.take(chunk);
    changed(answer.figures());
  }
  message.note = answer.note();
}

class Answer {
  #start = performance.now();
  #first = 0;
  #last = 0;
  #numTokens = 0;
  #usage = null;
  #pending = []; // a character may take several tokens: they are shown with it

  constructor(message) {
    this.message = message;
  }

  take({ choices: [choice], usage }) {
    this.#usage = usage ?? this.#usage;
    if (!choice) return;
    this.message.finish = choice.finish_reason ?? this.message.finish;
    const { content, reasoning_content: thought, reasoning, tool_calls: calls } = choice.delta;
    const entries = choice.logprobs?.content ?? [];
    if (content || thought || reasoning || calls || entries.length) this.#count(entries.length);
    this.#think(thought ?? reasoning ?? "");
    for (const call of calls ?? []) this.#call(call);
    this.#say(content ?? "", entries);
  }

  #count(numTokens) {
    this.#last = performance.now();
    this.#first ||= this.#last;
    this.#numTokens += Math.max(numTokens, 1);
  }

  #think(piece) {
    if (!piece) return;
    this.message.reasoning = (this.message.reasoning ?? "") + piece;
    this.message.thought_s = (this.#last - this.#start) / 1000;
  }

  #say(piece, entries) {
    this.message.content += piece;
    this.#pending.push(...entries);
    if (!piece || !this.#pending.length) return;
    if (!piecesOf.has(this.message)) piecesOf.set(this.message, []);
    piecesOf.get(this.message).push({ text: piece, entries: this.#pending.splice(0) });
  }

  /** A call comes whole or in parts that belong together by their index. */
  #call({ index, id, function: { name, arguments: part } = {} }) {
    const calls = (this.message.tool_calls ??= []);
    calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
    const call = calls[index];
    call.id = id ?? call.id;
    call.function.name += name ?? "";
    call.function.arguments += part ?? "";
  }

  /** first_s: to the first token; perSecond: of those after it; of an answer that came all at once, from its start on. */
  figures() {
    if (!this.#first) return {};
    const count = this.#usage?.completion_tokens ?? this.#numTokens;
    const isSpread = this.#last - this.#first > 50;
    const isKnown = isSpread || (this.#usage && this.#last > this.#start);
    const perMs = isSpread ? (count - 1) / (this.#last - this.#first) : count / (this.#last - this.#start);
    return { first_s: (this.#first - this.#start) / 1000, perSecond: isKnown ? 1000 * perMs : null };
  }

  note() {
    const { prompt_tokens: asked, completion_tokens: written, prompt_tokens_details: details } = this.#usage;
    const { perSecond } = this.figures();
    const cached = details?.cached_tokens ? `, ${details.cached_tokens} of them known from before` : "";
    const speed = perSecond ? `, ${perSecond.toFixed(1)} a second` : "";
    return `${this.#end()}${written} tokens${speed}, after ${asked} of the conversation${cached}.`;
  }

  #end() {
    if (this.message.finish !== "length") return "";
    return `It reached its longest length${this.message.content ? "" : " while it was thinking"}. `;
  }
}
