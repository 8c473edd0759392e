// Copying, also where the page came neither over https nor from this machine and browsers keep their clipboard shut.

import { element, iconButton } from "./elements.js";
import { icon } from "./icons.js";
import { say } from "./status.js";

const SHOWN_MS = 1500;

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const source = element("textarea", { value: text, className: "unseen" });
  const focused = document.activeElement;
  document.body.append(source);
  source.select();
  const isCopied = document.execCommand("copy");
  source.remove();
  focused?.focus();
  if (!isCopied) throw new Error("the browser refuses");
}

/** A button that copies what `text()` gives, and shows that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    try {
      await copy(text());
      button.replaceChildren(icon("check"));
      say("Copied.", true);
    } catch (error) {
      say(`Not copied: ${error.message}`, true);
    }
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN_MS);
  });
  return button;
}
