"""Two machines and a network between them, as two network namespaces of this one: whether a token takes as long as
`qwench plan --link` says."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwench import QwenchConfig, compile_checkpoint
from qwench.artifact.artifact import open_artifact
from qwench.parallel.forecast import Network, forecast
from qwench.program.shard import Shares

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from transformers_parity import write_checkpoint

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
NEAR, FAR = "10.77.0.1", "10.77.0.2"
NUM_TOKENS, ROUNDS = 64, 5

SPEED = """
import json, statistics, sys, time
from qwench import LLM, SamplingParams
with LLM(sys.argv[1], num_threads=int(sys.argv[2])) as llm:
    params = SamplingParams(temperature=0.0, max_tokens=%d, ignore_eos=True)
    def one():
        timings = llm.generate([5, 6, 7], params)[0].outputs[0].timings
        return (timings.finished_s - timings.first_token_s) / (params.max_tokens - 1)
    one()
    print(json.dumps([one() for _ in range(%d)]))
""" % (NUM_TOKENS, ROUNDS)  # noqa: UP031
PING = """
import time
from mpi4py import MPI
comm, times = MPI.COMM_WORLD, []
there, back = bytearray(2048), bytearray(2048)
for _ in range(500):
    start = time.perf_counter()
    requests = comm.Irecv(back, 1 - comm.rank), comm.Isend(there, 1 - comm.rank)
    while not all([request.Test() for request in requests]):
        pass
    times.append(time.perf_counter() - start)
if comm.rank == 0:
    print(sorted(times)[len(times) // 2])
"""

pytestmark = pytest.mark.slow


def sudo(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


@pytest.fixture(params=["10gbit", "1gbit"])
def rate(request: pytest.FixtureRequest) -> Iterator[str]:
    """Namespaces qwench-near and qwench-far, joined at that rate each way."""
    if MPIEXEC is None:
        pytest.skip("needs mpiexec: qwench[mpi]")
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("needs network namespaces: root, ip and tc")
    names = ("qwench-near", "qwench-far")
    try:
        for name in names:
            sudo(f"ip netns add {name}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs network namespaces, which may not be made here: {error.stderr.decode()}")
    try:
        sudo("ip link add qnear netns qwench-near type veth peer name qfar netns qwench-far")
        for name, link, address in ((names[0], "qnear", NEAR), (names[1], "qfar", FAR)):
            sudo(f"ip -n {name} addr add {address}/24 dev {link}")
            sudo(f"ip -n {name} link set lo up")
            sudo(f"ip -n {name} link set {link} up")
            shape = f"tbf rate {request.param} burst 256kb latency 100ms"
            sudo(f"ip netns exec {name} tc qdisc add dev {link} root {shape}")
        yield request.param
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def on_both(tmp_path: Path, *program: str) -> str:
    """What the program prints, run by `mpiexec` in one namespace with a process in each, on a processor of its own."""
    agent = tmp_path / "agent"  # in place of ssh: host, command
    agent.write_text('#!/bin/sh\nshift\nexec ip netns exec qwench-far unshare --uts sh -c "hostname far; $*"\n')
    agent.chmod(0o755)
    mpi = f"{MPIEXEC} --prtemca plm_ssh_agent {agent} --host {NEAR}:1,{FAR}:1 --bind-to none -n 2"
    pinned = 'sh -c \'taskset -cp $OMPI_COMM_WORLD_RANK $$ >/dev/null; exec "$0" "$@"\''
    quoted = " ".join(f"'{argument}'" for argument in program)
    command = [
        "ip",
        "netns",
        "exec",
        "qwench-near",
        "unshare",
        "--uts",
        "sh",
        "-c",
        f"hostname near; {mpi} {pinned} {quoted}",
    ]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_beside_another(command: list[str]) -> float:
    """Seconds of a token while the other processor computes the same by itself: both share this machine's memory."""
    both = [
        subprocess.Popen(["taskset", "-c", str(cpu), *command], stdout=subprocess.PIPE, text=True) for cpu in (0, 1)
    ]
    return statistics.median(second for process in both for second in json.loads(process.communicate(timeout=300)[0]))


def test_a_token_takes_as_long_as_predicted(rate: str, tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < 2 or os.getloadavg()[0] > 0.5:
        pytest.skip("other processes hold the processors")
    checkpoint = write_checkpoint(
        tmp_path / "model", hidden_size=1536, intermediate_size=8960, num_hidden_layers=6, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=8192,
    )  # fmt: skip
    compile_checkpoint(checkpoint, tmp_path / "artifact", QwenchConfig(weights="int8", max_seq_len=512, batch_size=1))
    (tmp_path / "speed.py").write_text(SPEED)
    (tmp_path / "ping.py").write_text(PING)
    alone = [sys.executable, str(tmp_path / "speed.py"), str(tmp_path / "artifact"), "1"]
    artifact = open_artifact(tmp_path / "artifact")
    weights = {name: tensor.nbytes for name, tensor in artifact.tensors.items()}
    whole = Shares.parse(1, None, artifact.program.spec)
    ratios = []
    for _ in range(2):
        latency_s = float(on_both(tmp_path, sys.executable, str(tmp_path / "ping.py")))
        alone_s = one_beside_another(alone)
        both_s = statistics.median(json.loads(on_both(tmp_path, *alone[:-1], "2")))
        network = Network.parse(f"{re.sub('[a-z]', '', rate)}Gbit,{latency_s * 1e6:.3f}us")
        speed = forecast(artifact.program, weights, whole, network, 1.0).compute_s / alone_s
        two = Shares.parse(2, None, artifact.program.spec, 2)
        predicted = forecast(artifact.program, weights, two, network, speed)
        times = {"latency": latency_s, "alone": alone_s, "both": both_s, "of the link": predicted.link_s}
        print(rate, f"predicted {predicted.seconds * 1e3:.3f} ms", {k: f"{v * 1e3:.3f} ms" for k, v in times.items()})
        ratios.append(both_s / predicted.seconds)
    # The goal is 15 %; here both machines' network stacks run on the processors that compute (docs/distributed.md).
    assert 0.85 < statistics.median(ratios) < 1.3, ratios
