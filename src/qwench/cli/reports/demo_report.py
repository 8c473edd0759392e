"""What `qwench demo` reports, as an object for --json and as text. Called by `cli/commands/demo.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qwench.log_lines import one_line

if TYPE_CHECKING:
    from qwench.evaluate.determinism import Determinism
    from qwench.evaluate.users import Answer, Plan, Recording
    from qwench.llm import LLM

SHOWN_PROMPT = 100  # last characters of a prompt beside its answer
STYLES = {"instruct": "through the chat template", "general": "continued as they are"}


def work(style: str, plan: Plan) -> dict[str, Any]:
    """What is asked, the same in all runs. style: a key of STYLES."""
    lengths = [len(prompt) for prompt in plan.prompts]
    return {
        "style": style,
        "prompts": {"count": len(lengths), "min_tokens": min(lengths), "max_tokens": max(lengths)},
        "users": plan.num_users,
        "iterations": plan.num_iterations,
    }


def run_report(recording: Recording, llm: LLM, texts: Sequence[str]) -> dict[str, Any]:
    """The figures of one run, its iterations and its answers. texts: of the prompts."""
    from qwench.evaluate.user_figures import figures

    return {
        "batches": recording.plan.num_batches,
        **dataclasses.asdict(figures(recording)),
        "steps": [dataclasses.asdict(step) for step in recording.steps],
        "answers": [_answer(answer, llm, texts) for answer in recording.answers],
    }


def _answer(answer: Answer, llm: LLM, texts: Sequence[str]) -> dict[str, Any]:
    assert llm.tokenizer is not None
    return {
        "user": answer.user,
        "batch": answer.batch,
        "prompt": texts[answer.prompt],
        "text": llm.tokenizer.decode(answer.token_ids),
        "num_tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
    }


def determinism_report(found: Determinism) -> dict[str, Any]:
    """The verdict, with counts and differences."""
    plan, answers = found.recording.plan, found.recording.answers
    return {
        "identical": not found.differences,
        "rounds": plan.num_batches,
        "num_answers": len(answers),
        "num_compared": found.num_compared,
        "num_tokens": sum(len(answer.token_ids) for answer in answers),
        "sha256": found.sha256,
        "differences": [dataclasses.asdict(difference) for difference in found.differences],
    }


def print_header(report: dict[str, Any]) -> None:
    """The machine, the model and the prompts."""
    machine, prompts = report["machine"], report["prompts"]
    compiled = "compiled before" if report["compile_s"] is None else f"compiled in {report['compile_s']:.2f} s"
    print(f"machine  {machine['cpu']}, {machine['threads']} threads, target {machine['target']}")
    print(f"model    {report['model']} ({report['weights']}), {compiled}, loaded in {report['load_s']:.2f} s")
    print(
        f"prompts  {prompts['count']} of {prompts['min_tokens']} to {prompts['max_tokens']} tokens, "
        f"{STYLES[report['style']]}"
    )
    users = f"{report['users']} user{'s' * (report['users'] > 1)} at once"
    print(f"work     {users}; greedy answers, up to {report['iterations']} tokens after the first", flush=True)


ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("answers", lambda run: f"{run['num_answers']}"),
    ("tokens in answers", lambda run: f"{run['num_tokens']}"),
    ("prefill, all users' first prompts", lambda run: f"{run['prefill_s']:.2f} s"),
    ("    tokens/s", lambda run: f"{run['prefill_tokens_per_s']:.0f}"),
    ("time to first token, mean", lambda run: f"{1000 * run['ttft_s']:.0f} ms"),
    ("    least and most", lambda run: f"{1000 * run['ttft_min_s']:.0f} to {1000 * run['ttft_max_s']:.0f} ms"),
    ("iteration, median", lambda run: _or_none(run["iteration_s"], lambda s: f"{1000 * s:.2f} ms")),
    ("    tokens/s/user", lambda run: _or_none(run["tokens_per_s_per_user"], lambda x: f"{x:.1f}")),
    ("average over answers, tokens/s/user", lambda run: _or_none(run["answer_tokens_per_s"], lambda x: f"{x:.1f}")),
    ("all users, from start to end, tokens/s", lambda run: f"{run['total_tokens_per_s']:.0f}"),
    ("whole run", lambda run: f"{run['total_s']:.2f} s"),
)


def _or_none(value: float | None, show: Callable[[float], str]) -> str:
    return "none" if value is None else show(value)


def print_runs(runs: Sequence[dict[str, Any]], verbose: bool, num_shown: int) -> None:
    """The figures of all runs side by side, and some answers of the first."""
    from qwench.cli.terminal.table import print_table

    if verbose:
        for run in runs:
            _print_steps(run)
    names = [f"{run['batches']} batch{'es' * (run['batches'] > 1)}" for run in runs]
    rows = [(label, *(show(run) for run in runs)) for label, show in ROWS]
    print()
    print_table(("", *names), rows, right=names)
    for answer in runs[0]["answers"][:num_shown]:
        prompt = one_line(answer["prompt"])
        shown = prompt if len(prompt) <= SHOWN_PROMPT else f"...{prompt[3 - SHOWN_PROMPT :]}"
        print(f"\n[user {answer['user']}] {shown}\n{answer['text'].strip()}")


def _print_steps(run: dict[str, Any]) -> None:
    print()
    for number, step in enumerate(run["steps"]):
        reading = f", {step['num_prompt_tokens']} tokens of prompts read" if step["num_prompt_tokens"] else ""
        users = (
            f"{step['num_decoding']} users at {1 / step['seconds']:.1f} tokens/s/user" if step["num_decoding"] else ""
        )
        print(f"iteration {number}: {1000 * step['seconds']:.2f} ms{', ' * bool(users)}{users}{reading}")


def print_determinism(report: dict[str, Any]) -> None:
    """The verdict, and the first few differences."""
    print(
        f"answers  {report['num_answers']} in {report['rounds']} rounds, {report['num_tokens']} tokens; "
        f"{report['num_compared']} compared with the first one to the same prompt"
    )
    print(f"sha256   {report['sha256']}, the same for any number of threads, ranks and hosts")
    print(f"verdict  {'identical: tokens, and logits bit for bit' if report['identical'] else 'NOT deterministic'}")
    for difference in report["differences"][:10]:
        users, rounds = difference["users"], difference["rounds"]
        kind = "logits" if difference["same_tokens"] else "tokens"
        print(
            f"         prompt {difference['prompt']}: {kind} of user {users[1]} in round {rounds[1]} differ from those "
            f"of user {users[0]} in round {rounds[0]} at token {difference['token']}"
        )
