// What a model thought before it answered: folded, and how long that took.

import { element } from "../dom/elements.js";
import { MarkdownView } from "../markdown/markdown_view.js";

export class ThoughtView {
  constructor() {
    this.title = element("summary");
    this.text = element("div", { className: "text" });
    this.markdown = new MarkdownView(this.text);
    this.root = element("details", { className: "thought", hidden: true }, this.title, this.text);
    this.root.addEventListener("toggle", () => this.#showText());
  }

  show({ reasoning = "", thought_s: seconds = 0, content, tool_calls: calls }, isWriting) {
    this.root.hidden = !reasoning;
    if (!reasoning) return;
    this.reasoning = reasoning;
    this.isComplete = !isWriting || Boolean(content || calls);
    this.root.classList.toggle("is-open", !this.isComplete);
    const time = seconds < 60 ? `${seconds.toFixed(seconds < 10 ? 1 : 0)} s` : `${(seconds / 60).toFixed(1)} min`;
    this.title.textContent = this.isComplete ? `Thought for ${time}` : `Thinking, ${time}`;
    this.#showText();
  }

  /** Only while it is unfolded: thoughts can be long. */
  #showText() {
    if (this.root.open) this.markdown.show(this.reasoning, this.isComplete);
  }
}
