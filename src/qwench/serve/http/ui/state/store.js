// Conversations in the browser's own database. Where a browser keeps nothing, as some do in private windows, they last
// as long as the page does.

import { once } from "../dom/elements.js";

const [NAME, TABLE] = ["qwench", "conversations"];
const others = new BroadcastChannel(NAME); // tabs with this page

const open = once(() => new Promise((resolve, reject) => {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
}));

async function run(mode, action) {
  const table = (await open()).transaction(TABLE, mode).objectStore(TABLE);
  return new Promise((resolve, reject) => {
    const request = action(table);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** The latest first. */
export async function all() {
  const found = await run("readonly", (table) => table.getAll());
  return found.sort((a, b) => b.updated - a.updated);
}

export async function put(conversation) {
  await run("readwrite", (table) => table.put(conversation));
  others.postMessage("changed");
}

export async function remove(id) {
  await run("readwrite", (table) => table.delete(id));
  others.postMessage("changed");
}

/** Calls when another tab has changed something. */
export const onChange = (action) => others.addEventListener("message", action);
