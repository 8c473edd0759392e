// Elements, made and found. Text goes in as text, never as HTML.

import { icon } from "./icons.js";

export const field = (id) => document.getElementById(id);

/** An element with these properties and children; strings become text, null is left out. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A button that shows a picture; `label` is its name for those who don't see it, and its hint for those who do. */
export function iconButton(name, label, action, className = "") {
  const look = { type: "button", className: `icon ${className}`.trim(), ariaLabel: label, title: label };
  const button = element("button", look, icon(name));
  button.addEventListener("click", action);
  return button;
}

export function textButton(label, action, className = "") {
  const button = element("button", { type: "button", className }, label);
  button.addEventListener("click", action);
  return button;
}

/** What `make` promises, made once however often it is asked for; a failure is tried anew the next time. */
export function once(make) {
  let promise = null;
  return () => {
    promise ??= make().catch((error) => { promise = null; throw error; });
    return promise;
  };
}

/** A number for what must be told apart; crypto.randomUUID is only there for pages of https and of this machine. */
export const newId = () => [...crypto.getRandomValues(new Uint32Array(3))].map((part) => part.toString(36)).join("");
