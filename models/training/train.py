"""Train and evaluate the default model, a small Qwen2 on text that `corpus` generates, and the draft that guesses for
it.

Everything runs on a CPU with torch and transformers. The training text of step N depends only on the seed and N, so
a run that was interrupted continues where its last snapshot was.

    python models/training/train.py --minutes 60               trains models/qwench-tiny
    python models/training/train.py --draft-of models/qwench-tiny --folder models/qwench-tiny-draft --minutes 20
    python models/training/train.py --evaluate models/qwench-tiny
    python models/training/train.py --chat models/qwench-tiny "Hello!"
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any, TypeAlias

import torch
from corpus import documents
from muon import Muon
from tokenizer import save_tokenizer, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

DEFAULT_FOLDER = Path(__file__).parents[1] / "qwench-tiny"
Shape: TypeAlias = dict[str, int]
MODEL: Shape = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
# Two layers, the fewest that can look back into the prompt for what followed a word.
DRAFT: Shape = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
MAX_LENGTH = 2048
TOKENS_PER_STEP = 2048
ROW_LENGTH = 512
LONG_ROW_EVERY = 8  # every eighth step is one row of MAX_LENGTH, so that all positions are trained
MUON_PEAK = 0.015  # learning rates at their highest
ADAMW_PEAK = 2e-3
WARMUP_STEPS = 100
PROMPT_SHARE = 0.15  # of the tokens that users and system prompts say, how many count in the training loss
IGNORED = -100
VALIDATION_SEED = 1
VALIDATION_DOCUMENTS = 500


def architecture(tokenizer: PreTrainedTokenizerBase, shape: Shape) -> dict[str, object]:
    """`config.json` in the form of the Qwen2.5 checkpoints, which every version of transformers reads."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        **shape,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_LENGTH,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape["num_hidden_layers"],
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "torch_dtype": "bfloat16",
    }


def targets(tokenizer: PreTrainedTokenizerBase, tokens: list[int], rng: random.Random) -> list[int]:
    """Labels of one document: all tokens, but of what users and system prompts say only PROMPT_SHARE (else -100)."""
    start, assistant = tokenizer.convert_tokens_to_ids(["<|im_start|>", "assistant"])
    labels, answering = [], True
    for position, token in enumerate(tokens):
        if token == start:
            answering = position + 1 < len(tokens) and tokens[position + 1] == assistant
        labels.append(token if answering or rng.random() < PROMPT_SHARE else IGNORED)
    return labels


def pack_rows(
    tokenizer: PreTrainedTokenizerBase, seed: int, num_rows: int, row_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training rows and labels [num_rows, row_length]: each row starts with a document and is filled with more."""
    stream, rng = documents(seed), random.Random(seed)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    rows, labels = [], []
    for _ in range(num_rows):
        row: list[int] = []
        label: list[int] = []
        while len(row) < row_length:
            tokens = [*tokenizer.encode(next(stream)), end]
            row += tokens
            label += targets(tokenizer, tokens, rng)
        rows.append(row[:row_length])
        labels.append(label[:row_length])
    return torch.tensor(rows), torch.tensor(labels)


def validation_rows(tokenizer: PreTrainedTokenizerBase, num_documents: int = VALIDATION_DOCUMENTS) -> torch.Tensor:
    """The held-out documents, end to end, cut into rows [n, ROW_LENGTH]; the incomplete last row is left out."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokens: list[int] = []
    for text in itertools.islice(documents(VALIDATION_SEED, validation=True), num_documents):
        tokens += [*tokenizer.encode(text), end]
    return torch.tensor(tokens[: len(tokens) // ROW_LENGTH * ROW_LENGTH]).view(-1, ROW_LENGTH)


def validation_loss(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """Mean negative log-likelihood per token, in nats; all rows have equal length, so the mean of means is exact."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for part in rows.split(8):
            total += float(model(input_ids=part, labels=part, use_cache=False).loss) * len(part)
    model.train()
    return total / len(rows)


def save_checkpoint(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, shape: Shape) -> None:
    """Write the model as a plain Hugging Face folder with bf16 weights."""
    config = architecture(tokenizer, shape)
    copy = Qwen2ForCausalLM(Qwen2Config(**config))
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "bos_token_id": None,
        "pad_token_id": config["pad_token_id"],
        "eos_token_id": [config["eos_token_id"], config["pad_token_id"]],
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases; one schedule for both."""

    def __init__(self, model: torch.nn.Module) -> None:
        inner = {name: p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name}
        outer = [p for name, p in model.named_parameters() if name not in inner]
        self.muon = Muon(inner.values())
        self.adamw = torch.optim.AdamW(outer, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, fraction: float) -> None:
        """Update everything with `fraction` of the peak learning rates."""
        self.adamw.param_groups[0]["lr"] = ADAMW_PEAK * fraction
        self.adamw.step()
        self.muon.step(MUON_PEAK * fraction)

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.muon.buffers = state["muon"]


def schedule(step: int, progress: float) -> float:
    """The fraction of the peak learning rate: a short warm-up in steps, then down to zero with the time spent."""
    return min((step + 1) / WARMUP_STEPS, 1.0) * (1.0 - progress)


def train(
    folder: Path, minutes: float, seed: int, state_path: Path, snapshot_minutes: float, draft_of: Path | None
) -> None:
    """Train for `minutes` of wall time; the learning rate falls to zero over exactly that time."""
    shape, teacher = MODEL, None
    if draft_of is not None:
        shape, teacher = DRAFT, AutoModelForCausalLM.from_pretrained(draft_of, dtype=torch.float32).eval()
    if not (folder / "tokenizer.json").exists():
        prepare_tokenizer(folder, draft_of)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**architecture(tokenizer, shape)))
    optimizers = Optimizers(model)
    step, spent_s = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        step, spent_s = state["step"], state["spent_s"]
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, from step {step}", flush=True)
    started_s, budget_s, snapshot_s = time.monotonic() - spent_s, minutes * 60, spent_s + snapshot_minutes * 60
    smooth_loss = math.nan
    while spent_s < budget_s:
        loss = training_step(model, teacher, optimizers, tokenizer, seed, step, spent_s / budget_s)
        smooth_loss = loss if math.isnan(smooth_loss) else 0.98 * smooth_loss + 0.02 * loss
        step, spent_s = step + 1, time.monotonic() - started_s
        if step % 25 == 0:
            tokens = step * TOKENS_PER_STEP / 1e6
            print(f"step {step}  {spent_s / 60:.1f} min  {tokens:.2f} M tokens  loss {smooth_loss:.4f}", flush=True)
        if spent_s > snapshot_s or spent_s >= budget_s:
            snapshot_s = spent_s + snapshot_minutes * 60
            save_checkpoint(model, tokenizer, folder, shape)
            state = {"model": model.state_dict(), "optimizers": optimizers.state_dict()}
            torch.save(state | {"step": step, "spent_s": spent_s}, state_path)
    evaluate(folder)


def prepare_tokenizer(folder: Path, draft_of: Path | None) -> None:
    """A new tokenizer, or for a draft its model's own."""
    if draft_of is None:
        save_tokenizer(train_tokenizer(), folder, MAX_LENGTH)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(draft_of / name, folder / name)


def distillation_loss(
    model: torch.nn.Module, teacher: torch.nn.Module, rows: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """How many nats a token of what the teacher would say next cost the model, where the labels count: rows and
    labels [num_rows, row_length]. What a draft has to know is the teacher's choice, not the text's."""
    counted = labels[:, 1:] != IGNORED
    with torch.no_grad():
        wanted = teacher(input_ids=rows, use_cache=False).logits[:, :-1][counted].softmax(-1)
    given = model(input_ids=rows, use_cache=False).logits[:, :-1][counted].log_softmax(-1)
    return -(wanted * given).sum(-1).mean()


def training_step(
    model: torch.nn.Module,
    teacher: torch.nn.Module | None,
    optimizers: Optimizers,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    step: int,
    progress: float,
) -> float:
    """One update on TOKENS_PER_STEP fresh tokens; returns the loss before it."""
    row_length = MAX_LENGTH if step % LONG_ROW_EVERY == LONG_ROW_EVERY - 1 else ROW_LENGTH
    rows, labels = pack_rows(tokenizer, seed * 1_000_000 + step, TOKENS_PER_STEP // row_length, row_length)
    if teacher is None:
        loss = model(input_ids=rows, labels=labels, use_cache=False).loss
    else:
        loss = distillation_loss(model, teacher, rows, labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(schedule(step, progress))
    model.zero_grad()
    return float(loss.detach())


def evaluate(folder: Path) -> None:
    """Print the validation loss and perplexity of a saved checkpoint: its bf16 weights, fp32 arithmetic."""
    rows = validation_rows(AutoTokenizer.from_pretrained(folder))
    loss = validation_loss(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), rows)
    print(f"validation loss {loss:.4f}, perplexity {math.exp(loss):.3f} over {rows.numel():,} tokens")


def chat(folder: Path, prompt: str, system: bool = True) -> str:
    """The greedy answer to one prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    if not system:
        text = text[text.index("<|im_start|>user") :]
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=256, do_sample=False, temperature=None, top_k=None, top_p=None)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Train, evaluate or ask, by command line."""
    parser = argparse.ArgumentParser(description="Train or evaluate the default model.")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where the checkpoint goes")
    parser.add_argument(
        "--draft-of", type=Path, metavar="FOLDER", help="train a draft that says what the model there would say"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time to train for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--state", type=Path, default=Path("training-state.pt"), help="file to continue an interrupted run from"
    )
    parser.add_argument("--snapshot-minutes", type=float, default=5.0)
    parser.add_argument(
        "--evaluate", type=Path, metavar="FOLDER", help="only print the validation loss of a checkpoint"
    )
    parser.add_argument("--chat", nargs=2, metavar=("FOLDER", "PROMPT"), help="only answer one prompt, greedily")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        evaluate(arguments.evaluate)
    elif arguments.chat:
        print(chat(Path(arguments.chat[0]), arguments.chat[1]))
    else:
        train(
            arguments.folder,
            arguments.minutes,
            arguments.seed,
            arguments.state,
            arguments.snapshot_minutes,
            arguments.draft_of,
        )


if __name__ == "__main__":
    main()
