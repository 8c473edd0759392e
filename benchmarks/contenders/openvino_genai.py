"""OpenVINO GenAI as a contender: optimum-intel exports and compresses, the continuous-batching pipeline answers.

Runs where `openvino-genai` and `optimum-intel` are installed. That pipeline takes token ids without a tokenizer, serves
one user as well as many, and was no slower than LLMPipeline for either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders.contender import Compiled, LibraryContender
from benchmarks.plan import MAX_STEP_TOKENS

# Format -> options of OVWeightQuantizationConfig; what optimum-intel recommends, but symmetric.
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"bits": 8},
    "int4": {"bits": 4, "group_size": 128, "sym": True, "ratio": 1.0, "all_layers": True},
    "int4-head8": {"bits": 4, "group_size": 128, "sym": True, "ratio": 1.0},
}
NOTES = {
    "bf16": "as in the checkpoint",
    "int8": "per channel",
    "int4": "groups of 128, embedding and head too",
    "int4-head8": "groups of 128, embedding and head int8",
}


class OpenVinoContender(LibraryContender):
    """A pipeline without prefix cache; steps of at most MAX_STEP_TOKENS tokens (256 and 4096 were slower)."""

    formats = tuple(OPTIONS)

    def version(self) -> str:
        import openvino_genai

        return f"openvino-genai {openvino_genai.__version__.partition('-')[0]}"

    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        import torch
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        torch.set_num_threads(threads)
        options: dict[str, Any] = {"load_in_8bit": False}  # which it would do by default from a billion weights on
        if OPTIONS[format_name]:
            options = {"quantization_config": OVWeightQuantizationConfig(**OPTIONS[format_name])}
        model = OVModelForCausalLM.from_pretrained(str(checkpoint), export=True, compile=False, **options)
        model.save_pretrained(str(out))
        return Compiled(str(out), (out / "openvino_model.bin").stat().st_size, NOTES[format_name])

    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        import openvino_genai as genai

        scheduling = genai.SchedulerConfig()
        scheduling.max_num_batched_tokens, scheduling.max_num_seqs = MAX_STEP_TOKENS, users
        scheduling.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline: Any = genai.ContinuousBatchingPipeline(str(path), scheduling, "CPU", properties)
        self._num_requests = 0

    def prepare(self, users: int, positions: int) -> None:
        pass  # one pipeline serves all

    def prefill(self, prompts: list[list[int]], num_generate: int) -> None:
        import numpy as np
        import openvino
        import openvino_genai as genai

        config = genai.GenerationConfig(max_new_tokens=num_generate, ignore_eos=True, do_sample=False)
        self._handles = []
        for ids in prompts:
            tensor = openvino.Tensor(np.array([ids], np.int64))
            self._handles.append(self._pipeline.add_request(self._num_requests, tensor, config))
            self._num_requests += 1
        while not all(self.answers):
            self._step()

    def decode(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._step()

    def _step(self) -> None:
        self._pipeline.step()
        for tokens, handle in zip(self.answers, self._handles, strict=True):
            if handle.can_read():
                for output in handle.read().values():
                    tokens.extend(output.generated_ids)

    def cache_bytes(self) -> int:
        return int(self._pipeline.get_metrics().kv_cache_size_in_bytes)
