// A conversation: a tree of messages, of which one branch is shown. An edited question or an answer asked for again is
// another child of the same parent. Plain data, as it is kept and exported; nothing here knows of the page.
//
//   conversation: {id, title, created, updated, model, system, messages, leaf}
//   message: {id, parent, role, content}; a question's files; an answer's reasoning, thought_s, tool_calls, finish,
//   note and error; a tool result's tool_call_id

import { newId } from "../dom/elements.js";

const TITLE_LENGTH = 60;

export function newConversation(system = "", model = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, model, system, messages: [], leaf: null };
}

const byId = (conversation, id) => conversation.messages.find((message) => message.id === id);
export const childrenOf = (conversation, id) => conversation.messages.filter((message) => message.parent === id);

/** Adds a message below `parent`, by default at the end of the branch that is shown, and shows its branch. */
export function append(conversation, message, parent = conversation.leaf) {
  const added = { id: newId(), parent, ...message };
  conversation.messages.push(added);
  conversation.leaf = added.id;
  conversation.updated = Date.now();
  if (!conversation.title && added.role === "user") conversation.title = titleOf(added);
  return added;
}

function titleOf({ content, files }) {
  const line = (content || files?.[0]?.name || "").trim().split("\n", 1)[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

/** The messages of the branch that is shown, from the first on. */
export function branch(conversation, leaf = conversation.leaf) {
  const found = [];
  for (let at = byId(conversation, leaf); at; at = byId(conversation, at.parent)) found.unshift(at);
  return found;
}

/** Shows the branch that goes through a message: its latest one. */
export function choose(conversation, message) {
  let at = message;
  for (let below; (below = childrenOf(conversation, at.id)).length; ) at = below.at(-1);
  conversation.leaf = at.id;
}

/** A new conversation that begins as this one does up to a message. */
export function branchOff(conversation, message) {
  const copy = newConversation(conversation.system, conversation.model);
  copy.title = conversation.title;
  for (const { id, parent, ...rest } of branch(conversation, message.id)) append(copy, structuredClone(rest));
  return copy;
}

/** Files stand before the words that are about them, each in a fence longer than any within. */
function withFiles({ content, files = [] }) {
  const parts = files.map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
    const fence = "`".repeat(longest + 1);
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [...parts, content].filter(Boolean).join("\n\n");
}

function forApi(message) {
  const { role, content, reasoning, tool_calls, tool_call_id } = message;
  if (role === "user") return { role, content: withFiles(message) };
  if (role === "tool") return { role, content, tool_call_id };
  const thought = reasoning ? { reasoning_content: reasoning } : {}; // the model's template knows what to do with it
  return { role, content, ...thought, ...(tool_calls?.length ? { tool_calls } : {}) };
}

/** The branch that is shown as the API wants it, without answers that came to nothing. */
export function apiMessages(conversation) {
  const isEmpty = ({ role, content, tool_calls: calls }) => role === "assistant" && !content && !calls?.length;
  const said = branch(conversation).filter((message) => !isEmpty(message));
  const system = conversation.system.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...said.map(forApi)];
}
