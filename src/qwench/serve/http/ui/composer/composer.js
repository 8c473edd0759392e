// The field for a message and its files: written, pasted, chosen or dropped onto the page.

import { element, field, iconButton } from "../dom/elements.js";
import { icon } from "../dom/icons.js";
import { notify, say } from "../dom/status.js";
import { areSettingsValid } from "../panels/settings.js";
import { fit, submitOnEnter } from "./editor.js";
import { readText, size } from "./files.js";

const prompt = field("prompt");
let files = []; // {name, text}

async function take(chosen) {
  for (const file of chosen) {
    try {
      files.push(await readText(file));
    } catch (error) {
      notify(error.message);
    }
  }
  showFiles();
  prompt.focus();
}

function showFiles() {
  field("files").hidden = !files.length;
  field("files").replaceChildren(...files.map((file) => {
    const remove = iconButton("close", `Remove ${file.name}`, () => {
      files = files.filter((other) => other !== file);
      showFiles();
      prompt.focus();
    });
    return element("li", {}, icon("file"), element("span", {}, file.name), element("small", {}, size(file)), remove);
  }));
}

/** Takes what was written out of the field; null when there is nothing. */
function takeMessage() {
  const content = prompt.value.trim();
  if (!content && !files.length) return null;
  const message = { role: "user", content, ...(files.length ? { files } : {}) };
  files = [];
  prompt.value = "";
  fit(prompt);
  showFiles();
  return message;
}

function acceptDrops() {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // of elements that the pointer entered and hasn't left
  const mark = () => document.body.classList.toggle("is-dropping", depth > 0);
  addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; mark(); } });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth -= 1; mark(); } });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    mark();
    take([...event.dataTransfer.files]);
  });
}

/** send: told each message; stop: ends the answer that is being written; editLast: on ArrowUp in the empty field. */
export function watchComposer({ send, stop, editLast }) {
  const form = field("composer");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field("send").disabled || !areSettingsValid()) return;
    const message = takeMessage();
    if (message) send(message);
  });
  submitOnEnter(prompt);
  prompt.addEventListener("input", () => fit(prompt));
  prompt.addEventListener("paste", ({ clipboardData: { files: pasted } }) => { if (pasted.length) take([...pasted]); });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowUp" || prompt.value || !editLast()) return;
    event.preventDefault();
  });
  field("stop").addEventListener("click", stop);
  field("attach").addEventListener("click", () => field("file-chooser").click());
  field("file-chooser").addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = "";
  });
  acceptDrops();
}

/** While an answer is written it can be stopped and nothing sent. */
export function setWriting(isWriting) {
  const hadFocus = [field("stop"), field("send")].includes(document.activeElement);
  field("stop").hidden = !isWriting;
  field("send").hidden = isWriting;
  field("send").disabled = isWriting;
  field("messages").ariaBusy = String(isWriting);
  if (isWriting) say("The answer is being written.");
  if (hadFocus) prompt.focus();
}
