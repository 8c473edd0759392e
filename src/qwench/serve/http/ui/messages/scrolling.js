// The conversation's place: it follows an answer to its end, unless the reader has scrolled up.

import { field } from "../dom/elements.js";

const NEAR = 80; // pixels from the end that count as its end
const view = field("conversation");

const isAtEnd = () => view.scrollHeight - view.scrollTop - view.clientHeight < NEAR;

export const toEnd = () => { view.scrollTop = view.scrollHeight; };

/** Does what makes the conversation longer, and stays at its end if it was there. */
export function following(action) {
  const wasAtEnd = isAtEnd();
  action();
  if (wasAtEnd) toEnd();
  showWay();
}

function showWay() {
  field("to-end").hidden = isAtEnd();
}

export function watchScrolling() {
  view.addEventListener("scroll", () => {
    showWay();
    field("token-card").hidden = true;
  }, { passive: true });
  field("to-end").addEventListener("click", () => {
    toEnd();
    field("prompt").focus();
  });
}
