// Calls of tools in an answer: what is called with which arguments, and its result, which the reader may give.

import { element } from "../dom/elements.js";
import { icon } from "../dom/icons.js";

/** Arguments set out on lines; as they came while they are incomplete. */
function setOut(args) {
  try {
    return JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    return args;
  }
}

function block(text, label) {
  return element("pre", { tabIndex: 0, role: "group", ariaLabel: label }, element("code", {}, text));
}

export class CallsView {
  #shown = "";

  /** give: told the results, one a call, once the reader has written them. */
  constructor(give) {
    this.give = give;
    this.root = element("form", { className: "calls", hidden: true });
    this.root.addEventListener("submit", (event) => {
      event.preventDefault();
      this.give([...this.root.querySelectorAll("textarea")].map((area) => area.value));
    });
  }

  show({ tool_calls: calls = [] }, results, isWriting, isAsking) {
    const known = JSON.stringify([calls, results, isWriting, isAsking]);
    if (known === this.#shown) return;
    this.#shown = known;
    this.root.hidden = !calls.length;
    const isOpen = isAsking && results.length < calls.length;
    this.root.replaceChildren(...calls.map((call) => this.#call(call, results, isWriting, isOpen)));
    const words = calls.length > 1 ? "Send results" : "Send result";
    if (isOpen) this.root.append(element("button", { type: "submit", className: "main" }, words));
  }

  #call({ id, function: { name, arguments: args } }, results, isWriting, isOpen) {
    const result = results.find((message) => message.tool_call_id === id);
    const title = element("p", { className: "call-name" }, icon("tool"), isWriting ? `Calling ${name}…` : name);
    const call = element("div", { className: "call" }, title, block(setOut(args), `Arguments of ${name}`));
    if (result) {
      call.append(element("p", { className: "call-name" }, "Result"), block(result.content, `Result of ${name}`));
    } else if (isOpen) {
      const area = element("textarea", { rows: 2, placeholder: "What the tool answers" });
      call.append(element("label", {}, `Result of ${name}`, area));
    }
    return call;
  }
}
