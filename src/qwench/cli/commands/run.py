"""`qwench run`: one prompt, one answer, streamed to stdout, its speed on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from argparse import ArgumentParser, Namespace

from qwench.cli.options.loading import add_draft, add_lora, add_model, load_llm
from qwench.cli.options.sampling import add_grammar, add_sampling, grammar_of, sampling_params_of
from qwench.errors import RequestError


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    add_lora(parser)
    add_draft(parser)
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="default: what stdin holds")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    add_sampling(parser)
    add_grammar(parser)
    parser.add_argument(
        "--json", action="store_true",
        help="print one JSON object when done; its load_s is how long loading took, its ttft_s the time from the start "
        "of the process to the first token",
    )  # fmt: skip


def execute(args: Namespace) -> None:
    """Answer one prompt."""
    from qwench.cli.terminal.answer import has_chat_template, speed_line, stream_chat, stream_prompt, timings
    from qwench.cli.terminal.answer_printer import AnswerPrinter
    from qwench.host import process_age_s

    text, grammar = _read_stdin() if args.prompt is None else args.prompt, grammar_of(args)
    with load_llm(args) as llm:
        params = dataclasses.replace(sampling_params_of(args, llm), grammar=grammar)
        if args.raw or not has_chat_template(llm):
            deltas = stream_prompt(llm, text, params, args.max_new_tokens)
        else:
            deltas = stream_chat(llm, [{"role": "user", "content": text}], params, args.max_new_tokens)
        ttft_s, printer = None, AnswerPrinter()
        for delta in deltas:
            if ttft_s is None and delta.token_ids:
                ttft_s = process_age_s()
            if not args.json:
                printer.show(delta)
        output = delta.output
        assert output is not None, "a stream ends with the whole output"
    answer = output.outputs[0]
    if args.json:
        report = {
            "text": answer.text,
            **({"reasoning": answer.reasoning} if answer.reasoning else {}),
            "token_ids": answer.token_ids,
            "prompt_tokens": len(output.prompt_token_ids),
            "finish_reason": answer.finish_reason,
            "timings": {"load_s": llm.load_s, "ttft_s": ttft_s, **timings(output)},
            "drafted_tokens": answer.timings.num_drafted_tokens,
            "accepted_tokens": answer.timings.num_accepted_tokens,
        }
        print(json.dumps(report))
    else:
        printer.end()
        start = f"loaded in {llm.load_s:.2f} s, first token after {ttft_s:.2f} s"
        print(f"[{start}; {speed_line(output)}]", file=sys.stderr)


def _read_stdin() -> str:
    """All of stdin, less one newline at its end."""
    if sys.stdin.isatty():
        raise RequestError("there is no prompt; give one with -p TEXT, or pipe it in")
    try:
        text = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"the prompt on stdin is not UTF-8 (byte {error.start})") from None
    if not text:
        raise RequestError("the prompt on stdin is empty; give one with -p TEXT, or pipe it in")
    return text
