// Which model answers: the names that the server gives, and how much each of them reads at once.

import { models } from "../api/stream.js";
import { element, field } from "../dom/elements.js";

const RETRY_MS = 1000;
const STATES = { loading: ", being loaded", unloaded: ", loaded when asked" };
const menu = field("model");
const pause = () => new Promise((resolve) => setTimeout(resolve, RETRY_MS));

/** The name that a request gives; undefined, which is the server's own choice, until names are known. */
export const chosenModel = () => menu.value || undefined;

/** Chooses a conversation's model, if it is still served. */
export function showModel(name) {
  if ([...menu.options].some((option) => option.value === name)) menu.value = name;
  showLength();
}

function showLength() {
  const length = menu.selectedOptions[0]?.dataset.length;
  field("model-length").textContent = length ? `${Number(length).toLocaleString("en")} tokens of context` : "";
}

function fill(served) {
  const chosen = menu.value;
  const ids = [...menu.options].map((option) => option.value);
  if (served.length !== ids.length || served.some(({ id }, i) => id !== ids[i])) {
    menu.replaceChildren(...served.map(({ id }) => element("option", { value: id })));
  }
  served.forEach(({ id, state, max_model_len: length }, i) => { // in place: the menu may be open
    menu.options[i].textContent = id + (STATES[state] ?? "");
    menu.options[i].dataset.length = length ?? "";
  });
  showModel(chosen);
}

/** Fills the menu, again and again until a model is loaded, and anew when it is opened: models come and go. changed:
 * told the name that the reader chose. */
export async function watchModels(changed) {
  menu.addEventListener("change", () => { showLength(); changed(menu.value); });
  menu.addEventListener("focus", () => models().then(fill, () => {})); // without an answer it stays as it was
  for (;;) {
    try {
      const served = await models();
      fill(served);
      if (served.some((model) => model.max_model_len)) return;
    } catch {
      menu.replaceChildren(element("option", { value: "" }, "the server can't be reached"));
    }
    await pause();
  }
}
