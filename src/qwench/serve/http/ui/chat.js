// The page: shows a conversation, sends what is asked in it, and lets it branch.

import { write } from "./api/answer.js";
import { setWriting, watchComposer } from "./composer/composer.js";
import { field } from "./dom/elements.js";
import { drawIcons } from "./dom/icons.js";
import { paced } from "./dom/pace.js";
import { say } from "./dom/status.js";
import { messageView } from "./messages/message_view.js";
import { following, toEnd, watchScrolling } from "./messages/scrolling.js";
import { closeDrawer, openPanel, watchDrawers } from "./panels/drawers.js";
import { watch as watchServer } from "./panels/gauges.js";
import { keep, mark, watchHistory } from "./panels/history.js";
import { chosenModel, showModel, watchModels } from "./panels/model_menu.js";
import { showSystem, watchPrompts } from "./panels/prompts.js";
import { areSettingsValid, requestFields, watchSettings } from "./panels/settings.js";
import { append, apiMessages, branch, branchOff, choose, newConversation } from "./state/conversation.js";
import { fileName, saveJson, saveMarkdown } from "./state/exchange.js";

let current = newConversation(); // the one in the page
let views = new Map(); // of the branch in the page: a message's id to its view
const running = new Map(); // a conversation's id to {message, controller} of the answer that comes into it

function show(conversation) {
  current = conversation;
  views = new Map();
  field("messages").replaceChildren();
  const messages = branch(current);
  for (const message of messages) if (message.role !== "tool") addView(message);
  for (const view of views.values()) updateView(view);
  field("welcome").hidden = messages.length > 0;
  field("export-button").disabled = !messages.length;
  document.title = current.title ? `${current.title} · qwench` : "qwench";
  showSystem(current.system);
  showModel(current.model);
  setWriting(running.has(current.id));
  mark(current);
}

function addView(message) {
  const view = messageView(current, message, does);
  views.set(message.id, view);
  field("messages").append(view.item);
  return view;
}

function updateView(view) {
  const messages = branch(current);
  const below = messages.slice(messages.indexOf(view.message) + 1);
  const next = below.findIndex(({ role }) => role !== "tool");
  const results = next < 0 ? below : below.slice(0, next);
  view.update(running.get(current.id)?.message === view.message, { results, isLast: next < 0 });
}

/** Asks for an answer to the branch in the page, and shows it as it comes, whatever is shown meanwhile. */
async function reply() {
  const conversation = current;
  conversation.model = chosenModel() ?? "";
  const body = { ...requestFields(), messages: apiMessages(conversation), model: chosenModel() };
  const message = append(conversation, { role: "assistant", content: "" });
  const controller = new AbortController();
  running.set(conversation.id, { message, controller });
  show(conversation);
  toEnd();
  keep(conversation);
  const draw = () => {
    const view = current === conversation && views.get(message.id);
    if (view) following(() => updateView(view));
  };
  const drawSoon = paced(draw);
  const changed = (figures) => {
    if (current === conversation) showSpeed(figures);
    drawSoon();
  };
  await write(message, body, controller.signal, changed).catch((error) => end(message, error));
  running.delete(conversation.id);
  draw();
  keep(conversation);
  if (current !== conversation) return;
  setWriting(false);
  say(message.error ? `No answer: ${message.error}` : (message.stopped ? "Stopped." : "The answer is complete."), true);
}

/** What came before a stop or a fault belongs to the conversation. */
function end(message, error) {
  if (error.name === "AbortError") Object.assign(message, { note: "Stopped.", stopped: true });
  else message.error = error.message;
}

function showSpeed({ first_s: first, perSecond }) {
  if (first !== undefined) field("answer-ttft").textContent = `${first.toFixed(2)} s`;
  if (perSecond) field("answer-speed").textContent = `${perSecond.toFixed(1)} tokens/s`;
}

const stop = (conversation) => running.get(conversation.id)?.controller.abort();

function send(message) {
  append(current, message);
  reply();
}

const canAsk = () => !running.has(current.id) && areSettingsValid();

/** What a message's buttons do. While an answer is written, the branch in the page stays. */
const does = {
  choose(message, picture) {
    if (running.has(current.id)) return;
    choose(current, message);
    show(current);
    keep(current);
    const buttons = views.get(message.id).actions.querySelectorAll(".versions button:enabled");
    (picture === "left" ? buttons[0] : [...buttons].at(-1))?.focus();
  },
  edit(message, content) {
    if (!canAsk()) return;
    const files = message.files ? { files: message.files } : {};
    append(current, { role: "user", content, ...files }, message.parent);
    reply();
  },
  redo(message) {
    if (!canAsk()) return;
    current.leaf = message.parent;
    reply();
  },
  branchOff(message) {
    const copy = branchOff(current, message);
    show(copy);
    keep(copy);
    toEnd();
    field("prompt").focus();
  },
  giveResults(message, results) {
    if (!canAsk()) return;
    message.tool_calls.forEach(({ id }, i) => append(current, { role: "tool", tool_call_id: id, content: results[i] }));
    reply();
  },
};

function startOver() {
  show(newConversation(field("system").value));
  closeDrawer();
  say("");
  field("prompt").focus();
}

function editLast() {
  const question = branch(current).findLast(({ role }) => role === "user");
  if (!question || running.has(current.id)) return false;
  views.get(question.id).edit();
  return true;
}

function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector(":popover-open") && !closeDrawer()) stop(current);
    if (event.key === "k" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      openPanel("history");
      field("search").focus();
    }
  });
}

drawIcons();
watchDrawers();
watchSettings();
watchScrolling();
watchKeys();
watchPrompts((system) => { current.system = system; });
watchComposer({ send, stop: () => stop(current), editLast });
field("new-chat").addEventListener("click", startOver);
field("new-chat-short").addEventListener("click", startOver);
field("export-markdown").addEventListener("click", () => saveMarkdown(current));
field("export-json").addEventListener("click", () => saveJson([current], fileName(current.title)));
watchHistory({
  choose(conversation) { show(conversation); closeDrawer(); toEnd(); },
  removed(conversation) { stop(conversation); if (conversation === current) startOver(); },
});
show(current);
watchServer(say);
watchModels((name) => { current.model = name; });
