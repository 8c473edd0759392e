// Conversations as files: Markdown for people, JSON that can be brought back.

import { element, newId } from "../dom/elements.js";
import { branch } from "./conversation.js";

const FORMAT = "qwench-conversations";
const ROLES = ["user", "assistant", "tool"];

function asMarkdown(message) {
  if (message.role === "user") {
    const files = (message.files ?? []).map(({ name }) => `*${name}*\n\n`).join("");
    return `## Question\n\n${files}${message.content}\n`;
  }
  if (message.role === "tool") return `## Result\n\n\`\`\`\n${message.content}\n\`\`\`\n`;
  const thought = message.reasoning ? `${message.reasoning.trim().replace(/^/gm, "> ")}\n\n` : "";
  const calls = (message.tool_calls ?? []).map((call) => `\`${call.function.name}(${call.function.arguments})\`\n`);
  return `## Answer\n\n${thought}${message.content}\n${calls.join("\n")}`;
}

/** The branch that is shown. */
function toMarkdown(conversation) {
  const system = conversation.system.trim() ? `## System\n\n${conversation.system.trim()}\n\n` : "";
  return `# ${conversation.title}\n\n${system}${branch(conversation).map(asMarkdown).join("\n")}`;
}

const toJson = (conversations) => JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);

/** What a file holds; throws an Error that says what is wrong with it. Ids are new: nothing is overwritten. */
export function fromJson(text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error("it isn't JSON");
  }
  if (given?.format !== FORMAT || !Array.isArray(given.conversations)) throw new Error("it holds no conversations");
  return given.conversations.map(readConversation);
}

const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : 0);

function readConversation(given) {
  if (!Array.isArray(given?.messages)) throw new Error("a conversation in it has no messages");
  const messages = [];
  const known = new Map([[null, null]]); // ids in the file to ours: a parent comes before its children
  for (const message of given.messages) {
    const hasPlace = ROLES.includes(message?.role) && known.has(message.parent);
    if (!hasPlace) throw new Error("a message in it belongs nowhere");
    known.set(message.id, newId());
    messages.push({ ...readMessage(message), id: known.get(message.id), parent: known.get(message.parent) });
  }
  const head = { id: newId(), title: string(given.title), model: string(given.model), system: string(given.system) };
  const leaf = known.get(given.leaf) ?? messages.at(-1)?.id ?? null;
  return { ...head, created: number(given.created), updated: number(given.updated), messages, leaf };
}

function readMessage(given) {
  const message = { role: given.role, content: string(given.content) };
  for (const name of ["reasoning", "tool_call_id", "finish", "note", "error"]) {
    if (typeof given[name] === "string") message[name] = given[name];
  }
  if (Number.isFinite(given.thought_s)) message.thought_s = given.thought_s;
  if (Array.isArray(given.files)) {
    message.files = given.files.map((file) => ({ name: string(file?.name), text: string(file?.text) }));
  }
  if (Array.isArray(given.tool_calls)) message.tool_calls = given.tool_calls.map(readCall);
  return message;
}

function readCall(given) {
  const [name, args] = [string(given?.function?.name), string(given?.function?.arguments)];
  return { id: string(given?.id), type: "function", function: { name, arguments: args } };
}

/** Has the browser save a text as a file. */
function save(text, name, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  URL.revokeObjectURL(address);
}

/** A title as the name of a file. */
export function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation";
}

export function saveMarkdown(conversation) {
  save(toMarkdown(conversation), `${fileName(conversation.title)}.md`, "text/markdown");
}

export function saveJson(conversations, name) {
  save(toJson(conversations), `${name}.json`, "application/json");
}
