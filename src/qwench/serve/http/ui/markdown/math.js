// Formulas in Markdown: $…$ and \(…\) in a line, $$…$$ and \[…\] on lines of their own. Here they are only
// found; typeset.js draws them.

const PAIRS = [["$$", "$$"], ["\\[", "\\]"], ["\\(", "\\)"], ["$", "$"]];
const LONGEST = 2000; // characters; where a formula has no end, so far is looked for it

/** A dollar is money unless it hugs what is between it and the next one, as pandoc has it. */
function isMoney(text, start, end) {
  return /\s/.test(text[start]) || /\s/.test(text[end - 1]) || /\d/.test(text[end + 1] ?? "");
}

function inLine(state, silent) {
  const { src, pos } = state;
  const pair = PAIRS.find(([opening]) => src.startsWith(opening, pos));
  if (!pair) return false;
  const start = pos + pair[0].length;
  const within = src.slice(0, Math.min(state.posMax, start + LONGEST));
  let end = start;
  do end = within.indexOf(pair[1], end + 1);
  while (src[end - 1] === "\\");
  if (end < 0 || (pair[0] === "$" && isMoney(src, start, end))) return false;
  if (!silent) {
    const token = state.push(pair[0] === "$" || pair[0] === "\\(" ? "formula" : "display_formula", "code", 0);
    token.content = src.slice(start, end);
  }
  state.pos = end + pair[1].length;
  return true;
}

const lineOf = (state, line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trimEnd();

/** From a line that begins with $$ or \[ to one that ends with its counterpart; to the end while that is unwritten. */
function onLines(state, first, last, silent) {
  const opened = lineOf(state, first);
  const pair = PAIRS.slice(0, 2).find(([opening]) => opened.startsWith(opening));
  if (!pair || state.sCount[first] - state.blkIndent >= 4) return false;
  const body = [opened.slice(2)];
  let line = first;
  while (!body.at(-1).endsWith(pair[1]) && line + 1 < last) body.push(lineOf(state, (line += 1)));
  const isClosed = body.at(-1).endsWith(pair[1]);
  if (!isClosed && opened !== pair[0]) return false;
  if (silent) return true;
  if (isClosed) body.push(body.pop().slice(0, -2));
  const token = state.push(isClosed ? "formula_block" : "unfinished_formula", "pre", 0);
  token.content = body.join("\n").trim();
  state.line = line + 1;
  return true;
}

/** Teaches a markdown-it to find formulas. */
export function addMath(markdown) {
  const { escapeHtml: escaped } = markdown.utils;
  markdown.inline.ruler.before("escape", "formula", inLine);
  markdown.block.ruler.before("fence", "formula_block", onLines, { alt: ["paragraph", "blockquote", "list"] });
  Object.assign(markdown.renderer.rules, {
    formula: (tokens, i) => `<code class="formula">${escaped(tokens[i].content)}</code>`,
    display_formula: (tokens, i) => `<code class="formula display">${escaped(tokens[i].content)}</code>`,
    formula_block: (tokens, i) => `<div><code class="formula display">${escaped(tokens[i].content)}</code></div>`,
    unfinished_formula: (tokens, i) => `<pre><code>${escaped(tokens[i].content)}</code></pre>`,
  });
}
