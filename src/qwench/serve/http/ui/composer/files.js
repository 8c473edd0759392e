// Files of text: read for a message, shown in one.

import { element } from "../dom/elements.js";
import { icon } from "../dom/icons.js";

const LARGEST = 2 << 20; // bytes; more than the context of any model here

/** {name, text}; throws an Error that says why a file can't be had. */
export async function readText(file) {
  if (file.size > LARGEST) throw new Error(`${file.name} is larger than ${LARGEST >> 20} MiB`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} isn't text in UTF-8`);
  }
  if (text.includes("\0")) throw new Error(`${file.name} isn't text`);
  return { name: file.name, text };
}

export function size({ text }) {
  const kib = new Blob([text]).size / 1024;
  return kib < 1 ? "under 1 KiB" : `${kib.toFixed(0)} KiB`;
}

/** A file of a message, folded. */
export function fileView(file) {
  const title = element("summary", {}, icon("file"), element("span", {}, file.name), element("small", {}, size(file)));
  const text = element("pre", { tabIndex: 0, role: "group", ariaLabel: `Text of ${file.name}` }, file.text);
  return element("details", { className: "file" }, title, text);
}
