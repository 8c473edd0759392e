"""Trains models/qwench-passkey: a Qwen2 of 100,000 parameters that does nothing but find a passkey.

    python models/training/passkey.py --folder my-passkey --minutes 10

Its tokens are ids without a text: KEY announces a passkey of five code words, each from a list of its own, filler words
lie around it, ASK asks for it. A model that can only be right by looking back to one place says plainly whether a long
context works. `prompt` makes what the tests ask. Needs qwench[hf].
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM

PAD, KEY, ASK = 0, 1, 2
KEY_TOKENS, WORDS = 5, 12
CODES = [range(3 + i * WORDS, 3 + (i + 1) * WORDS) for i in range(KEY_TOKENS)]  # of each place in a passkey
FILLERS = range(64, 128)
VOCABULARY = 128
TRAINED_LENGTH = 256


def prompt(length: int, depth: float, seed: int) -> tuple[list[int], list[int]]:
    """`length` tokens that end by asking for a passkey at `depth` (0: start, 1: just before), and the passkey."""
    rng = random.Random(seed)
    code = [rng.choice(words) for words in CODES]
    tokens = rng.choices(FILLERS, k=length - 1)
    at = round(depth * (length - 2 - KEY_TOKENS))
    tokens[at : at + 1 + KEY_TOKENS] = [KEY, *code]
    return [*tokens, ASK], code


def batch(rng: random.Random, size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [size, length] with a key and several answers, and labels, -100 where a token could not be known."""
    ids, labels = torch.empty(size, length, dtype=torch.long), torch.full((size, length), -100)
    step = KEY_TOKENS + 1
    for row in range(size):
        code = [rng.choice(words) for words in CODES]
        tokens = rng.choices(FILLERS, k=length)
        key_at = rng.randrange(length - 2 * step)
        tokens[key_at : key_at + step] = [KEY, *code]
        for _ in range(3):
            at = rng.randrange(key_at + step, length - step + 1)
            if any(token < FILLERS[0] for token in tokens[at : at + step]):
                continue
            tokens[at : at + step] = [ASK, *code]
            labels[row, at + 1 : at + step] = torch.tensor(code)
        ids[row] = torch.tensor(tokens)
    return ids, labels


def new_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=TRAINED_LENGTH, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=None, eos_token_id=None,
            pad_token_id=PAD, initializer_range=0.08,
        )
    )  # fmt: skip


@torch.no_grad()
def share_found(model: Qwen2ForCausalLM, length: int, num_prompts: int = 24) -> float:
    """Of passkeys at depths from 0 to 1, the share that the model repeats word for word."""
    found = 0
    for i in range(num_prompts):
        tokens, code = prompt(length, i / (num_prompts - 1), seed=10_000 + i)
        logits = model(torch.tensor([tokens + code[:-1]])).logits[0, -KEY_TOKENS:]
        found += logits.argmax(-1).tolist() == code
    return found / num_prompts


def train(minutes: float, seed: int = 0) -> Qwen2ForCausalLM:
    """Trains on sequences of many lengths up to TRAINED_LENGTH until all passkeys are found, or time is up."""
    model, rng, start = new_model(), random.Random(seed), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    step, perfect = 0, 0
    while time.monotonic() - start < 60 * minutes and perfect < 4:
        length = rng.choice((48, 96, 160, TRAINED_LENGTH)) if step > 300 else 48
        ids, labels = batch(rng, 2048 // length, length)
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 100) * (0.3 if perfect else 1.0)
        logits = model(ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            share = share_found(model.eval(), TRAINED_LENGTH)
            model.train()
            perfect = perfect + 1 if share == 1 else 0
            print(
                f"step {step}, {time.monotonic() - start:.0f} s: loss {loss.item():.4f}, found {share:.0%}", flush=True
            )
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.minutes).to(torch.bfloat16).save_pretrained(args.folder)
    model = Qwen2ForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    print(f"bf16: {share_found(model, TRAINED_LENGTH):.0%} found in {TRAINED_LENGTH} tokens")


if __name__ == "__main__":
    main()
