"""qwench as a contender: its command line compiles, its engine answers. Runs where qwench is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contenders.contender import Compiled, LibraryContender
from benchmarks.plan import MAX_STEP_TOKENS

if TYPE_CHECKING:
    from qwench.runtime.engine import Engine

# Format -> --weights and --head-weights. With bf16 the others round activations to bf16: --activations bf16, too.
OPTIONS = {"bf16": ("bf16", "bf16"), "int8": ("int8", "int8"), "int4": ("int4", "int4"), "int4-head8": ("int4", "int8")}


class QwenchContender(LibraryContender):
    """The engine without its prefix cache, which repeated runs would otherwise profit from."""

    formats = tuple(OPTIONS)

    def __init__(self) -> None:
        super().__init__()
        self._engine: Engine | None = None

    def version(self) -> str:
        import qwench

        return f"qwench {qwench.__version__}"

    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        from qwench.artifact.artifact import open_artifact
        from qwench.cli.main import main

        weights, head = OPTIONS[format_name]
        command = ["compile", str(checkpoint), "-o", str(out), "--weights", weights, "--head-weights", head]
        command += ["--max-seq-len", str(max_positions), "--batch-size", "16"]
        command += ["--prefill-chunk-size", str(MAX_STEP_TOKENS)]
        command += ["--target", self.target]
        command += ["--activations", "bf16"] if format_name == "bf16" else []
        if main(command) != 0:
            raise RuntimeError("qwench compile failed; its message is in the log")
        tensors = open_artifact(out).tensors.values()
        return Compiled(str(out), sum(tensor.nbytes for tensor in tensors), f"{weights}, head {head}, groups of 128")

    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        from qwench.artifact.artifact import open_artifact
        from qwench.runtime.loading import load_engine

        artifact = open_artifact(path)
        config = artifact.config
        assert config.kvcache_block_size and config.max_seq_len
        block_size = config.kvcache_block_size
        num_blocks = max(-(-positions // block_size) + users, -(-config.max_seq_len // block_size))
        self._engine = load_engine(artifact, num_threads=threads, num_blocks=num_blocks, enable_prefix_caching=False)
        self._position_bytes = self._engine.cache.block_bytes(artifact.program) // block_size
        self._most_positions = 0

    def prepare(self, users: int, positions: int) -> None:
        pass  # one cache serves all

    def prefill(self, prompts: list[list[int]], num_generate: int) -> None:
        from qwench.runtime.sampling.sampling_params import SamplingParams

        assert self._engine is not None
        params = SamplingParams(max_tokens=num_generate, temperature=0, ignore_eos=True)
        self._most_positions = max(self._most_positions, sum(len(ids) + num_generate for ids in prompts))
        self._users = {self._engine.add_request(ids, params): user for user, ids in enumerate(prompts)}
        while not all(self.answers):
            self._step()

    def decode(self) -> None:
        assert self._engine is not None
        while self._engine.has_unfinished():
            self._step()

    def _step(self) -> None:
        assert self._engine is not None
        for output in self._engine.step():
            if output.error is not None:
                raise output.error
            if output.token_id is not None:
                self.answers[self._users[output.request_id]].append(output.token_id)

    def cache_bytes(self) -> int:
        return self._position_bytes * self._most_positions
