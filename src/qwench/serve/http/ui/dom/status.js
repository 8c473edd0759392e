// The line that says what happens, which screen readers read out; and words that come up for a while.

import { element, field, textButton } from "./elements.js";

const [SAID_MS, SHOWN_MS] = [5000, 8000];
let [saidTimer, noticeTimer] = [0, 0];

/** Says something, for good or, `briefly`, for a while. */
export function say(text, briefly = false) {
  clearTimeout(saidTimer);
  field("status").textContent = text;
  if (briefly) saidTimer = setTimeout(() => say(""), SAID_MS);
}

/** Shows words at the edge for a while, with something that can be done about them. */
export function notify(text, label = "", action = null) {
  const hide = () => { field("notice").hidden = true; };
  const button = action && textButton(label, () => { hide(); action(); });
  field("notice").replaceChildren(element("span", {}, text), ...(button ? [button] : []));
  field("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(hide, SHOWN_MS);
}
