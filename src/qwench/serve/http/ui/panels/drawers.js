// The two panels beside the conversation: columns where there is room, drawers over it where there isn't.

import { field } from "../dom/elements.js";
import { recall, remember } from "../state/preferences.js";

const FOCUSABLE = "button, input, select, textarea, [tabindex='0']";
const drawers = [];

class Drawer {
  /** wide: a media query; where it matches the panel is a column, and open unless the reader closed it. */
  constructor(name, wide) {
    [this.name, this.panel, this.button] = [name, field(name), field(`${name}-button`)];
    this.wide = matchMedia(wide);
    this.wide.addEventListener("change", () => this.settle());
    this.button.addEventListener("click", () => this.toggle(this.panel.hidden));
    this.panel.querySelector(".close").addEventListener("click", () => this.toggle(false));
    this.settle();
  }

  get isModal() {
    return !this.wide.matches && !this.panel.hidden;
  }

  settle() {
    this.set(this.wide.matches && recall(`open-${this.name}`, true));
  }

  toggle(isOpen) {
    if (this.wide.matches) remember(`open-${this.name}`, isOpen);
    this.set(isOpen);
    if (this.isModal) this.panel.querySelector(FOCUSABLE).focus();
    else if (!isOpen) this.button.focus();
  }

  /** A drawer keeps the keyboard to itself. */
  set(isOpen) {
    this.panel.hidden = !isOpen;
    this.button.ariaExpanded = String(isOpen);
    const modal = drawers.find((drawer) => drawer.isModal) ?? (this.isModal ? this : null);
    const isShut = (part) => modal !== null && part !== modal.panel && part.id !== "shade";
    for (const part of document.body.children) part.inert = isShut(part);
    field("shade").hidden = modal === null;
  }
}

/** Closes the drawer that lies over the conversation; whether there was one. */
export function closeDrawer() {
  const open = drawers.find((drawer) => drawer.isModal);
  open?.toggle(false);
  return open !== undefined;
}

/** Opens a panel if it isn't. */
export function openPanel(name) {
  const drawer = drawers.find((one) => one.name === name);
  if (drawer.panel.hidden) drawer.toggle(true);
}

export function watchDrawers() {
  drawers.push(new Drawer("history", "(min-width: 60rem)"), new Drawer("settings", "(min-width: 85rem)"));
  field("shade").addEventListener("click", closeDrawer);
}
