"""An engine over two ranks with devices of their own, two processes in Triton's interpreter: one rank's tokens and
log-probabilities, and a rank that is killed."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import write_checkpoint

from qwench import LLM, QwenchConfig, SamplingParams, compile_checkpoint
from qwench.errors import TargetError
from qwench.parallel.team_executor import TeamExecutor

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'"),
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux"),
]
PARAMS = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=2)


def answers(llm: LLM) -> list[Any]:
    (output,) = llm.generate([[5, 6]], PARAMS)
    return [output.outputs[0].token_ids, output.outputs[0].logprobs]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_ranks")
    config = QwenchConfig(target="cuda-interpreter", weights="bf16", activations="fp32", max_seq_len=64, batch_size=2)
    compile_checkpoint(write_checkpoint(folder), folder / "artifact", config)
    return folder / "artifact"


def test_the_bits_are_those_of_one_rank_and_a_lost_one_is_told(artifact: Path) -> None:
    with LLM(artifact) as one:
        expected, prefix = answers(one), one.engine.executor.read_block(0)
    with LLM(artifact, tensor_parallel_size=2) as two:
        assert answers(two) == expected
        executor = two.engine.executor
        assert isinstance(executor, TeamExecutor)
        assert not hasattr(executor, "op_seconds")
        np.testing.assert_array_equal(executor.read_block(0), prefix)
        process = executor._ranks._processes[0]
        stream = two.generate([1, 2], SamplingParams(max_tokens=40, ignore_eos=True), stream=True)
        next(stream)
        os.kill(process.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(TargetError, match=rf"rank 1 \(process {process.pid}\) was ended by signal 9"):
            for _ in stream:
                pass
        assert time.monotonic() - start < 10
