// The parameters of a request, as the form in the page has them; kept by the browser.

import { field } from "../dom/elements.js";
import { recall, remember } from "../state/preferences.js";
import { openPanel } from "./drawers.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "max_thinking_tokens"];
const form = field("parameters");

/** The tools of a request; throws an Error that says what is wrong with the text. */
function readTools(text) {
  if (!text.trim()) return [];
  let tools;
  try {
    tools = JSON.parse(text);
  } catch {
    throw new Error("This isn't JSON.");
  }
  if (!Array.isArray(tools)) throw new Error("Write a list of tools: [ … ]");
  return tools;
}

function checkTools() {
  let fault = "";
  try {
    readTools(field("tools").value);
  } catch (error) {
    fault = error.message;
  }
  field("tools").setCustomValidity(fault);
}

/** Whether a request can be made of the form; if not, shows what is wrong with it. */
export function areSettingsValid() {
  if (form.checkValidity()) return true;
  openPanel("settings");
  if (!field("tools").validity.valid) field("tools").closest("details").open = true;
  return form.reportValidity();
}

function keep() {
  const values = Object.fromEntries(new FormData(form));
  remember("parameters", { ...values, probabilities: field("probabilities").checked });
}

/** What the form says, as fields of a request. */
export function requestFields() {
  const given = new FormData(form);
  const body = {};
  for (const name of NUMBERS) if (given.get(name) !== "") body[name] = Number(given.get(name));
  if (given.get("probabilities")) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if (given.get("thinking")) body.chat_template_kwargs = { enable_thinking: given.get("thinking") === "on" };
  const tools = readTools(given.get("tools"));
  if (tools.length) body.tools = tools;
  return body;
}

export function watchSettings() {
  const { probabilities = false, ...values } = recall("parameters", {});
  field("probabilities").checked = probabilities;
  for (const [name, value] of Object.entries(values)) if (form.elements[name]) form.elements[name].value = value;
  checkTools();
  field("tools").addEventListener("input", checkTools);
  form.addEventListener("input", keep);
  form.addEventListener("submit", (event) => event.preventDefault());
}
