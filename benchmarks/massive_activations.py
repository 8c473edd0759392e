"""`python -m benchmarks.massive_activations CHECKPOINT OUT`: the checkpoint, with massive activations into `down_proj`.

Published Qwen2 models have a few: at the first token or a delimiter, a few neurons of early layers are a thousand times
the others, and a residual of one channel comes of them (arXiv:2402.17762). What shares a group with such a neuron has
hardly any integer codes left. Small models that are trained for an hour don't do that by themselves. Here one neuron
of each chosen layer, the one that matters least, is made to answer one token alone, so that formats can be compared
on such activations: `python -m benchmarks.quality OUT`.

The neuron's gate and up rows are a * u, its activation silu(a u.x) (a u.x), where u = M^-1 m / (m M^-1 m): of all
directions with u.m = 1 that in which other tokens' inputs x are smallest, with m the token's mean input and M the
others' second moments.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.folders import check_checkpoint

WINDOW = 512


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.massive_activations", description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder of a Qwen2 checkpoint with its tokenizer")
    add("out", type=Path, help="folder of the new checkpoint")
    add("--text", type=Path, required=True, help="in which the token occurs")
    add("--token", default="<|endoftext|>", help="which one is answered; default <|endoftext|>")
    add("--layers", type=int, nargs="+", default=[1, 2], help="default 1 2")
    add("--peak", type=float, default=1000.0, help="the activation; default 1000")
    add(
        "--residual",
        type=float,
        default=30.0,
        help="what comes of it in one channel, over the residual's norm per channel",
    )
    return parser


def inputs_of(model: torch.nn.Module, layer: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the tokens of all windows [num, WINDOW]: what the layer's MLP reads, its neurons, the residual after it."""
    kept: dict[str, list[torch.Tensor]] = {"x": [], "neurons": [], "residual": []}
    block = model.model.layers[layer]
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _, given: kept["x"].append(given[0].flatten(0, 1))),
        block.mlp.down_proj.register_forward_pre_hook(lambda _, given: kept["neurons"].append(given[0].flatten(0, 1))),
        block.register_forward_hook(lambda _, given, out: kept["residual"].append(
            (out[0] if isinstance(out, tuple) else out).flatten(0, 1)
        )),
    ]  # fmt: skip
    for window in ids:
        model(window[None])
    for hook in hooks:
        hook.remove()
    return torch.cat(kept["x"]), torch.cat(kept["neurons"]), torch.cat(kept["residual"])


def make_massive(
    model: torch.nn.Module, layer: int, ids: torch.Tensor, token: int, peak: float, residual: float
) -> tuple[int, float, float]:
    """Changes one neuron of a layer. Returns which, and its mean magnitude at the token and elsewhere."""
    x, neurons, states = inputs_of(model, layer, ids)
    here = ids.flatten() == token
    mlp = model.model.layers[layer].mlp
    which = int((neurons.abs().mean(0) * mlp.down_proj.weight.norm(dim=0)).argmin())
    others, mean = x[~here].double(), x[here].double().mean(0)
    moments = others.T @ others / len(others)
    moments += 1e-4 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    direction = torch.linalg.solve(moments, mean)
    direction = (direction / (direction @ mean) * peak**0.5).float()
    mlp.gate_proj.weight[which] = direction
    mlp.up_proj.weight[which] = direction
    mlp.down_proj.weight[:, which] = 0
    rms = states[~here].square().mean().sqrt()
    mlp.down_proj.weight[which % len(mlp.down_proj.weight), which] = residual * rms / peak
    _, neurons, _ = inputs_of(model, layer, ids)
    return which, float(neurons[here, which].abs().mean()), float(neurons[~here].abs().mean())


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    check_checkpoint(parser, args.checkpoint)
    if args.out.exists():
        parser.error(f"{args.out} is there already; give another folder")
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    tokens = np.asarray(tokenizer(args.text.read_text(encoding="utf-8"))["input_ids"])
    token = tokenizer.convert_tokens_to_ids(args.token)
    ids = torch.from_numpy(tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW))
    if not (ids == token).any():
        parser.error(f"{args.token!r} does not occur in the first windows of {args.text}")
    if outside := [layer for layer in args.layers if not 0 <= layer < model.config.num_hidden_layers]:
        parser.error(f"there is no layer {outside[0]}; the model has {model.config.num_hidden_layers}")
    for layer in args.layers:
        with torch.no_grad():
            which, massive, usual = make_massive(model, layer, ids, token, args.peak, args.residual)
        print(f"layer {layer}: neuron {which} is {massive:.0f} at {args.token}; the mean of all neurons is {usual:.3f}")
    shutil.copytree(args.checkpoint, args.out)
    for weights in args.out.glob("*.safetensors*"):
        weights.unlink()
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
