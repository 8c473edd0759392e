"""The client of the text process: messages or text to token ids, grammars checked, each within a time limit.

Messages to the process: {"number": n, "task": name, "arguments": {...}}; from it {"number": n} with "result" or with
"error", what is wrong with the task. One task at a time: one that exceeds the limit is refused and the process
restarted for the next.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qwench.runtime.structured_output.grammar import Grammar
from qwench.serve.failures import ApiError
from qwench.serve.processes.children import Child
from qwench.serve.processes.supervisor import Supervised
from qwench.serve.processes.wire import Message

RESTART_S = 10.0  # how long a task waits for a process that is being started again


class TextClient(Supervised):
    """time_limit_s: of one task, from its start."""

    def __init__(self, child: Child, *, time_limit_s: float) -> None:
        super().__init__(child)
        self.time_limit_s = time_limit_s
        self._turn = asyncio.Lock()
        self._up = asyncio.Event()
        self._answer: asyncio.Future[Message] | None = None
        self._number = 0
        self.template_variables: frozenset[str] = frozenset()  # that the model's chat template reads

    @property
    def is_ready(self) -> bool:
        return self._up.is_set()

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], template: Mapping[str, Any], max_tokens: int
    ) -> list[int]:
        """The conversation as tokens. template: further variables of the template. max_tokens, here and below: of the
        context; a text that is certainly longer is refused early."""
        result: list[int] = await self._do("chat", messages=messages, template=template, max_tokens=max_tokens)
        return result

    async def encode(
        self, texts: Sequence[str], max_tokens: int, *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        result: list[list[int]] = await self._do(
            "encode", texts=texts, add_special_tokens=add_special_tokens, max_tokens=max_tokens
        )
        return result

    async def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_tokens: int) -> list[list[int]]:
        """Each two texts as one prompt, as the checkpoint's tokenizer puts them together."""
        result: list[list[int]] = await self._do("encode_pairs", pairs=pairs, max_tokens=max_tokens)
        return result

    async def fill(self, prefix: str, suffix: str, max_tokens: int) -> list[int]:
        """A prompt that asks for what goes between prefix and suffix."""
        result: list[int] = await self._do("fill", prefix=prefix, suffix=suffix, max_tokens=max_tokens)
        return result

    async def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(await self._do("decode", ids=ids, skip_special_tokens=skip_special_tokens))

    async def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Each token's bytes."""
        return [str(piece).encode("latin-1") for piece in await self._do("pieces", ids=ids)]

    async def try_grammar(self, grammar: Grammar, param: str | None) -> Grammar:
        """As the engine can compile it, with what it leaves aside. Raises ApiError, about the field `param`, for one
        that nobody can."""
        return Grammar(**await self._do("try_grammar", param, grammar=dataclasses.asdict(grammar)))

    async def _do(self, task: str, param: str | None = None, /, **arguments: Any) -> Any:
        """Raises ApiError 400 when the task can't be done, 503 when there's no process to do it."""
        async with self._turn:
            try:
                await asyncio.wait_for(self._up.wait(), RESTART_S)
            except asyncio.TimeoutError:
                raise ApiError.unavailable("the tokenizer is being started") from None
            self._number += 1
            self._answer = asyncio.get_running_loop().create_future()
            self.send({"number": self._number, "task": task, "arguments": arguments})
            try:
                message = await asyncio.wait_for(self._answer, self.time_limit_s)
            except asyncio.TimeoutError:
                self._up.clear()
                self.kill()
                raise ApiError.bad_request(
                    f"preparing the request took longer than {self.time_limit_s:g} s, the limit", param=param
                ) from None
        if "error" in message:
            raise ApiError.bad_request(message["error"], code=message.get("code"), param=param)
        return message["result"]

    def on_ready(self, info: Message) -> None:
        self.template_variables = frozenset(info["template_variables"])
        self._up.set()

    def on_message(self, message: Message) -> None:
        is_asked_for = message["number"] == self._number  # the task before may have been given up
        if is_asked_for and self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    def on_down(self) -> None:
        self._up.clear()
        if self._answer is not None and not self._answer.done():
            reason = "the text, template or grammar broke the process that worked on it; it may need too much memory"
            self._answer.set_result({"error": reason})
