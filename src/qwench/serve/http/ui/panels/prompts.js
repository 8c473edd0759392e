// System prompts that the reader keeps, to have them at hand in any conversation.

import { element, field } from "../dom/elements.js";
import { recall, remember } from "../state/preferences.js";

const NAME_LENGTH = 48;
let kept = recall("prompts", []);

const nameOf = (text) => {
  const line = text.split("\n", 1)[0];
  return line.length > NAME_LENGTH ? `${line.slice(0, NAME_LENGTH - 1)}…` : line;
};

function show(chosen) {
  const options = kept.map((text, i) => element("option", { value: String(i) }, nameOf(text)));
  const none = element("option", { value: "" }, kept.length ? "Kept prompts" : "None kept yet");
  field("prompts").replaceChildren(none, ...options);
  field("prompts").value = chosen < 0 ? "" : String(chosen);
  field("forget-prompt").disabled = chosen < 0;
  field("keep-prompt").disabled = chosen >= 0 || !field("system").value.trim();
}

const showChosen = () => show(kept.indexOf(field("system").value.trim()));

function change(prompts) {
  kept = prompts;
  remember("prompts", kept);
  showChosen();
}

/** Puts a conversation's system prompt into its field. */
export function showSystem(text) {
  field("system").value = text;
  showChosen();
}

/** changed: told the system prompt whenever the reader changes it. */
export function watchPrompts(changed) {
  field("system").addEventListener("input", () => {
    changed(field("system").value);
    showChosen();
  });
  field("prompts").addEventListener("change", ({ target }) => {
    showSystem(target.value === "" ? "" : kept[Number(target.value)]);
    changed(field("system").value);
  });
  field("keep-prompt").addEventListener("click", () => change([...kept, field("system").value.trim()]));
  field("forget-prompt").addEventListener("click", () => {
    const chosen = Number(field("prompts").value);
    change(kept.filter((_, i) => i !== chosen));
  });
  showChosen();
}
