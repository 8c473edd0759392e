"""ik_llama.cpp as a contender, with scripts in its binaries' place that answer as they do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.contenders import IK_LLAMA
from benchmarks.contenders.contender import Answered
from benchmarks.contenders.ik_llama_bench import IkLlamaContender, Settings, check_binary
from benchmarks.measure import Run
from benchmarks.plan import Plan
from benchmarks.report import make_report
from benchmarks.synthetic import write_checkpoint

# A prompt takes 1 ms a token and an answer 10, but with flash attention half as long; an answer's row has no prompt.
BENCH = """
import json, sys
if "--help" in sys.argv:
    print("  -gp <pp,tg>   (default: )\\n  -rtr, --run-time-repack <0|1>   (default: 0)"); sys.exit()
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if options["-o"] == "md":
    print("| model | t/s |\\n\\nbuild: abc1234 (99)"); sys.exit()
ms = 1e6 / (1 + int(options["-fa"]))
rows = [{"n_gen": 0, "samples_ns": [ms * int(options["-p"])]}]
if "-gp" in options:
    steps = int(options["-gp"].split(",")[1])
    rows.append({"n_gen": steps, "samples_ns": [10 * ms * steps]})
print(json.dumps(rows))
"""
QUANTIZE = "import shutil, sys; shutil.copy(sys.argv[-4], sys.argv[-3])"
BATCHED = """
import sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if options["-fa"] == "on":
    sys.exit("GGML_ASSERT(S > 0) failed")
pp, tg, users = (int(options[name]) for name in ("-npp", "-ntg", "-npl"))
print("|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |", file=sys.stderr)
print(f"|{pp:6} | {tg:6} | {users:4} |    768 |    0.250 |  2048.00 |    0.500 |   480.00 |    0.750 |  1024.00 |", file=sys.stderr)
"""  # noqa: E501


def script(path: Path, code: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "llama-quantize", QUANTIZE)
    script(folder / "llama-batched-bench", BATCHED)
    return script(folder / "llama-bench", BENCH)


def test_a_missing_or_foreign_binary_is_refused(program: Path, tmp_path: Path) -> None:
    check_binary(program)
    with pytest.raises(ValueError, match="can't be run: No such file"):
        check_binary(tmp_path / "llama-bench")
    foreign = script(tmp_path / "llama-bench", "print('  -fa, --flash-attn <0|1>\\n  -r-gp-rtr')")
    with pytest.raises(ValueError, match=r"isn't ik_llama.cpp's llama-bench: its --help has no -rtr and no -gp"):
        check_binary(foreign)
    (program.parent / "llama-quantize").unlink()
    with pytest.raises(ValueError, match="llama-quantize isn't beside"):
        check_binary(program)


def test_the_command_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--ik-llama-bench", str(tmp_path / "none")]
    for options, message in ((missing, "none can't be run"), (["--contenders", IK_LLAMA], "needs its binary")):
        monkeypatch.setattr(sys, "argv", ["benchmarks", str(tmp_path), *options])
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err


def test_its_figures_are_read(program: Path, tmp_path: Path) -> None:
    contender = IkLlamaContender()
    contender.program = program
    (tmp_path / "Q4_0.gguf").write_bytes(bytes(10))
    (tmp_path / "settings.json").write_text('{"quant": "Q4_0", "repack": true, "flash_attention": true}')
    contender.load(tmp_path, 1, 0, 1)
    assert contender.answer([[0] * 100], 11) == Answered(0.05, 0.05, 10, [])
    assert contender.answer([[0] * 100], 1) == Answered(0.05, 0.0, 0, [])
    for _ in range(2):
        assert contender.answer([[0] * 32] * 16, 16) == Answered(0.25, 0.5, 240, [])
    script(program.parent / "llama-batched-bench", "import sys; sys.exit('no such option')")
    with pytest.raises(RuntimeError, match="llama-batched-bench ended with exit code 1: no such option"):
        contender.answer([[0] * 32] * 16, 16)
    script(program, "import sys; sys.exit('error: failed to load model')")
    with pytest.raises(RuntimeError, match="llama-bench ended with exit code 1: error: failed to load model"):
        contender.answer([[0] * 100], 11)


def test_a_run_beside_it(program: Path, tmp_path: Path) -> None:
    """From checkpoint to report: the faster settings, its bytes, no tokens to compare; without the second binary one
    user alone."""
    pytest.importorskip("gguf", reason="gguf isn't installed")
    write_checkpoint("tiny", tmp_path / "tiny")
    (program.parent / "llama-batched-bench").unlink()
    plan = Plan((IK_LLAMA,), ("int4",), ("answer", "users"), rounds=1)
    pythons, programs = {IK_LLAMA: sys.executable}, {IK_LLAMA: str(program)}
    run = Run(plan, tmp_path / "tiny", tmp_path / "run", pythons, True, lambda text: None, programs)
    report = make_report(run.measure())
    assert report["versions"] == {IK_LLAMA: "ik_llama.cpp abc1234"}
    figures = {f["row"]: f["median"] for f in report["figures"]}
    assert figures.keys() == {"compile", "prompt", "generate"}
    assert (figures["prompt"], figures["generate"]) == (pytest.approx(2000), pytest.approx(200))
    assert report["skipped"] == [f"{IK_LLAMA} with several users: llama-batched-bench isn't beside its llama-bench"]
    (model,) = report["models"]
    best = Settings("Q4_0", False, True)
    assert model["note"] == f"{best.note}, embedding and head Q4_0"
    assert 16 <= model["bits_per_weight"] < 16.2  # what quantises here copies; norms and biases have 32 bits
    kept = tmp_path / "run" / f"{IK_LLAMA}-int4" / "model"
    assert [path.name for path in kept.glob("*.gguf")] == ["Q4_0.gguf"] and report["agreement"] == []
