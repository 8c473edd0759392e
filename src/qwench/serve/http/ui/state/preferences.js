// Small settings that the browser keeps for this page, such as the parameters.

const PREFIX = "qwench.";

/** What was remembered, or `otherwise`; also where the browser keeps nothing. */
export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // it is full or closed: then the setting lasts as long as the page
  }
}
