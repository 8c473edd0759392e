"""Whatever a model writes is shown as text or harmless Markdown: nothing runs, nothing is fetched or framed."""

from __future__ import annotations

from typing import Any

from hostile import HOSTILE, RUN
from page_driver import ask, copied, script, until
from server_process import ServerProcess

# Every beginning of a text, as a stream brings it, then the whole as if it had come at once.
STREAM = """async ([text, step]) => {
  const { MarkdownView } = await import("/ui/markdown/markdown_view.js");
  const faults = [];
  const check = (root) => {
    for (const part of root.querySelectorAll("*")) {
      if (part.closest(".katex")) { if (part.closest("a, img")) faults.push(part.outerHTML); continue; }
      if (part.closest(".code-head")) continue; // ours
      const bad = part.matches("script, style, img, svg, iframe, object, embed, form, input, base, meta, link, h1, h2");
      const names = part.getAttributeNames().filter((name) => /^on|^style$|^id$|^name$|^src|action/.test(name));
      const isSafe = !part.href || /^(https?:\\/\\/|mailto:)/.test(part.getAttribute("href"));
      if (bad || names.length || !isSafe) faults.push(part.outerHTML);
    }
  };
  const show = (root, texts) => {
    const view = new MarkdownView(root);
    texts.forEach((part, i) => { view.show(part, i === texts.length - 1); check(root); });
    return root;
  };
  const ends = [];
  for (let end = 0; end < text.length; end += step) ends.push(text.slice(0, end));
  const place = () => document.querySelector("#messages").appendChild(document.createElement("li"));
  const [streamed, whole] = [place(), place()];
  show(streamed, [...ends, text]);
  show(whole, [text]);
  await new Promise((resolve) => setTimeout(resolve, 50));
  return { faults, isSame: streamed.innerHTML === whole.innerHTML, hit: window.hit === true };
}"""


def test_hostile_texts(page: Any) -> None:
    """At every moment of a stream; and what has come is in the end what it would be had it come at once."""
    page.evaluate(STREAM, ["```js\nlet x;\n```\n$x$", 5])  # so that what draws code and formulas is there
    until(page, "Boolean(window.katex) && document.querySelectorAll('.hljs-keyword').length > 0")
    for text in HOSTILE:
        found = page.evaluate(STREAM, [text, 1 if len(text) < 1000 else 97])
        assert found == {"faults": [], "isSame": True, "hit": False}, text


def test_hostile_everywhere_else(page: Any) -> None:
    """In thoughts, names of tools and their arguments, and errors; then from the browser's memory."""
    calls = [{"index": 0, "id": "a", "function": {"name": f"<img src=x onerror='{RUN}'>", "arguments": HOSTILE[0]}}]
    script(page, "\n\n".join(HOSTILE[:20]), thought=HOSTILE[1], calls=calls, size=7)
    answer = ask(page, HOSTILE[1])
    answer.locator("summary").click()
    assert copied(page, answer.get_by_label("Copy", exact=True)) == "\n\n".join(HOSTILE[:20])
    script(page, error=HOSTILE[1])
    ask(page, "Again.")
    assert HOSTILE[1] in page.locator(".note.error").inner_text()
    page.reload()
    page.locator("#conversations .entry").first.click()
    page.locator("#messages > li").nth(3).wait_for()
    assert page.evaluate("window.hit") is None
    assert page.locator("#messages :is(script, img, iframe, style, form:not(.calls), [onclick])").count() == 0


def test_a_picture_is_a_link_and_links_open_elsewhere(page: Any) -> None:
    script(page, "![a cat](https://example.org/cat.png) and [words](https://example.org) and https://example.com")
    links = ask(page, "Show me.").locator(".prose a")
    assert links.all_inner_texts() == ["a cat", "words", "https://example.com"]
    assert all(link.get_attribute("target") == "_blank" for link in links.all())
    assert all(link.get_attribute("rel") == "noopener noreferrer" for link in links.all())


def test_strings_become_no_html_but_by_dompurify(browser: Any, server: ServerProcess) -> None:
    """The browser itself refuses what the page's own scripts could do wrong."""
    page = browser.new_page()
    page.goto(server.url)
    assert "TrustedHTML" in page.evaluate(
        "async () => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.message; } }"
    )
    page.close()
