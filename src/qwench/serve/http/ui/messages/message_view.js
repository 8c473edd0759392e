// A message as it stands in the page: what was said, and what can be done with it.

import { piecesOf } from "../api/answer.js";
import { editor } from "../composer/editor.js";
import { fileView } from "../composer/files.js";
import { copyButton } from "../dom/clipboard.js";
import { element, iconButton } from "../dom/elements.js";
import { MarkdownView } from "../markdown/markdown_view.js";
import { childrenOf } from "../state/conversation.js";
import { CallsView } from "./calls_view.js";
import { ThoughtView } from "./thought_view.js";
import { TokensView } from "./tokens.js";

/** does: {choose, edit, redo, branchOff, giveResults}, each told the message first. */
export function messageView(conversation, message, does) {
  return new (message.role === "user" ? QuestionView : AnswerView)(conversation, message, does);
}

class MessageView {
  constructor(conversation, message, does) {
    Object.assign(this, { conversation, message, does });
    this.text = element("div", { className: "text" });
    this.actions = element("div", { className: "actions", role: "group", ariaLabel: "What to do with this message" });
    const isQuestion = message.role === "user";
    const title = element("h2", { className: "unseen" }, isQuestion ? "You" : "Model");
    this.item = element("li", { className: isQuestion ? "user" : "assistant" }, title);
  }

  /** Arrows to the other versions of the message, where there are any. */
  versions() {
    const all = childrenOf(this.conversation, this.message.parent).filter(({ role }) => role === this.message.role);
    if (all.length < 2) return [];
    const at = all.indexOf(this.message);
    const arrow = (picture, label, to) => {
      const button = iconButton(picture, label, () => this.does.choose(all[to], picture));
      button.disabled = !all[to];
      return button;
    };
    const count = element("span", { className: "version" }, `${at + 1} of ${all.length}`);
    return [element("span", { className: "versions" },
      arrow("left", "Earlier version", at - 1), count, arrow("right", "Later version", at + 1))];
  }
}

class QuestionView extends MessageView {
  constructor(conversation, message, does) {
    super(conversation, message, does);
    this.text.textContent = message.content;
    this.text.hidden = !message.content;
    this.item.append(...(message.files ?? []).map(fileView), this.text, this.actions);
  }

  update() {
    const edit = iconButton("edit", "Edit", () => this.edit());
    this.actions.replaceChildren(...this.versions(), copyButton("Copy", () => this.message.content), edit);
  }

  edit() {
    const done = (text) => {
      if (text !== null) return this.does.edit(this.message, text); // shows all anew, once it can be asked
      form.replaceWith(this.text);
      this.actions.hidden = false;
      return this.actions.querySelector('[aria-label="Edit"]').focus();
    };
    const form = editor("Your message", this.message.content, "Send", done);
    this.actions.hidden = true;
    this.text.replaceWith(form);
    form.elements[0].focus();
  }
}

class AnswerView extends MessageView {
  #tokens = null;

  constructor(conversation, message, does) {
    super(conversation, message, does);
    this.markdown = new MarkdownView(this.text);
    this.thought = new ThoughtView();
    this.calls = new CallsView((results) => does.giveResults(message, results));
    this.note = element("p", { className: "note" });
    this.item.append(this.thought.root, this.text, this.calls.root, this.actions);
  }

  /** results: messages of the role tool that answer its calls; isLast: nothing follows them. */
  update(isWriting, { results = [], isLast = true } = {}) {
    const { message } = this;
    this.item.classList.toggle("is-writing", isWriting);
    this.thought.show(message, isWriting);
    this.#showText(isWriting);
    this.calls.show(message, results, isWriting, isLast && !isWriting);
    if (isWriting) return;
    this.#showNote();
    this.actions.replaceChildren(...this.versions(), ...this.#buttons(), this.note);
  }

  #showText(isWriting) {
    const pieces = piecesOf.get(this.message);
    if (pieces && !this.#tokens) {
      this.#tokens = new TokensView();
      this.text.after(this.#tokens.root);
      this.showTokens(true);
    }
    this.#tokens?.show(pieces);
    this.markdown.show(this.message.content, !isWriting);
  }

  showTokens(isWanted) {
    this.#tokens.root.hidden = !isWanted;
    this.text.hidden = isWanted;
  }

  #showNote() {
    const { error, note } = this.message;
    this.note.textContent = error ?? note ?? "";
    this.note.classList.toggle("error", error !== undefined);
  }

  #buttons() {
    const { message, does } = this;
    const redo = iconButton("redo", message.error ? "Try again" : "Answer again", () => does.redo(message));
    if (!message.content) return [redo];
    const copy = copyButton("Copy", () => message.content);
    const branchOff = iconButton("branch", "Go on from here in a new chat", () => does.branchOff(message));
    return [copy, redo, branchOff, ...(this.#tokens ? [this.#tokensButton()] : [])];
  }

  #tokensButton() {
    const button = iconButton("tokens", "How likely each token was", () => {
      const isWanted = button.ariaPressed !== "true";
      button.ariaPressed = String(isWanted);
      this.showTokens(isWanted);
    });
    button.ariaPressed = String(!this.#tokens.root.hidden);
    return button;
  }
}
