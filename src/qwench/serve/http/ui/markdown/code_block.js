// Blocks of code: their language, a button to copy them, and colours by highlight.js, which is loaded with the first.

import { copyButton } from "../dom/clipboard.js";
import { element, once } from "../dom/elements.js";
import { fragment } from "./markdown.js";

const LONGEST = 50_000; // characters; beyond it code stays in one colour
let highlighter = null;

const load = once(async () => {
  highlighter = (await import("/ui/vendor/highlightjs/highlight.min.js")).default;
});

function paint(code, language) {
  if (!highlighter.getLanguage(language)) return;
  code.replaceChildren(fragment(highlighter.highlight(code.textContent, { language, ignoreIllegals: true }).value));
}

function languageOf(code) {
  const name = [...code.classList].find((word) => word.startsWith("language-"));
  return name?.slice("language-".length) ?? "";
}

/** Frames the blocks of code within `root`. isOpen: more of it is being written, so that copying waits. */
export function frameCode(root, isOpen) {
  for (const code of root.querySelectorAll("pre > code")) {
    const [block, language] = [code.parentElement, languageOf(code)];
    const title = element("span", {}, language || "text");
    const head = element("div", { className: "code-head" }, title);
    if (!isOpen) head.append(copyButton("Copy code", () => code.textContent));
    const frame = element("div", { className: "code" }, head);
    block.replaceWith(frame);
    frame.append(block);
    Object.assign(block, { tabIndex: 0, role: "group", ariaLabel: `Code, ${language || "text"}` });
    if (!language || code.textContent.length > LONGEST) continue;
    if (highlighter) paint(code, language);
    else load().then(() => { if (code.isConnected) paint(code, language); }, () => {});
  }
}
