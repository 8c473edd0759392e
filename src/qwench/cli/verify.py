"""`qwench verify`: is the compiled model still the checkpoint? `evaluate/` compares; this prints the verdict.

Exits with code 1 when a limit is missed.
"""

from __future__ import annotations

import functools
import json
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.options import add_ranks, config_of
from qwench.cli.progress import show_tokens

if TYPE_CHECKING:
    from qwench.artifact import Artifact
    from qwench.evaluate.fidelity import Fidelity, Greedy, Limits
    from qwench.evaluate.prompts import Prompt
    from qwench.evaluate.truth import Truth

NOT_FAITHFUL = 1
TRUTHS = ("auto", "transformers", "reference")
OTHERS = ("transformers-bf16",)
MODULES = ("embedding", "norm", "attention", "mlp", "layer", "head")


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="folder that `qwench compile` wrote")
    add("--against", required=True, metavar="CHECKPOINT", help="what it was compiled from: folder or hub id")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="JSON list of texts, of objects with a `prompt` or of lists of token ids; else text with a prompt a line. "
        "Default: 28 that come with qwench, or random token ids where the model has no tokenizer",
    )  # fmt: skip
    add("--max-tokens", type=int, default=512, metavar="N", help="of each prompt; default 512, or the model's limit")
    add("--greedy", type=int, default=32, metavar="N", help="tokens of each greedy answer; 0: none; default 32")
    add("--seed", type=int, default=0, metavar="S", help="of random token ids; default 0")
    add(
        "--truth",
        choices=TRUTHS,
        default="auto",
        help="who runs the checkpoint in fp32; default transformers, if there",
    )
    add("--also", choices=OTHERS, action="append", default=[], help="compare a further model; ours must be no worse")
    add("--min-pcc", type=float, metavar="P", help="limit for the worst token's logits; default bf16 and int8: 0.999")
    add("--min-top1", type=float, metavar="P", help="limit for top-1 agreement, 0 to 1; default int8: 0.98, int4: 0.95")
    add("--threads", type=int, metavar="N", help="default: the processors this process may use")
    add_ranks(parser)
    add("--json", type=Path, metavar="FILE", help="write all figures; - for stdout, instead of tables")
    add("--plot", type=Path, metavar="FILE", help="draw errors by layer and by token, as .png, .svg or .pdf")


def execute(args: Namespace) -> int:
    """Compare a compiled model with its checkpoint, layer by layer and at the logits."""
    from qwench.evaluate.verify import verify
    from qwench.host import num_cpus

    if args.plot is not None:
        from qwench.evaluate.fidelity_plot import check_can_draw, draw

        check_can_draw(args.plot)
    artifact, truth, others, prompts = _open(args)
    found = verify(
        artifact, truth, prompts, num_threads=args.threads or num_cpus(), num_greedy=args.greedy, others=others,
        limits=_limits(args, artifact), report=functools.partial(show_tokens, "compared"),
    )  # fmt: skip
    report = describe(found, artifact, args.against)
    if args.json is not None and str(args.json) != "-":
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        draw(found, f"{artifact.path} ({found.weights}) against {found.truth}", args.plot)
    if str(args.json) == "-":
        print(json.dumps(report))
    else:
        _print(found, report)
    return 0 if found.ok else NOT_FAITHFUL


def _open(args: Namespace) -> tuple[Artifact, Truth, list[Truth], list[Prompt]]:
    """Opens and checks all inputs before the first long computation."""
    from qwench.artifact import open_artifact
    from qwench.checkpoint.hub import find_checkpoint
    from qwench.checkpoint.open_checkpoint import open_checkpoint
    from qwench.checkpoint.tokenizer_files import has_tokenizer
    from qwench.evaluate.prompts import load_prompts
    from qwench.evaluate.truth import open_transformers, open_truth
    from qwench.evaluate.verify import check_same_model
    from qwench.load import with_options
    from qwench.text.tokenizer import Tokenizer

    _check_numbers(args)
    artifact = with_options(open_artifact(args.artifact), config_of(args))
    checkpoint, _ = find_checkpoint(args.against, None)
    check_same_model(artifact, open_checkpoint(checkpoint).spec)
    tokenizer = Tokenizer(artifact.path) if has_tokenizer(artifact.path) else None
    limit = artifact.config.max_seq_len
    assert limit is not None, "an artifact's config is resolved"
    vocab_size = artifact.program.spec.vocab_size
    prompts = load_prompts(args.prompts, tokenizer, vocab_size, min(args.max_tokens, limit), args.seed)
    truth = open_truth(checkpoint, artifact.config, args.truth, args.threads)
    others = [open_transformers(checkpoint, "bf16", artifact.config, args.threads) for _ in dict.fromkeys(args.also)]
    return artifact, truth, others, prompts


def _check_numbers(args: Namespace) -> None:
    from qwench.errors import ConfigError

    for name, low in (("max_tokens", 2), ("greedy", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {low}")
    for name in ("min_pcc", "min_top1"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be from 0 to 1")


def _limits(args: Namespace, artifact: Artifact) -> Limits:
    """The limits of the weights format, overridden by the given options."""
    from qwench.evaluate.fidelity import LIMITS, Limits

    usual = LIMITS.get(str(artifact.config.weights), Limits())
    return Limits(
        usual.min_pcc if args.min_pcc is None else args.min_pcc,
        usual.min_top1 if args.min_top1 is None else args.min_top1,
    )


def describe(found: Fidelity, artifact: Artifact, checkpoint: str) -> dict[str, Any]:
    """Everything that was found, as plain data; NaN as null."""
    prompt, token = found.worst_token()
    greedy = found.greedy
    report: dict[str, Any] = {
        "artifact": str(artifact.path),
        "checkpoint": str(checkpoint),
        "truth": found.truth,
        "weights": found.weights,
        "activations": artifact.config.activations,
        "kv_cache": artifact.config.kv_cache,
        "target": artifact.config.target,
        "num_prompts": len(found.prompts),
        "num_tokens": sum(length for _, length in found.prompts),
        "logits": found.logits.summary() | {"worst_prompt": prompt, "worst_token": token},
        "others": {name: scores.summary() for name, scores in found.others.items()},
        "states": [scores.summary() for scores in found.states],
        "modules": [
            {"kind": m.kind, "layer": m.layer, "output": m.name, **m.scores.summary()} for m in found.modules
        ],
        "greedy": greedy and {
            "num_new": greedy.num_new, "num_same": greedy.num_same, "first_divergence": greedy.first,
            "divergences": greedy.divergences, "gaps": greedy.gaps,
        },
        "pcc_by_token": found.logits.scores.pcc.tolist(),
        "checks": [{"name": c.name, "value": c.value, "limit": c.limit, "ok": c.ok} for c in found.checks],
        "suspects": [{"kind": m.kind, "layer": m.layer, "output": m.name} for m in found.suspects],
        "ok": found.ok,
    }  # fmt: skip
    plain: dict[str, Any] = _without_nan(report)
    return plain


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(found: Fidelity, report: dict[str, Any]) -> None:
    from qwench.cli.table import print_table

    beside = f" x {report['activations']} activations" if report["activations"] else ""
    formats = f"{found.weights}{beside}, KV cache {report['kv_cache']}"
    print(f"model    {report['artifact']} ({formats}, target {report['target']})")
    print(f"truth    {report['checkpoint']} with {found.truth}")
    print(f"prompts  {report['num_prompts']}, {report['num_tokens']} tokens")
    print()
    headings: tuple[str, ...] = ("layer", "norm", "attention", "mlp", "layer alone", "state after it", "error so far")
    print("Worst token's PCC of each module alone, on the truth's inputs, and of the model's own state:")
    print_table(headings, _layer_rows(found), right=headings)
    print()
    headings = ("ladder", "worst PCC", "mean PCC", "mean error", "worst in")
    print_table(headings, _ladder_rows(found), right=headings[1:4])
    print()
    headings = ("logits", "worst PCC", "mean PCC", "KL mean", "KL max", "top-1", "top-5", "perplexity", "truth's")
    rows = [_logits_row("qwench", report["logits"])]
    rows += [_logits_row(name, summary) for name, summary in report["others"].items()]
    print_table(headings, rows, right=headings[1:])
    print(f"worst token: {report['logits']['worst_token']} of {report['logits']['worst_prompt']!r}")
    if found.greedy is not None:
        print(_greedy_line(found.greedy))
    print()
    _print_verdict(found, report["activations"])


def _layer_rows(found: Fidelity) -> list[tuple[str, ...]]:
    rows = []
    for layer, state in enumerate(found.states):
        worst = {
            kind: min(m.scores.worst_pcc for m in found.modules if m.layer == layer and m.kind == kind)
            for kind in ("norm", "attention", "mlp", "layer")
        }
        cells = [_pcc(value) for value in worst.values()]
        rows.append((str(layer), *cells, _pcc(state.worst_pcc), f"{state.mean_error:.1e}"))
    return rows


def _ladder_rows(found: Fidelity) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind in MODULES:
        modules = [m for m in found.modules if m.kind == kind]
        worst = min(modules, key=lambda m: m.scores.worst_pcc)
        mean = sum(m.scores.mean_pcc for m in modules) / len(modules)
        error = sum(m.scores.mean_error for m in modules) / len(modules)
        where = "" if worst.layer is None else f"layer {worst.layer}"
        rows.append((kind, _pcc(worst.scores.worst_pcc), _pcc(mean), f"{error:.1e}", where))
    model = found.logits.scores
    rows.append(("model", _pcc(model.worst_pcc), _pcc(model.mean_pcc), f"{model.mean_error:.1e}", ""))
    return rows


def _logits_row(name: str, summary: dict[str, Any]) -> tuple[str, ...]:
    return (
        name, _pcc(summary["worst_pcc"]), _pcc(summary["mean_pcc"]), _number(summary["mean_kl"], ".1e"),
        _number(summary["max_kl"], ".1e"), _number(summary["top1"], ".2%"), _number(summary["top5"], ".2%"),
        _number(summary["perplexity"], ".3f"), _number(summary["truth_perplexity"], ".3f"),
    )  # fmt: skip


def _pcc(value: float | None) -> str:
    """Six digits, or how far from 1 where that would be all nines."""
    if value is None or math.isnan(value):
        return "NaN"
    return f"{value:.6f}" if 1 - value > 5e-6 else "1" if value >= 1 else f"1 - {1 - value:.0e}"


def _number(value: float | None, kind: str) -> str:
    return "NaN" if value is None else format(value, kind)


def _greedy_line(greedy: Greedy) -> str:
    line = f"greedy: {greedy.num_same} of {len(greedy.divergences)} answers of {greedy.num_new} tokens are the truth's"
    if greedy.first is None:
        return line
    gap = greedy.gaps[greedy.divergences.index(greedy.first)]
    assert gap is not None
    return f"{line}; the first to differ does so at token {greedy.first}, where the truth's lead is {gap:.2g} in logits"


def _print_verdict(found: Fidelity, activations: str | None) -> None:
    for check in found.checks:
        print(f"{'holds' if check.ok else 'MISSED'}  {check.name}: {_pcc(check.value)}, at least {_pcc(check.limit)}")
    if found.ok:
        print("verdict  faithful" if found.checks else "verdict  none: no limit was stated for these weights")
        return
    places = [f"{m.kind} of layer {m.layer} ({m.name})" if m.layer is not None else m.kind for m in found.suspects]
    if places:
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        print(f"verdict  NOT faithful; off by themselves: {', '.join(places[:4])}{more}")
    else:
        print("verdict  NOT faithful; no module is off by itself, the error adds up over the layers")
        if activations == "int8":
            print("closer   compile with --recipe accuracy, or at least --activations int16; prompts take longer")
