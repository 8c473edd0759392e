"""`qwench chat`: a conversation at the terminal, or one user turn per line from a pipe."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated

from typer import Option

from qwench.cli.options import (
    MaxNewTokens,
    Memory,
    Model,
    Seed,
    Target,
    Temperature,
    Threads,
    TopK,
    TopP,
    Weights,
)
from qwench.errors import QwenchError, RequestError

if TYPE_CHECKING:
    from qwench.llm import LLM
    from qwench.runtime.request import SamplingParams

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def command(
    model: Model,
    system: Annotated[str | None, Option(help="Instructions before the conversation.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    threads: Threads = None,
    weights: Weights = None,
    target: Target = None,
    memory: Memory = None,
) -> None:
    """Talk with the model; /reset starts anew, /exit leaves, Ctrl-C stops an answer."""
    from qwench.cli.answer import has_chat_template
    from qwench.cli.options import load, load_config, sampling_params

    with load(model, load_config(weights, target, memory), threads) as llm:
        if not has_chat_template(llm):
            raise RequestError(f"{model} has no chat template; use `qwench run --raw`")
        params = sampling_params(llm, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        _Conversation(llm, params, max_new_tokens, system).talk()


class _Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, params: SamplingParams, max_new_tokens: int | None, system: str | None) -> None:
        self.llm, self.params, self.max_new_tokens = llm, params, max_new_tokens
        self.beginning = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.beginning)
        self.is_terminal = sys.stdin.isatty()

    def talk(self) -> None:
        """Until the input ends. At a terminal an impossible request is told and forgotten; in a pipe it is raised."""
        if self.is_terminal:
            import readline  # noqa: F401  # gives input() its line editing

            print(HELP, file=sys.stderr)
        while (line := self.read()) is not None:
            if line == "/reset":
                self.messages = list(self.beginning)
            elif line in ("/exit", "/quit"):
                return
            elif line in ("/help", "/?"):
                print(HELP, file=sys.stderr)
            elif line:
                self.answer(line)

    def read(self) -> str | None:
        """The next line; None when there are no more."""
        while True:
            try:
                return input("> " if self.is_terminal else "").strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                print(f"\n{HELP}", file=sys.stderr)

    def answer(self, text: str) -> None:
        """Streams the answer; what Ctrl-C leaves of it stays in the conversation."""
        from qwench.cli.answer import stream_chat, write

        turn = {"role": "user", "content": text}
        pieces: list[str] = []
        try:
            with (
                _CtrlC() as ctrl_c,
                closing(stream_chat(self.llm, [*self.messages, turn], self.params, self.max_new_tokens)) as deltas,
            ):
                for delta in deltas:
                    pieces.append(delta.text)
                    write(delta.text)
                    if ctrl_c.pressed:
                        write(" ...")
                        break
        except QwenchError as error:
            if not self.is_terminal:
                raise
            print(f"{error} (/reset forgets the conversation)", file=sys.stderr)
            return
        write("\n")
        self.messages += [turn, {"role": "assistant", "content": "".join(pieces)}]


class _CtrlC:
    """While it is entered Ctrl-C only leaves a note, so that no step of the engine is torn; a second one interrupts."""

    pressed = False

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __enter__(self) -> _CtrlC:
        self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._previous)
