// A field in place of a text, to change it: Enter takes the change, Escape leaves all as it was.

import { element, textButton } from "../dom/elements.js";

/** Makes a textarea as high as its text, up to what its style allows. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Enter submits a form from its textarea; Shift+Enter begins a line there. */
export function submitOnEnter(area) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    area.form.requestSubmit();
  });
}

/** A form that calls `done` with the new text, or null when it was left. */
export function editor(label, text, action, done) {
  const area = element("textarea", { value: text, ariaLabel: label, rows: 1, required: true });
  const send = element("button", { type: "submit", className: "main" }, action);
  const form = element("form", { className: "editor" }, area,
    element("div", { className: "row" }, textButton("Cancel", () => done(null)), send));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    done(area.value.trim());
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    done(null);
  });
  area.addEventListener("input", () => fit(area));
  area.addEventListener("focus", () => fit(area), { once: true });
  submitOnEnter(area);
  return form;
}
