// A text shown as Markdown while it grows: blocks that stay the same stay in the document, with what a reader selected.

import { element } from "../dom/elements.js";
import { frameCode } from "./code_block.js";
import { blocks, fragment } from "./markdown.js";
import { typeset } from "./typeset.js";

export class MarkdownView {
  #shown = []; // {html, isOpen, nodes} of each block
  #text = null;
  #isComplete = false;

  constructor(root) {
    this.root = root;
    root.classList.add("prose");
  }

  /** isComplete: nothing will follow. */
  show(text, isComplete) {
    if (text === this.#text && isComplete === this.#isComplete) return;
    [this.#text, this.#isComplete] = [text, isComplete];
    const wanted = blocks(text);
    const isOpen = (i) => !isComplete && i === wanted.length - 1;
    let same = 0;
    while (same < wanted.length && this.#isShown(same, wanted[same], isOpen(same))) same += 1;
    for (const block of this.#shown.splice(same)) block.nodes.forEach((node) => node.remove());
    for (let i = same; i < wanted.length; i++) this.#add(wanted[i], isOpen(i));
  }

  #isShown(i, html, isOpen) {
    const block = this.#shown[i];
    return block !== undefined && block.html === html && block.isOpen === isOpen;
  }

  #add(html, isOpen) {
    const block = element("div", {}, fragment(html));
    frameCode(block, isOpen);
    const nodes = [...block.childNodes];
    this.root.append(...nodes);
    for (const node of nodes) if (node instanceof Element) typeset(node);
    this.#shown.push({ html, isOpen, nodes });
  }
}
