"""`qwench run`: one prompt, one answer, streamed to stdout, its speed on stderr."""

from __future__ import annotations

import json
import sys
from typing import Annotated

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
from qwench.errors import RequestError


def command(
    model: Model,
    prompt: Annotated[str | None, Option("--prompt", "-p", metavar="TEXT", help="Default: what stdin holds.")] = None,
    raw: Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    threads: Threads = None,
    weights: Weights = None,
    target: Target = None,
    memory: Memory = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object when done, and nothing else.")] = False,
) -> None:
    """Answer one prompt.

    In --json, load_s is how long loading took, ttft_s the time from the start of the process to the first token.
    """
    from qwench.cli.answer import has_chat_template, speed_line, stream_chat, stream_prompt, timings, write
    from qwench.cli.clock import process_age_s
    from qwench.cli.options import load, load_config, sampling_params

    text = _read_stdin() if prompt is None else prompt
    with load(model, load_config(weights, target, memory), threads) as llm:
        params = sampling_params(llm, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if raw or not has_chat_template(llm):
            deltas = stream_prompt(llm, text, params, max_new_tokens)
        else:
            deltas = stream_chat(llm, [{"role": "user", "content": text}], params, max_new_tokens)
        ttft_s = None
        for delta in deltas:
            if ttft_s is None and delta.token_ids:
                ttft_s = process_age_s()
            if not as_json:
                write(delta.text)
        output = delta.output
        assert output is not None, "a stream ends with the whole output"
    answer = output.outputs[0]
    if as_json:
        report = {
            "text": answer.text,
            "token_ids": answer.token_ids,
            "prompt_tokens": len(output.prompt_token_ids),
            "finish_reason": answer.finish_reason,
            "timings": {"load_s": llm.load_s, "ttft_s": ttft_s, **timings(output)},
        }
        print(json.dumps(report))
    else:
        write("\n")
        start = f"loaded in {llm.load_s:.2f} s, first token after {ttft_s:.2f} s"
        print(f"[{start}; {speed_line(output)}]", file=sys.stderr)


def _read_stdin() -> str:
    """All of stdin, less one newline at its end."""
    if sys.stdin.isatty():
        raise RequestError("there is no prompt; give one with -p TEXT, or pipe it in")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"the prompt on stdin is not UTF-8 (byte {error.start})") from None
