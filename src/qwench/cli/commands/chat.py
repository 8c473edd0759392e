"""`qwench chat`: a conversation at the terminal, or one user turn per line from a pipe."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from contextlib import closing
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from qwench.cli.options.loading import add_draft, add_lora, add_model, load_llm
from qwench.cli.options.sampling import add_sampling, sampling_params_of
from qwench.errors import QwenchError, RequestError

if TYPE_CHECKING:
    from qwench.llm import LLM
    from qwench.runtime.sampling.sampling_params import SamplingParams

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    add_lora(parser)
    add_draft(parser)
    parser.add_argument("--system", metavar="TEXT", help="instructions before the conversation")
    add_sampling(parser)


def execute(args: Namespace) -> None:
    """Talk with the model.

    /reset forgets the conversation, /exit leaves, Ctrl-C stops an answer. From a pipe, each line is a turn.
    """
    from qwench.cli.terminal.answer import has_chat_template

    with load_llm(args) as llm:
        if not has_chat_template(llm):
            raise RequestError(f"{args.model} has no chat template; use `qwench run --raw`")
        params = sampling_params_of(args, llm)
        _Conversation(llm, params, args.max_new_tokens, args.system).talk()


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
        from qwench.cli.terminal.answer import stream_chat
        from qwench.cli.terminal.answer_printer import AnswerPrinter, write

        turn, printer = {"role": "user", "content": text}, AnswerPrinter()
        pieces: list[str] = []
        thought: list[str] = []
        try:
            with (
                _CtrlC() as ctrl_c,
                closing(stream_chat(self.llm, [*self.messages, turn], self.params, self.max_new_tokens)) as deltas,
            ):
                for delta in deltas:
                    pieces.append(delta.text)
                    thought.append(delta.reasoning or "")
                    printer.show(delta)
                    if ctrl_c.pressed:
                        write(" ...")
                        break
        except QwenchError as error:
            if not self.is_terminal:
                raise
            print(f"{error} (/reset forgets the conversation)", file=sys.stderr)
            return
        printer.end()
        answer = {"role": "assistant", "content": "".join(pieces)}
        if any(thought):
            answer["reasoning_content"] = "".join(thought)
        self.messages += [turn, answer]


class _CtrlC:
    """While entered, Ctrl-C only sets `pressed`, so that no step of the engine is torn; a second one interrupts."""

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
