"""llama.cpp as a contender, through the C API that llama-cpp-python binds. Runs where that and `gguf` are installed.

Token ids in, logits out, as llama-bench does it: a batch of at most 512 tokens a call, flash attention on, off
or as it decides by itself, whichever read a trial prompt soonest.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders.contender import Compiled, LogitsContender
from benchmarks.plan import MAX_STEP_TOKENS

QUANTS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0", "int4-head8": "Q4_0"}
TRIAL_TOKENS = 128  # of the prompt that chooses the kind of attention


class LlamaCppContender(LogitsContender):
    """One model, and one context for as many users as the last work had."""

    formats = tuple(QUANTS)

    def __init__(self) -> None:
        super().__init__()
        self._context: Any = None
        self._shape = (0, 0)
        self._flash_attention: int | None = None

    def version(self) -> str:
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}"

    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        import llama_cpp as api

        from benchmarks.contenders.gguf_file import write_gguf

        out.mkdir(parents=True)
        quant = QUANTS.get(format_name, format_name)  # or one by llama.cpp's own name
        whole, path = out / "BF16.gguf", out / f"{quant}.gguf"
        num_bytes = write_gguf(checkpoint, whole)
        note = "BF16"
        if format_name != "bf16":
            params = api.llama_model_quantize_default_params()
            params.nthread = threads
            params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{quant}")
            params.pure = format_name in QUANTS  # no K-quants for some tensors: as many bits for each matrix
            params.allow_requantize = True  # a mixture has 4 bits already
            note = f"{quant}, embedding and head too" if params.pure else quant
            if format_name == "int4-head8":
                params.token_embedding_type = params.output_tensor_type = api.GGML_TYPE_Q8_0
                note = "Q4_0, embedding and head Q8_0"
            if api.llama_model_quantize(str(whole).encode(), str(path).encode(), ctypes.byref(params)) != 0:
                raise RuntimeError("llama_model_quantize failed; the log says why")
            whole.unlink()
            num_bytes = _tensor_bytes(path)
        return Compiled(str(path), num_bytes, note)

    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        import llama_cpp as api

        self._api, self._threads = api, threads
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp can't open {path}; the log says why")
        self._vocab_size = api.llama_n_vocab(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(MAX_STEP_TOKENS, 0, 1)

    def prepare(self, users: int, positions: int) -> None:
        if self._flash_attention is None and positions > TRIAL_TOKENS:
            self._flash_attention = self._choose_attention()
        if users > self._shape[0] or positions > self._shape[1]:
            kind = self._api.LLAMA_FLASH_ATTN_TYPE_AUTO if self._flash_attention is None else self._flash_attention
            self._make_context(users, positions, kind)
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _choose_attention(self) -> int:
        """The kind of attention that reads a trial prompt soonest, the best of two each."""
        api = self._api
        kinds: tuple[int, ...] = (api.LLAMA_FLASH_ATTN_TYPE_DISABLED, api.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        seconds = dict.fromkeys(kinds, float("inf"))
        for kind in kinds * 2:
            self._make_context(1, TRIAL_TOKENS, kind)
            start = time.perf_counter()
            self._decode([(0, i, 0, False) for i in range(TRIAL_TOKENS)])
            seconds[kind] = min(seconds[kind], time.perf_counter() - start)
        return min(kinds, key=lambda kind: seconds[kind])

    def _make_context(self, users: int, positions: int, flash_attention: int) -> None:
        """Room for `users` sequences of `positions` tokens; the old context goes first."""
        api = self._api
        if self._context is not None:
            api.llama_free(self._context)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = users * (-(-positions // 256) * 256), users
        params.n_batch = params.n_ubatch = MAX_STEP_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = flash_attention
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp can't make a context for {users} users; the log says why")
        self._shape = (users, positions)

    def prefill(self, prompts: list[list[int]], num_generate: int) -> None:
        self._left = num_generate - 1
        rows = [
            (token, position, user, position == len(ids) - 1)
            for user, ids in enumerate(prompts)
            for position, token in enumerate(ids)
        ]
        self._positions = [len(ids) for ids in prompts]
        for begin in range(0, len(rows), MAX_STEP_TOKENS):
            self._decode(rows[begin : begin + MAX_STEP_TOKENS])

    def decode(self) -> None:
        for _ in range(self._left):
            users = range(len(self.answers))
            self._decode([(self.answers[u][-1], self._positions[u], u, True) for u in users])
            self._positions = [position + 1 for position in self._positions]

    def logits(self, token_ids: list[int], first: int) -> Any:
        import numpy as np

        self.prepare(1, len(token_ids))
        rows = [(token, position, 0, position >= first) for position, token in enumerate(token_ids)]
        result = []
        for begin in range(0, len(rows), MAX_STEP_TOKENS):
            result += [logits.copy() for _, logits in self._run(rows[begin : begin + MAX_STEP_TOKENS])]
        return np.array(result)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One call for rows of (token, position, user, whether its logits are wanted); appends to `answers`."""
        for user, logits in self._run(rows):
            self.answers[user].append(int(logits.argmax()))

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, Any]]:
        """The same, and of each row that is wanted its user and its logits [vocab_size], valid until the next call."""
        import numpy as np

        batch, count = self._batch, len(rows)
        batch.n_tokens = count
        tokens, positions, users, wanted = (np.array(column) for column in zip(*rows))
        for pointer, values in (
            (batch.token, tokens), (batch.pos, positions), (batch.n_seq_id, 1), (batch.logits, wanted),
        ):  # fmt: skip
            np.ctypeslib.as_array(pointer, (count,))[:] = values
        for i in range(count):
            batch.seq_id[i][0] = int(users[i])
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}; the log says why")
        self._api.llama_synchronize(self._context)
        get, shape = self._api.llama_get_logits_ith, (self._vocab_size,)
        return [
            (int(users[row]), np.ctypeslib.as_array(get(self._context, row), shape))
            for row in np.flatnonzero(wanted).tolist()
        ]

    def cache_bytes(self) -> int:
        """Its keys and values are fp16, for n_ctx positions."""
        api = self._api
        head_dim = api.llama_model_n_embd(self._model) // api.llama_model_n_head(self._model)
        width = head_dim * api.llama_model_n_head_kv(self._model)
        return int(2 * 2 * width * api.llama_model_n_layer(self._model) * api.llama_n_ctx(self._context))


def _tensor_bytes(path: Path) -> int:
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
