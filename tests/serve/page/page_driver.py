"""What a reader does in the page, and answers that a test writes in place of a model's."""

from __future__ import annotations

import json
from typing import Any

from server_process import wait_for

# Stands in the way of the page's chat requests while window.script holds the events of an answer: they come one by one.
SCRIPTED = """
const real = window.fetch;
window.fetch = (address, options) => {
  if (!String(address).endsWith("/v1/chat/completions") || !window.script) return real(address, options);
  window.sent = JSON.parse(options.body);
  const events = window.script.map((event) => new TextEncoder().encode(event));
  const stream = new ReadableStream({
    async pull(controller) {
      await new Promise((resolve) => setTimeout(resolve, window.pause));
      if (options.signal.aborted) controller.error(new DOMException("stopped", "AbortError"));
      else if (events.length) controller.enqueue(events.shift());
      else controller.close();
    },
  });
  return Promise.resolve(new Response(stream, { headers: { "content-type": "text/event-stream" } }));
};
"""


def script(
    page: Any, content: str = "", *, thought: str = "", calls: list[dict[str, Any]] | None = None, size: int = 12,
    finish: str = "stop", pause_ms: int = 0, error: str | None = None,
) -> None:  # fmt: skip
    """What the next answers are: `size` characters an event. calls: parts of tool calls, as the API streams them.
    error: what the stream ends with instead."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": thought[i : i + size]} for i in range(0, len(thought), size)]
    deltas += [{"content": content[i : i + size]} for i in range(0, len(content), size)]
    deltas += [{"tool_calls": [call]} for call in calls or []]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else finish}]}]
    chunks += [{"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": len(deltas)}}]
    if error is not None:
        chunks[-2:] = [{"error": {"message": error}}]
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
    page.evaluate("([script, pause]) => Object.assign(window, {script, pause})", [events, pause_ms])


def send(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ask(page: Any, text: str) -> Any:
    """Sends a message by the keyboard; the answer's element once it is complete."""
    send(page, text)
    return last_answer(page)


def last_answer(page: Any) -> Any:
    """Once it is complete."""
    page.locator("#messages > li.assistant:last-child:not(.is-writing) .note").wait_for()
    return page.locator("#messages > li.assistant").last


def set_parameters(page: Any, **values: str) -> None:
    for name, value in values.items():
        page.fill(f"#{name}", value)


def copied(page: Any, button: Any) -> str:
    """What a button copies."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button.click()
    until(page, "document.getElementById('status').textContent === 'Copied.'")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def until(page: Any, expression: str) -> None:
    """Waits for an expression to be true; Chromium's own way to do so needs the eval that the page forbids."""
    wait_for(lambda: page.evaluate(expression), every_s=0.1)
