// Markdown to nodes that are safe to show, whatever a model may write.
//
// Twice over: markdown-it takes no HTML, and DOMPurify lets only what is listed here through. Links lead to http, https
// and mail alone; a picture becomes a link, because fetching it would tell a stranger what was asked.

import markdownit from "../vendor/markdown-it/markdown-it.esm.min.mjs";
import "../vendor/dompurify/purify.min.js";
import { addMath } from "./math.js";

const TAGS = ["p", "br", "hr", "h3", "h4", "h5", "h6", "strong", "em", "s", "a", "blockquote", "ul", "ol", "li", "code",
  "pre", "table", "thead", "tbody", "tr", "th", "td", "div", "span"];
const ATTRIBUTES = ["href", "title", "target", "rel", "class", "start", "tabindex", "role", "aria-label"];
const SAFE = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ATTRIBUTES,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["target", "rel", "start", "tabindex"], // what the line above isn't about
  RETURN_DOM_FRAGMENT: true,
};

const markdown = markdownit({ html: false, linkify: true, breaks: true, maxNesting: 50 });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
addMath(markdown);

const { rules } = markdown.renderer;
const escaped = markdown.utils.escapeHtml;
const plain = (tokens, i, options, env, self) => self.renderToken(tokens, i, options);

rules.fence = rules.code_block = (tokens, i) => {
  const language = tokens[i].info.trim().split(/\s+/, 1)[0];
  const name = language ? ` class="language-${escaped(language)}"` : "";
  return `<pre><code${name}>${escaped(tokens[i].content)}</code></pre>`;
};
rules.image = (tokens, i) => {
  const [address, name] = [tokens[i].attrGet("src") ?? "", tokens[i].content || "picture"];
  return `<a target="_blank" rel="noopener noreferrer" href="${escaped(address)}">${escaped(name)}</a>`;
};
rules.link_open = (tokens, i, ...rest) => {
  tokens[i].attrSet("target", "_blank");
  tokens[i].attrSet("rel", "noopener noreferrer");
  return plain(tokens, i, ...rest);
};
// A wide table is scrolled by itself, with the keyboard too.
rules.table_open = () => '<div class="table" role="group" aria-label="Table" tabindex="0"><table>';
rules.table_close = () => "</table></div>";
rules.th_open = rules.td_open = (tokens, i, ...rest) => {
  const side = /text-align:(\w+)/.exec(tokens[i].attrGet("style") ?? "")?.[1];
  tokens[i].attrs = side ? [["class", side]] : null; // a style attribute is against the page's policy
  return plain(tokens, i, ...rest);
};

/** An answer's headings stand below the page's own and skip no level, whatever the model wrote. */
markdown.core.ruler.push("headings", (state) => {
  let level = 2;
  for (const token of state.tokens) {
    if (token.type === "heading_open") level = Math.min(Number(token.tag[1]) + 2, level + 1, 6);
    if (token.type.startsWith("heading_")) token.tag = `h${level}`;
  }
});

/** The HTML of each block of a text, such as a paragraph or a list; to be shown by way of `fragment` only. */
export function blocks(text) {
  const env = {};
  const found = [];
  let [block, depth] = [[], 0];
  for (const token of markdown.parse(text, env)) {
    block.push(token);
    depth += token.nesting;
    if (depth === 0) {
      found.push(markdown.renderer.render(block, markdown.options, env));
      block = [];
    }
  }
  return found;
}

/** HTML as nodes, without anything that isn't listed above. */
export const fragment = (html) => globalThis.DOMPurify.sanitize(html, SAFE);
