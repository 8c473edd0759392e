"""Hosts: processes that share no memory, joined by MPI, compute each step together. Here all are on this machine;
tests/slow/test_two_machines.py has a network between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwench import LLM, QwenchConfig, compile_checkpoint
from qwench.artifact.artifact import open_artifact
from qwench.cli.commands.plan import describe
from qwench.errors import ConfigError
from qwench.parallel.forecast import Network, exchanges, forecast
from qwench.program.shard import Shares

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
SCRIPT = Path(__file__).parent / "hosts_script.py"
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # which Open MPI refuses otherwise

needs_mpi = pytest.mark.skipif(MPIEXEC is None or sys.platform != "linux", reason="needs mpiexec: qwench[mpi]")


def command(num_hosts: int, *program: str) -> list[str]:
    assert MPIEXEC is not None
    return [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-n", str(num_hosts), *program]


def run(num_hosts: int, *program: str) -> subprocess.CompletedProcess[str]:
    arguments = command(num_hosts, *program) if num_hosts > 1 else list(program)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env={**os.environ, **AS_ROOT})


def findings(num_hosts: int, artifact: Path, folder: Path, **options: Any) -> dict[str, Any]:
    done = run(num_hosts, sys.executable, str(SCRIPT), str(artifact), json.dumps(options), str(folder))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts") / "int8"
    compile_checkpoint(MODEL, folder, QwenchConfig(weights="int8", max_seq_len=1024, batch_size=8))
    return folder


@needs_mpi
@pytest.mark.parametrize(
    ("options", "teams"),
    [({"weights": "bf16", "activations": "bf16"}, [(3, {})]),
     ({"weights": "int8"}, [(2, {"tensor_parallel_size": 4, "shares": "1,2,1,1"})]),
     pytest.param({"weights": "bf16"}, [(2, {})], marks=pytest.mark.slow),
     pytest.param({"weights": "int4", "kv_cache": "int8"}, [(2, {"shares": "3,1", "tensor_parallel_size": 2})],
                  marks=pytest.mark.slow)],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else None,
)  # fmt: skip
def test_the_bits_are_those_of_one_process(
    options: dict[str, str], teams: list[tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    """Answers, embeddings, adapters; a prefix that one process saved is loaded by hosts, and the file is theirs too."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
    from test_lora_adapters import write_adapter

    compile_checkpoint(MODEL, tmp_path / "a", QwenchConfig(**options, max_seq_len=1024, batch_size=8))
    spec = open_artifact(tmp_path / "a").program.spec
    write_adapter(tmp_path / "adapter", 1, spec.hidden_size, spec.num_layers)
    expected = findings(1, tmp_path / "a", tmp_path, num_threads=2)
    of_one = (tmp_path / "p.prefix").read_bytes()
    for num_hosts, loading in teams:
        found = findings(num_hosts, tmp_path / "a", tmp_path, **loading)
        del found["exchanged"]
        assert found == expected
        (tmp_path / "p.prefix").unlink()
        findings(num_hosts, tmp_path / "a", tmp_path, **loading)
        assert (tmp_path / "p.prefix").read_bytes() == of_one


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights": "bf16"}, {"weights": "int8", "group_size": 32}], ids=str)
def test_experts_on_hosts(options: dict[str, Any], tmp_path: Path) -> None:
    """Every host chooses experts by itself and computes its share of each; what they send is what was forecast."""
    pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
    from transformers_parity import write_checkpoint

    base = write_checkpoint(
        tmp_path / "base", model_type="qwen2_moe", hidden_size=128, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=200, shared_expert_intermediate_size=300, max_position_embeddings=1024,
    )  # fmt: skip
    compile_checkpoint(base, tmp_path / "a", QwenchConfig(**options, batch_size=8))
    expected, found = findings(1, tmp_path / "a", tmp_path), findings(2, tmp_path / "a", tmp_path)
    program = open_artifact(tmp_path / "a").program
    planned = exchanges(program, Shares.parse(2, None, program.spec, 2))
    sent = sum(e.row_bytes[0] for e in planned if e.to_all)
    assert found.pop("exchanged")[0][:2] == [2 * len(planned), 4 * sent]
    assert found == expected


@needs_mpi
@pytest.mark.parametrize("num_hosts", [2, 3])
def test_the_forecast_s_bytes_are_those_that_are_sent(num_hosts: int, artifact: Path, tmp_path: Path) -> None:
    found = findings(num_hosts, artifact, tmp_path)["exchanged"]
    opened = open_artifact(artifact)
    shares = Shares.parse(num_hosts, None, opened.program.spec, num_hosts)
    weights = {name: tensor.nbytes for name, tensor in opened.tensors.items()}
    planned = exchanges(opened.program, shares)
    # A prompt of three tokens, then one token: four rows, of which two have logits, which host 0 receives.
    sent = sum(e.row_bytes[0] * (num_hosts - 1) for e in planned if e.to_all)
    for (num_exchanges, sent_bytes, received_bytes), top_groups in zip(found, (1, 4, 0), strict=True):
        assert (num_exchanges, sent_bytes) == (2 * len(planned), 4 * sent)
        received = [
            sum(e.row_bytes[1:]) * (4 if e.to_all else 2) for e in exchanges(opened.program, shares, top_groups)
        ]
        assert received_bytes == sum(received), top_groups
    one_token = forecast(opened.program, weights, shares, Network.parse("8Gbit,10us"), 1e9)
    assert one_token.num_exchanges == len(planned) == 4 * opened.program.spec.num_layers + 2
    assert one_token.link_s > (len(planned) - 1) * 10e-6 + sent / 1e9  # the last waits for no answer


@needs_mpi
def test_the_determinism_demo_has_one_transcript(artifact: Path, tmp_path: Path) -> None:
    """Of one process, and of two hosts of which one has more to do."""
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": f"What is {i} plus {i % 3}?"} for i in range(8)]))
    program = [sys.executable, "-m", "qwench.cli.main", "demo", str(artifact), "--determinism", "--iterations", "3"]
    program += ["--prompts", str(tmp_path / "prompts.json"), "--json", "-"]
    found = []
    for num_hosts, ranks in ((1, []), (2, ["--tensor-parallel-size", "2", "--shares", "2,1"])):
        done = run(num_hosts, *program, *ranks)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["determinism"])
    assert found[0]["identical"] is True and found[0]["num_answers"] == 24
    assert found[0] == found[1]


@needs_mpi
def test_what_can_t_be_is_said_in_one_line(artifact: Path, tmp_path: Path) -> None:
    qwench = [sys.executable, "-m", "qwench.cli.main"]
    done = run(2, *qwench, "run", str(artifact), "-p", "Once", "--tensor-parallel-size", "3")
    assert done.returncode != 0 and "3 ranks can't be shared out among 2 hosts" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(2, *qwench, "run", str(tmp_path / "nothing"), "-p", "Once")
    assert done.returncode != 0 and "there is no folder or file" in done.stderr and "Traceback" not in done.stderr
    done = run(2, *qwench, "run", str(artifact), "-p", "Once", "--max-new-tokens", "5", "--temperature", "0")
    alone = run(1, *qwench, "run", str(artifact), "-p", "Once", "--max-new-tokens", "5", "--temperature", "0")
    assert (done.returncode, done.stdout) == (0, alone.stdout) and alone.stdout
    done = run(2, *qwench, "inspect", str(artifact))  # which needs one process, and gets one
    assert done.returncode == 0 and done.stdout.count("lm_head") == 1


@needs_mpi
def test_a_host_that_lacks_the_artifact_says_so(artifact: Path, tmp_path: Path) -> None:
    code = (
        "import sys, qwench.host, qwench.parallel.host_process as hosts\n"
        "from pathlib import Path\n"
        "if qwench.host.mpi_place()[0] == 1:\n"
        "    hosts.open_artifact = lambda path: (_ for _ in ()).throw(hosts.QwenchError(f'{path} is damaged'))\n"
        "from qwench import LLM\nfrom qwench.errors import TargetError\n"
        "try:\n    LLM(sys.argv[1])\nexcept TargetError as error:\n    print(error)\n"
    )
    (tmp_path / "script.py").write_text(code)
    done = run(2, sys.executable, str(tmp_path / "script.py"), str(artifact))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"host 1: {artifact} is damaged"


@needs_mpi
def test_a_host_that_has_another_model_says_so(artifact: Path, tmp_path: Path) -> None:
    compile_checkpoint(MODEL, tmp_path / "other", QwenchConfig(weights="int4", max_seq_len=1024, batch_size=8))
    code = (
        "import sys, qwench.host, qwench.parallel.host_process as hosts\n"
        "from qwench.artifact.artifact import open_artifact\n"
        "if qwench.host.mpi_place()[0] == 1:\n"
        "    hosts.open_artifact = lambda path: open_artifact(sys.argv[2])\n"
        "from qwench import LLM\nfrom qwench.errors import TargetError\n"
        "try:\n    LLM(sys.argv[1])\nexcept TargetError as error:\n    print(error)\n"
    )
    (tmp_path / "script.py").write_text(code)
    done = run(2, sys.executable, str(tmp_path / "script.py"), str(artifact), str(tmp_path / "other"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"host 1: {artifact} isn't the model that host 0 has there; copy it"


@needs_mpi
def test_a_killed_host_ends_the_server_and_leaves_nobody_behind(artifact: Path) -> None:
    program = [sys.executable, "-m", "qwench.cli.main", "serve", str(artifact), "--port", "0"]
    server = subprocess.Popen(
        command(2, *program), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **AS_ROOT}
    )
    assert server.stdout is not None
    line = next(line for line in server.stdout if "serving" in line)
    pids = descendants(server.pid)
    victim = next(pid for pid in pids if b"OMPI_COMM_WORLD_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes())
    assert "ready" in line
    start = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    said = server.stdout.read()
    assert server.wait(30) != 0
    assert time.monotonic() - start < 15  # a host that is only silent has 20
    assert "rank 1" in said and "signal 9" in said
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@needs_mpi
@pytest.mark.slow
def test_a_host_that_is_silent_fails_requests_by_name_and_ends_the_server(artifact: Path) -> None:
    import httpx

    program = [sys.executable, "-m", "qwench.cli.main", "serve", str(artifact), "--port", "0"]
    server = subprocess.Popen(
        command(2, *program), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **AS_ROOT}
    )
    assert server.stdout is not None
    url = next(line for line in server.stdout if "serving" in line).split(" at ")[1].split(",")[0]
    victim = next(
        pid for pid in descendants(server.pid)
        if b"OMPI_COMM_WORLD_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()
    )  # fmt: skip
    os.kill(victim, signal.SIGSTOP)
    try:
        body = {"prompt": "Once", "max_tokens": 20}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 500
        assert "host 1 (" in answer.text and "has not answered" in answer.text
        assert server.wait(30) != 0
        assert "hosts can't be joined anew" in server.stdout.read()
    finally:
        os.kill(victim, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [found for child in children for found in descendants(child)]


def test_without_mpi_it_is_said_how_to_get_it(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('none')")
    started = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PYTHONPATH": str(tmp_path)}
    program = [sys.executable, "-m", "qwench.cli.main", "run", str(artifact), "-p", "Once"]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, **started})
    assert done.returncode == 2 and "pip install 'qwench[mpi]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", ["", "10Gbit", "50us", "10Gbit,50", "0Gbit,50us", "1e3Gbit,1us", "10Gbit,-5us", "..Gbit,1us"]
)
def test_links_that_can_t_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="give rate and latency"):
        Network.parse(text)


def test_plan_of_ranks_is_what_each_takes(tmp_path: Path) -> None:
    report = describe(MODEL, QwenchConfig(weights="int8", tensor_parallel_size=2, shares="3,1"), "10Gbit,50us", 20.0)
    whole, shares = report["weights_bytes"], [rank["weight_bytes"] for rank in report["ranks"]]
    assert whole <= sum(shares) < 1.06 * whole  # two ranks have the kv head of a query head between them
    assert 2 < shares[0] / shares[1] < 4  # so small a model has few panels
    assert sum(rank["cache_part"] for rank in report["ranks"]) >= 1
    slow = describe(MODEL, QwenchConfig(weights="int8", tensor_parallel_size=2), "1Gbit,200us", 20.0)["forecast"]
    assert slow["link_s"] > 3 * report["forecast"]["link_s"]
    with LLM(MODEL, weights="int8", tensor_parallel_size=2) as llm:
        assert llm._artifact is not None and llm._artifact.weights_bytes == whole
