// The kept conversations: found again, renamed, taken out and brought in.

import { element, field, iconButton } from "../dom/elements.js";
import { notify } from "../dom/status.js";
import { fromJson, saveJson } from "../state/exchange.js";
import * as store from "../state/store.js";

const DAY_MS = 24 * 60 * 60 * 1000;
let conversations = []; // the latest first
let isKept = true;
let shown = null; // the id of the one in the page
const deleted = new Set(); // ids
let does = null; // {choose, removed}, told a conversation

const title = (conversation) => conversation.title || "New chat";

function day(conversation) {
  const days = Math.floor((new Date().setHours(24, 0, 0, 0) - conversation.updated) / DAY_MS);
  if (days < 1) return "Today";
  if (days < 2) return "Yesterday";
  return days < 8 ? "The last week" : "Earlier";
}

function has(conversation, words) {
  const texts = [conversation.title, ...conversation.messages.map((message) => message.content)];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function entry(conversation) {
  const button = element("button", { type: "button", className: "entry" }, title(conversation));
  button.ariaCurrent = conversation.id === shown ? "true" : null;
  button.addEventListener("click", () => does.choose(conversation));
  const rename = iconButton("edit", `Rename ${title(conversation)}`, () => askName(conversation, item));
  const remove = iconButton("trash", `Delete ${title(conversation)}`, () => forget(conversation));
  const item = element("li", {}, button, rename, remove);
  return item;
}

function draw() {
  const words = field("search").value.trim().toLowerCase();
  const found = conversations.filter((conversation) => !words || has(conversation, words));
  const days = Map.groupBy ? Map.groupBy(found, day) : new Map([["All", found]]);
  const sections = [...days].map(([name, those]) =>
    element("section", {}, element("h3", {}, name), element("ul", {}, ...those.map(entry))));
  const empty = words ? "None with these words." : "What you ask is kept in this browser, and nowhere else.";
  field("conversations").replaceChildren(...(found.length ? sections : [element("p", { className: "quiet" }, empty)]));
}

function askName(conversation, item) {
  const name = element("input", { value: conversation.title, ariaLabel: "Name of the conversation" });
  const form = element("form", { className: "rename" }, name);
  const finish = (value) => {
    if (value) conversation.title = value;
    keep(conversation);
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); finish(name.value.trim()); });
  name.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); draw(); }
  });
  name.addEventListener("blur", () => { if (form.isConnected) finish(name.value.trim()); });
  item.replaceChildren(form);
  name.select();
}

async function forget(conversation) {
  conversations = conversations.filter((other) => other !== conversation);
  deleted.add(conversation.id);
  draw();
  does.removed(conversation);
  notify("The conversation is deleted.", "Undo", () => {
    deleted.delete(conversation.id);
    keep(conversation);
  });
  if (isKept) await store.remove(conversation.id);
}

/** Keeps a conversation as it is now; those without a message aren't worth it. */
export async function keep(conversation) {
  if (!conversation.messages.length || deleted.has(conversation.id)) return;
  const others = conversations.filter((other) => other.id !== conversation.id);
  conversations = [...others, conversation].sort((a, b) => b.updated - a.updated);
  draw();
  if (isKept) await store.put(conversation).catch(() => notify("The browser has no room to keep this conversation."));
}

/** Marks the conversation that the page shows. */
export function mark(conversation) {
  shown = conversation.id;
  draw();
}

async function bringIn(file) {
  try {
    const found = fromJson(await file.text());
    for (const conversation of found) await keep(conversation);
    notify(`${found.length} brought in from ${file.name}.`);
  } catch (error) {
    notify(`Nothing was brought in from ${file.name}: ${error.message}.`);
  }
}

async function load() {
  try {
    const stored = await store.all();
    // What is in the page stays the same object: an answer may be coming into it.
    const mine = new Map(conversations.map((conversation) => [conversation.id, conversation]));
    conversations = stored.map((found) => mine.get(found.id) ?? found);
  } catch {
    isKept = false;
    notify("This browser keeps nothing here, so conversations last as long as the page.");
  }
  draw();
}

/** choose: told the conversation to show; removed: told one that was deleted. */
export async function watchHistory(actions) {
  does = actions;
  field("search").addEventListener("input", draw);
  field("export-all").addEventListener("click", () => saveJson(conversations, "qwench"));
  field("import").addEventListener("click", () => field("import-chooser").click());
  field("import-chooser").addEventListener("change", async ({ target }) => {
    for (const file of target.files) await bringIn(file);
    target.value = "";
  });
  store.onChange(load);
  await load();
}
