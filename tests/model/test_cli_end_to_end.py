"""The whole command line on a tiny random checkpoint made here, and on the default model where it is present."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qwench.checkpoint.spec import ModelSpec
from qwench.cli.main import main
from qwench.program.qwen2 import build_qwen2
from qwench.runtime.sampling.sampling_params import SamplingParams

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
QWENCH = [sys.executable, "-m", "qwench.cli.main"]
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "vocab_size": 272,
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "eos_token_id": 258,
}  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoint(folder: Path, endless: bool = False) -> Path:
    """A random model over single bytes, with a tokenizer and a chat template; an `endless` one never ends a turn."""
    folder.mkdir(parents=True)
    config = CONFIG | ({"max_position_embeddings": 32768} if endless else {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 256], "do_sample": False}))
    rng, tensors = np.random.default_rng(3), {}
    for weight in build_qwen2(ModelSpec.from_config(CONFIG)).weights.values():
        values = rng.standard_normal(weight.shape) * (0.3 if len(weight.shape) == 2 else 0.1)
        tensors[weight.name] = (values + weight.name.endswith("norm.weight")).astype(ml_dtypes.bfloat16)
    if endless:
        tensors["model.embed_tokens.weight"][256:] = 0  # the logits of special tokens are 0, others are above
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def qwench(*arguments: str | Path, stdin: str | None = "", code: int = 0, **env: str) -> tuple[str, str]:
    """Runs the program and returns what it wrote to stdout and stderr, to the byte: a random model writes \\r, too."""
    command, given = [*QWENCH, *map(str, arguments)], None if stdin is None else stdin.encode()
    done = subprocess.run(command, input=given, capture_output=True, timeout=120, env=os.environ | env, check=False)
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{stderr}"
    assert "Traceback" not in stderr
    return stdout, stderr


def one_object(stdout: str) -> dict[str, Any]:
    result = json.loads(stdout)  # fails on anything beside one object
    assert isinstance(result, dict)
    return result


def one_error(stderr: str) -> str:
    assert stderr.startswith("qwench: error: ") and stderr.count("\n") == 1, stderr
    return stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    out = checkpoint.parent / "tiny-int8"
    stdout, stderr = qwench("compile", checkpoint, "-o", out, "--weights", "int8", "--batch-size", "4")
    assert str(out) in stdout and "int8" in stdout
    assert stderr == ""
    return out


def test_compile_tells_what_it_made(checkpoint: Path, tmp_path: Path) -> None:
    stdout, _ = qwench(
        "compile", checkpoint, "-o", tmp_path / "a", "--weights", "int4", "--max-seq-len", "64", "--json",
        "--kvcache-partition-len", "128", "--kvcache-block-size", "16", "--kvcache-num-blocks", "9",
    )  # fmt: skip
    report = one_object(stdout)
    cache = ("attn_impl", "kvcache_partition_len", "kvcache_block_size", "kvcache_num_blocks")
    assert [report["config"][name] for name in cache] == ["flash_attn", 128, 16, 9]
    assert report["config"]["weights"] == "int4" and report["config"]["head_weights"] == "int8"
    assert report["config"]["max_seq_len"] == 64
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert report["compile_s"] > 0


def test_run_prints_one_object(artifact: Path) -> None:
    arguments = ["run", artifact, "-p", "Hello", "--max-new-tokens", "8", "--temperature", "0", "--json"]
    stdout, stderr = qwench(*arguments)
    report = one_object(stdout)
    assert stderr == ""
    counts = {"prompt_tokens", "drafted_tokens", "accepted_tokens"}
    assert set(report) == {"text", "token_ids", "finish_reason", "timings"} | counts
    assert report["drafted_tokens"] == report["accepted_tokens"] == 0
    assert report["prompt_tokens"] == len("Hello") + len("user\nassistant\n") + 4  # a byte is a token, four are special
    assert 1 <= len(report["token_ids"]) <= 8
    assert report["finish_reason"] in ("length", "stop")
    times = report["timings"]
    assert set(times) == {"load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"}
    assert 0 < times["load_s"] < times["ttft_s"]
    assert times["prefill_tokens_per_s"] > 0
    again, _ = qwench(*arguments)
    assert one_object(again)["token_ids"] == report["token_ids"]


def test_run_with_prompt_lookup_says_the_same(artifact: Path) -> None:
    options = ["--raw", "-p", "abcabcabcabcabc", "--max-new-tokens", "60", "--seed", "1", "--temperature", "0.5"]
    plain = one_object(qwench("run", artifact, *options, "--json")[0])
    for lookup in (["--prompt-lookup"], ["--prompt-lookup", "4"]):
        report = one_object(qwench("run", artifact, *options, *lookup, "--json")[0])
        assert (report["text"], report["token_ids"]) == (plain["text"], plain["token_ids"])
        assert report["drafted_tokens"] > 0
    _, stderr = qwench("run", artifact, *options, "--prompt-lookup")
    assert stderr.endswith("guesses right]\n")
    assert "guesses" not in qwench("run", artifact, *options)[1]


def test_run_within_a_schema_or_a_regular_expression(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}')
    for option, pattern in (
        (["--json-schema", schema], r"\[\s*[12]\s*,\s*[12]\s*\]"),
        (["--regex", "[a-f]{3}"], "[a-f]{3}"),
    ):
        report = one_object(qwench("run", artifact, "-p", "x", "--max-new-tokens", "100", *option, "--json")[0])
        assert re.fullmatch(pattern, report["text"]) and report["finish_reason"] == "stop"
    schema.write_bytes(b"\xff")
    for options, reason in ((["--json-schema", schema], "UTF-8"), (["--regex", "(a"], "unclosed group")):
        failed = subprocess.run([*QWENCH, "run", artifact, "-p", "x", *options], capture_output=True, text=True)
        assert failed.returncode == 2 and reason in failed.stderr and failed.stderr.count("\n") == 1


def test_run_agrees_with_the_python_interface(artifact: Path) -> None:
    from qwench import LLM, SamplingParams

    stdout, _ = qwench("run", artifact, "--raw", "-p", "abc", "--max-new-tokens", "6", "--temperature", "0", "--json")
    report = one_object(stdout)
    with LLM(artifact) as llm:
        [answer] = llm.generate("abc", SamplingParams(max_tokens=6, temperature=0))[0].outputs
    assert report["prompt_tokens"] == 3
    assert (report["token_ids"], report["text"]) == (answer.token_ids, answer.text)


def test_run_streams_the_same_text_and_reads_stdin(artifact: Path) -> None:
    options = ["--raw", "--max-new-tokens", "6", "--seed", "5", "--temperature", "0.8"]
    stdout, _ = qwench("run", artifact, "-p", "A fox", *options, "--json")
    streamed, stderr = qwench("run", artifact, *options, stdin="A fox\n")
    assert streamed == one_object(stdout)["text"] + "\n"
    assert "tokens/s" in stderr and "first token after" in stderr


def test_a_checkpoint_runs_by_way_of_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    cache = {"QWENCH_CACHE": str(tmp_path)}
    arguments = ["run", checkpoint, "-p", "x", "--max-new-tokens", "2", "--weights", "int8", "--json"]
    first, _ = qwench(*arguments, **cache)
    [compiled] = (tmp_path / "compiled").glob("[!.]*")
    changed = (compiled / "manifest.json").stat().st_mtime_ns
    second, _ = qwench(*arguments, **cache)
    assert one_object(first)["token_ids"] == one_object(second)["token_ids"]
    assert (compiled / "manifest.json").stat().st_mtime_ns == changed


def test_kernel_variants_are_selectable(artifact: Path, best_target: str) -> None:
    answers = {}
    for target in ("cpu-generic", best_target):
        stdout, _ = qwench("run", artifact, "-p", "x", "--max-new-tokens", "4", "--target", target, "--json")
        answers[target] = one_object(stdout)["token_ids"]
    assert answers[best_target] == answers["cpu-generic"]


def test_inspect_shows_every_op(artifact: Path) -> None:
    report = one_object(qwench("inspect", artifact, "--json", "--verify")[0])
    program = json.loads((artifact / "program.json").read_text())["program"]
    assert [op["name"] for op in report["ops"]] == [op["name"] for op in program["ops"]]
    assert all(op["kernel"] for op in report["ops"])
    assert report["verified"] == "full"
    assert report["config"]["weights"] == "int8"
    # Two weights are read by two ops each: the embedding, tied, and the last norm, also for hidden states.
    twice = sum(op["weight_bytes"] for op in report["ops"] if op["name"] in ("embed", "final_hidden"))
    assert sum(op["weight_bytes"] for op in report["ops"]) - twice == report["memory_plan"]["weights_bytes"]
    text, _ = qwench("inspect", artifact)
    for word in ("qkv_rope_write", "layers.0-1.attention", "int8/g128", "KV cache", "cpu", report["ops"][0]["kernel"]):
        assert word in text


def test_run_imports_only_what_it_needs(artifact: Path) -> None:
    """Everybody waits for imports before the first token: each of these takes from 5 to 300 ms."""
    unneeded = ("qwench.compiler.compiler", "qwench.checkpoint.hub", "qwench.cli.commands.bench", "ml_dtypes",
                "numpy.ma", "rich", "safetensors", "huggingface_hub", "torch", "asyncio")  # fmt: skip
    code = (
        "import sys; from qwench.cli.main import main;"
        f"main(['run', {str(artifact)!r}, '-p', 'hi', '--max-new-tokens', '2', '--temperature', '1', '--json']);"
        f"print([name for name in {unneeded} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_bench_prints_ceiling_and_speed(artifact: Path) -> None:
    sizes = ["--prompt", "16", "--generate", "8", "--users", "2", "--rounds", "1", "--threads", "1"]
    report = one_object(qwench("bench", artifact, *sizes, "--json")[0])
    ceiling = report["ceiling"]
    assert report["prefill_tokens_per_s"] > 0 and report["decode_tokens_per_s"] > 0
    assert ceiling["read_gbps"] > 0 and set(ceiling["peak_gops"]) == {"int8"}
    assert ceiling["prefill_ratio"] == pytest.approx(report["prefill_tokens_per_s"] / ceiling["prefill_tokens_per_s"])
    assert ceiling["decode_ratio"] == pytest.approx(report["decode_tokens_per_s"] / ceiling["decode_tokens_per_s"])
    assert report["workload"] == {"num_prompt": 16, "num_generate": 8, "num_users": 2, "num_rounds": 1, "seed": 0}
    assert report["machine"]["threads"] == 1
    text, _ = qwench("bench", artifact, *sizes)
    for word in ("machine", "ceiling", "GB/s", "bytes a weight", "2 users", "prefill", "decode", "ratio", "%"):
        assert word in text


def test_bench_says_what_a_weight_takes(checkpoint: Path, artifact: Path) -> None:
    inspected = one_object(qwench("inspect", artifact, "--json")[0])
    num_weights = sum(w.size for w in load_file(checkpoint / "model.safetensors").values())
    report = one_object(qwench("bench", artifact, "--rounds", "1", "--generate", "2", "--json")[0])
    assert report["bytes_per_weight"] == pytest.approx(inspected["memory_plan"]["weights_bytes"] / num_weights)


def test_bench_profiles_each_op(artifact: Path) -> None:
    sizes = ["--prompt", "16", "--generate", "8", "--users", "2", "--rounds", "1", "--threads", "1", "--profile"]
    report = one_object(qwench("bench", artifact, *sizes, "--json")[0])
    ops = [
        op["name"] for op in one_object(qwench("inspect", artifact, "--json")[0])["ops"] if "hidden" not in op["name"]
    ]
    for step, num_tokens in (("prefill", 32), ("decode", 2)):
        measured = report[step]
        assert [op["name"] for op in measured["ops"]] == ops and measured["num_tokens"] == num_tokens
        assert sum(op["seconds"] for op in measured["ops"]) <= measured["seconds"] * 1.001
        for op in measured["ops"]:
            assert op["share"] == pytest.approx(op["bound_s"] / op["seconds"])
    assert {"read_gbps", "cached_gbps", "peak_gops"} == set(report["ceiling"])
    text, _ = qwench("bench", artifact, *sizes)
    for word in ("layers.0-1.q_rope", "gate_up_silu", "lm_head", "between ops", "GB/s", "GOPS", "arithmetic"):
        assert word in text


def test_chat_from_a_pipe_is_one_turn_per_line(artifact: Path) -> None:
    options = ["--max-new-tokens", "4", "--temperature", "0"]
    fresh, stderr = qwench("chat", artifact, *options, stdin="hi\n")
    assert stderr == ""
    twice, _ = qwench("chat", artifact, *options, stdin="hi\n\n/reset\nhi\n/exit\nnever\n")
    assert twice == fresh * 2


@pytest.mark.parametrize("token", [257, 258], ids=["<|im_start|>", "<|im_end|>"])
def test_a_turn_ends_where_another_one_begins(
    artifact: Path, token: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """run and chat: what Qwen2 sometimes says after an answer, <|im_start|>user, is not part of it."""
    from qwench.text.generation import GenerationDefaults

    eager = SamplingParams(temperature=0, logit_bias={token: 1e6}, min_tokens=0)
    monkeypatch.setattr(GenerationDefaults, "from_folder", lambda folder: GenerationDefaults((256,), eager))
    assert main(["run", str(artifact), "-p", "Hi", "--json"]) == 0
    report = one_object(capfd.readouterr().out)
    assert (report["text"], report["token_ids"], report["finish_reason"]) == ("", [token], "stop")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAnd?\n"))
    assert main(["chat", str(artifact)]) == 0
    assert capfd.readouterr().out == "\n\n"
    assert main(["run", str(artifact), "-p", "Hi", "--raw", "--json", "--max-new-tokens", "3"]) == 0
    raw = one_object(capfd.readouterr().out)  # a plain text may hold any token but the model's own end
    assert raw["finish_reason"] == ("length" if token == 257 else "stop")


def test_compiling_and_running_as_for_a_smaller_machine(checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    """--target: another machine's kernels, from the same packed weights. --memory: what doesn't fit there is refused,
    when compiling and when loading, and the cache is cut to what is left of it."""
    from qwench import LLM
    from qwench.runtime.scheduler import MAX_EXTRA_ROWS

    plan = one_object(qwench("inspect", artifact, "--json")[0])["memory_plan"]
    logits_bytes = (4 + MAX_EXTRA_ROWS) * CONFIG["vocab_size"] * 4
    rope_bytes = CONFIG["max_position_embeddings"] * CONFIG["hidden_size"] // CONFIG["num_attention_heads"] * 4
    fixed = plan["weights_bytes"] + plan["arena_bytes"] + plan["work_bytes"] + logits_bytes + rope_bytes
    block_bytes = plan["kvcache_block_bytes"]
    small, too_small = fixed + 6 * block_bytes, fixed + 2 * block_bytes - 1  # two hold one sequence of 128 positions
    out = tmp_path / "small"
    options = ["-o", out, "--weights", "int8", "--batch-size", "4", "--target", "cpu-generic", "--memory"]
    assert "memory allows" in qwench("compile", checkpoint, *options, str(fixed - logits_bytes), code=2)[1]
    qwench("compile", checkpoint, *options, str(small))
    kernels = [op["kernel"] for op in one_object(qwench("inspect", out, "--json")[0])["ops"]]
    assert all(kernel.startswith("generic.") for kernel in kernels)
    assert (out / "weights.safetensors").read_bytes() == (artifact / "weights.safetensors").read_bytes()
    with LLM(out) as llm:
        assert llm.engine.cache.num_blocks == 6
    question = ["-p", "Hi", "--max-new-tokens", "5", "--temperature", "0", "--json"]
    there = one_object(qwench("run", out, *question)[0])
    here = one_object(qwench("run", artifact, "--target", "cpu-generic", "--memory", str(small), *question)[0])
    assert here["token_ids"] == there["token_ids"]
    assert "allowed" in one_error(qwench("run", artifact, "--memory", str(too_small), *question, code=2)[1])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", ["weights.safetensors", "program.json", "manifest.json", "tokenizer.json"])
def test_a_damaged_artifact_is_one_line(artifact: Path, tmp_path: Path, damaged: str) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    flip_a_byte(copy / damaged)
    stdout, stderr = qwench("run", copy, "-p", "x", code=2)
    assert stdout == ""
    assert damaged in one_error(stderr)


def test_what_can_not_be_asked_is_one_line(
    checkpoint: Path, artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: str | Path, stdin: bytes = b"") -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        assert main([str(argument) for argument in arguments]) == 2
        stdout, stderr = capfd.readouterr()
        assert stdout == ""
        return one_error(stderr)

    assert "128" in error("run", artifact, "--raw", "-p", "x" * 128)
    assert "128" in error("run", artifact, "--raw", "-p", "x" * 100, "--max-new-tokens", "100", "--json")
    assert "128" in error("chat", artifact, stdin=b"x" * 200)
    assert "128" in error("bench", artifact, "--prompt", "120", "--generate", "20")
    assert "batch_size" in error("bench", artifact, "--users", "5")
    assert "empty" in error("run", artifact)
    assert "empty" in error("run", artifact, "--raw", "-p", "")
    assert "UTF-8" in error("run", artifact, stdin=b"\xff\xfe")
    assert "temperature" in error("run", artifact, "-p", "x", "--temperature", "-1")
    assert "max_tokens" in error("run", artifact, "-p", "x", "--max-new-tokens", "0")
    assert "num_threads" in error("run", artifact, "-p", "x", "--threads", "0")
    assert "overwrite" in error("compile", checkpoint, "-o", artifact)
    assert "weights" in error("run", artifact, "-p", "x", "--weights", "int4")
    assert "needs" in error("run", artifact, "-p", "x", "--memory", "10KB")
    (tmp_path / "file").write_text("not a folder")
    assert "file" in error("compile", checkpoint, "-o", tmp_path / "file" / "out")


def test_overwriting_replaces_an_artifact(checkpoint: Path, tmp_path: Path) -> None:
    for weights in ("int8", "bf16"):
        qwench("compile", checkpoint, "-o", tmp_path / "a", "--weights", weights, "--overwrite")
    assert one_object(qwench("inspect", tmp_path / "a", "--json")[0])["config"]["weights"] == "bf16"


def start(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    """A child that hears Ctrl-C even if the tests themselves run where it is ignored, as background jobs do."""
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **streams)


class Terminal:
    """`qwench chat` on a pseudo-terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self.master, slave = pty.openpty()
        command = [*QWENCH, *map(str, arguments)]
        self.process = start(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.shown = b""

    def read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            self.shown += os.read(self.master, 4096)

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Reads until `text` has been shown after what was waited for before."""
        deadline = time.monotonic() + timeout_s
        while text.encode() not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} never came; shown: {self.shown[-2000:]!r}"
            self.read()
        self.shown = self.shown.split(text.encode(), 1)[1]

    def wait_until_asleep(self) -> None:
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.01)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endless")
    qwench("compile", write_checkpoint(folder / "checkpoint", endless=True), "-o", folder / "artifact")
    return folder / "artifact"


def test_ctrl_c_ends_a_run(endless: Path) -> None:
    command = [*QWENCH, "run", str(endless), "-p", "x", "--max-new-tokens", "30000", "--temperature", "0"]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, b"\n")


def test_a_reader_that_has_enough_is_no_error(endless: Path) -> None:
    command = [*QWENCH, "run", str(endless), "-p", "x", "--max-new-tokens", "30000", "--temperature", "0"]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(endless: Path) -> None:
    terminal = Terminal("chat", endless, "--temperature", "0", "--max-new-tokens", "30000")
    terminal.wait_for("> ")
    time.sleep(0.5)  # readline shows the prompt a moment before it listens to signals, and sleeps
    terminal.wait_until_asleep()
    terminal.interrupt()
    terminal.wait_for("/exit")  # at the prompt it tells how to leave
    for _ in range(2):
        terminal.wait_for("> ")
        terminal.type("hi\n")
        terminal.wait_for("hi\r\n")
        while not terminal.shown:
            terminal.read()
        terminal.interrupt()
        terminal.wait_for(" ...\r\n")
    terminal.type("/exit\n")
    assert terminal.process.wait(timeout=60) == 0
    os.close(terminal.master)


@pytest.mark.skipif(not (DEFAULT_MODEL / "model.safetensors").exists(), reason="models/qwench-tiny has no weights")
def test_the_default_model_answers(tmp_path: Path) -> None:
    qwench("compile", DEFAULT_MODEL, "-o", tmp_path / "tiny", "--weights", "int8")
    stdout, _ = qwench("run", tmp_path / "tiny", "-p", "Hello!", "--max-new-tokens", "40", "--json")
    report = one_object(stdout)
    assert sum(c.isalpha() or c in " ,.!?'" for c in report["text"]) > 0.9 * len(report["text"]) > 0
