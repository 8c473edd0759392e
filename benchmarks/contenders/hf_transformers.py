"""transformers as a contender: bf16, the checkpoint as it is, PyTorch's attention. Runs where torch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders.contender import Compiled, LibraryContender
from benchmarks.safetensors_folder import read_tensors


class TransformersContender(LibraryContender):
    """Forward passes with a growing cache. `generate()` would add its own loop's cost to each token."""

    formats = ("bf16",)

    def version(self) -> str:
        import torch
        import transformers

        return f"transformers {transformers.__version__}, torch {torch.__version__}"

    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        size = sum(tensor.raw.nbytes for tensor in read_tensors(checkpoint))
        return Compiled(str(checkpoint), size, "opens the checkpoint itself")

    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._cache: Any = None

    def prepare(self, users: int, positions: int) -> None:
        self._cache = None  # gives the last work's cache back before the clock runs

    def prefill(self, prompts: list[list[int]], num_generate: int) -> None:
        import torch

        self._left = num_generate - 1
        self._next = torch.tensor(prompts)
        self._forward()

    def decode(self) -> None:
        for _ in range(self._left):
            self._forward()

    def _forward(self) -> None:
        import torch

        with torch.inference_mode():
            output = self._model(input_ids=self._next, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache = output.past_key_values
            self._next = output.logits[:, -1:].argmax(-1)
        for tokens, token in zip(self.answers, self._next[:, 0].tolist(), strict=True):
            tokens.append(token)

    def cache_bytes(self) -> int:
        layers = [] if self._cache is None else self._cache.layers
        return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
