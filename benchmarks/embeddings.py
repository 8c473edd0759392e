"""`python -m benchmarks.embeddings [MODEL]`: embeddings beside sentence-transformers, of the same checkpoint.

Texts of random tokens, all of one length, in portions that each contender embeds in turn, so that all meet the same
moments of a shared machine; ratios are taken within a portion, medians count. sentence-transformers has bf16 and fp32,
and whichever is faster is what qwench is compared with. The ceiling is that of `qwench bench` for as many prompts. The
last column is the smallest cosine with sentence-transformers in fp32. MODEL: a checkpoint; default: random weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.folders import build_folder, check_checkpoint, write_json
from benchmarks.synthetic import SHAPES, write_checkpoint
from qwench import LLM
from qwench.config import QwenchConfig
from qwench.errors import QwenchError
from qwench.evaluate.cost import CostModel
from qwench.evaluate.machine import Machine, this_machine
from qwench.evaluate.throughput import Workload, measure_ceiling
from qwench.host import cpu_name, num_cpus
from qwench.load import resolve_model
from qwench.targets.target import Float32, Int32

BATCH = 32  # texts of a portion; sentence-transformers' own batch
THEIRS = "sentence-transformers"
OURS: dict[str, dict[str, Any]] = {
    "qwench int8": {"weights": "int8"},
    "qwench bf16": {"weights": "bf16", "activations": "bf16"},
}
Embed = Callable[[Int32], Float32]  # [num_texts, num_tokens] token ids -> [num_texts, hidden_size]


def open_theirs(checkpoint: Path, dtype: str, threads: int) -> Embed:
    """sentence-transformers over the checkpoint, with a tokenizer that reads a text of numbers as those tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:  # without its tokenizer, which may want texts as chats
        for file in [checkpoint / "config.json", *checkpoint.glob("*.safetensors*")]:
            Path(folder, file.name).symlink_to(file.resolve())
        body = Transformer(folder, model_kwargs={"dtype": getattr(torch, dtype)})
    ids = {"<none>": 0, **{str(i): i for i in range(body.config.vocab_size)}}
    words = Tokenizer(models.WordLevel(ids, unk_token="<none>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    body.processor = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<none>", pad_token="<none>")
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[body, pooling, Normalize()], device="cpu")

    def embed(tokens: Int32) -> Float32:
        texts = [" ".join(map(str, ids)) for ids in tokens.tolist()]
        found: Float32 = model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        return found

    return embed


def open_ours(stack: ExitStack, checkpoint: Path, threads: int, options: dict[str, Any]) -> tuple[Embed, CostModel]:
    llm = stack.enter_context(LLM(checkpoint, num_threads=threads, enable_prefix_caching=False, **options))
    artifact = resolve_model(checkpoint, QwenchConfig(**options))  # compiled by now
    costs = CostModel.for_target(artifact.program, artifact.get_target(), llm.engine.cache)
    return lambda tokens: llm.embed(tokens.tolist(), pooling="last", normalize=True), costs


def timed(embed: Embed, tokens: Int32) -> tuple[float, Float32]:
    start = time.perf_counter()
    found = embed(tokens)
    return time.perf_counter() - start, found


def measure_portion(
    contenders: dict[str, Embed], costs: dict[str, CostModel], machine: Machine, tokens: Int32, number: int
) -> dict[str, dict[str, Any]]:
    """Contender -> seconds, the ceiling's tokens/s beside it, embeddings; each portion begins with another one."""
    names, found = list(contenders), {}
    workload = Workload(tokens.shape[1], 2, len(tokens))
    for name in names[number % len(names) :] + names[: number % len(names)]:
        ceilings = [measure_ceiling(costs[name], machine, workload)] if name in costs else []
        seconds, rows = timed(contenders[name], tokens)
        ceilings += [measure_ceiling(costs[name], machine, workload)] if name in costs else []
        ceiling = max((c.prefill_tokens_per_s for c in ceilings), default=None)
        found[name] = {"seconds": seconds, "ceiling": ceiling, "rows": rows}
        print(".", end="", file=sys.stderr, flush=True)
    return found


def summarise(portions: Sequence[dict[str, dict[str, Any]]], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """One row a contender. shape: texts of a portion, tokens of a text."""
    texts, tokens = shape
    seconds = {name: [p[name]["seconds"] for p in portions] for name in portions[0]}
    best = min((n for n in seconds if n.startswith(THEIRS)), key=lambda name: statistics.median(seconds[name]))
    rows = []
    for name, own in seconds.items():
        is_ours = name in OURS
        shares = [texts * tokens / s / p[name]["ceiling"] for s, p in zip(own, portions) if is_ours]
        ahead = [theirs / s for s, theirs in zip(own, seconds[best])]
        truth = f"{THEIRS} float32"
        cosines = [(p[name]["rows"] * p[truth]["rows"]).sum(1).min() for p in portions]
        rows.append({
            "contender": name, "texts_per_s": texts / statistics.median(own),
            "tokens_per_s": texts * tokens / statistics.median(own),
            "share_of_ceiling": statistics.median(shares) if is_ours else None,
            "ahead": statistics.median(ahead) if is_ours else None, "ahead_of": best if is_ours else None,
            "min_cosine": float(min(cosines)), "seconds": own,
        })  # fmt: skip
    return rows


def render(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'':32} {'texts/s':>8} {'tokens/s':>9} {'of ceiling':>11} {'ahead':>7} {'cosine':>9}"]
    for row in rows:
        share = "" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.0%}"
        ahead = "" if row["ahead"] is None else f"{row['ahead']:.2f}x"
        lines.append(
            f"{row['contender']:32} {row['texts_per_s']:8.2f} {row['tokens_per_s']:9.0f} {share:>11} {ahead:>7} "
            f"{row['min_cosine']:9.6f}"
        )
    best = next(row["ahead_of"] for row in rows if row["ahead_of"])
    return "\n".join([*lines, f"ahead: of {best}, the faster of the two"])


def measure(checkpoint: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    threads, machine = args.threads, this_machine("cpu", args.threads)
    vocab_size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    drawn = np.random.default_rng(0).integers(0, vocab_size, (args.texts + 1, args.tokens)).astype(np.int32)
    contenders: dict[str, Embed] = {}
    costs: dict[str, CostModel] = {}
    with ExitStack() as stack:
        for name, options in OURS.items():
            contenders[name], costs[name] = open_ours(stack, checkpoint, threads, options)
        for dtype in ("bfloat16", "float32"):
            contenders[f"{THEIRS} {dtype}"] = open_theirs(checkpoint, dtype, threads)
        for embed in contenders.values():
            embed(drawn[:1])  # warms up
        portions = [
            measure_portion(contenders, costs, machine, drawn[begin : begin + args.portion], number)
            for number, begin in enumerate(range(1, args.texts + 1, args.portion))
        ]
    print(file=sys.stderr)
    return summarise(portions, (args.portion, args.tokens))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", type=Path, help="checkpoint folder; default: random weights of --shape")
    add("--shape", choices=tuple(SHAPES), help="of the random checkpoint; default 0.5b")
    add("--texts", type=int, metavar="N", help="default 512")
    add("--tokens", type=int, default=128, metavar="N", help="of a text; default 128")
    add(
        "--threads", type=int, default=num_cpus(), metavar="N", help="default: the processors that this process may use"
    )
    add("--quick", action="store_true", help="some seconds: the tiny shape, 16 texts")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    args = parser.parse_args()
    if importlib.util.find_spec("sentence_transformers") is None:
        parser.error("sentence-transformers isn't installed; it is in the dev extra")
    args.texts = args.texts or (16 if args.quick else 512)
    args.portion = min(BATCH, max(1, args.texts // 4))
    args.texts -= args.texts % args.portion
    if args.model is None:
        shape = args.shape or ("tiny" if args.quick else "0.5b")
        args.model = build_folder() / f"qwen2-{shape}-random"
        write_checkpoint(shape, args.model)
    check_checkpoint(parser, args.model)
    try:
        rows = measure(args.model, args)
    except QwenchError as error:
        sys.exit(f"{parser.prog}: error: {error}")
    print(f"machine  {cpu_name()}, {args.threads} threads\nmodel    {args.model}")
    print(f"work     {args.texts} texts of {args.tokens} tokens, {args.portion} in turn\n")
    print(render(rows))
    write_json({"cpu": cpu_name(), "model": str(args.model), "texts": args.texts, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
