// Draws formulas with KaTeX, which is loaded when the first one comes.

import { element, once } from "../dom/elements.js";

const FOLDER = "/ui/vendor/katex";
const LONGEST = 5000; // characters; beyond it a formula stays as it was written
const BOUNDS = { throwOnError: true, strict: "ignore", trust: false, maxSize: 20, maxExpand: 200 };

const load = once(async () => {
  const style = element("link", { rel: "stylesheet", href: `${FOLDER}/katex.min.css` });
  const isStyled = new Promise((resolve, reject) => { style.onload = resolve; style.onerror = reject; });
  document.head.append(style);
  await Promise.all([isStyled, import(`${FOLDER}/katex.min.js`)]);
});

function draw(code) {
  const isDisplay = code.classList.contains("display");
  const drawn = element("span", { className: isDisplay ? "drawn display" : "drawn" });
  try {
    // Into the document and not as HTML, whose style attributes the page's policy forbids.
    globalThis.katex.render(code.textContent, drawn, { ...BOUNDS, displayMode: isDisplay });
    if (isDisplay) drawn.tabIndex = 0; // a wide one is scrolled
    code.replaceWith(drawn);
  } catch {
    code.classList.add("unknown"); // TeX that KaTeX doesn't know stays as it was written
  }
}

/** Draws the formulas within `root`: at once where KaTeX is loaded. */
export function typeset(root) {
  const formulas = [...root.querySelectorAll("code.formula")].filter((code) => code.textContent.length <= LONGEST);
  if (!formulas.length) return;
  if (globalThis.katex) formulas.forEach(draw);
  else load().then(() => formulas.filter((code) => code.isConnected).forEach(draw), () => {});
}
