"""`qwench eval` on the default model: figures as transformers' own loss gives them, the stored book, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
TEXT, BOOK = MODEL / "evaluation.txt", MODEL / "book.json"
SHORT = ("--text", str(TEXT), "--max-tokens", "700", "--window", "256", "--threads", "1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, best_target: str) -> Path:
    return compile_checkpoint(MODEL, tmp_path_factory.mktemp("eval") / "bf16", QwenchConfig(target=best_target)).path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = main(["eval", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert out, err
    return code, json.loads(out)


def test_perplexity_is_transformers_loss(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of transformers' documentation: labels of -100 where a token isn't scored, losses weighed by count."""
    torch = pytest.importorskip("torch", reason="the truth of this test: pip install qwench[hf]")
    transformers = pytest.importorskip("transformers", reason="the truth of this test: pip install qwench[hf]")
    _, report = run(capsys, artifact, *SHORT, "--stride", "100")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(MODEL).encode(TEXT.read_text())[:700]])
    total, count, scored = 0.0, 0, 0
    for begin in range(0, 700, 100):
        end = min(begin + 256, 700)
        labels = ids[:, begin:end].clone()
        labels[:, : scored - begin] = -100
        num = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids[:, begin:end], labels=labels).loss) * num
        count, scored = count + num, end
        if end == 700:
            break
    (ours,) = report["rows"]
    assert ours["num_scored"] == count == 699
    assert ours["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_the_stored_book_is_the_models(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(capsys, artifact, *SHORT, "--book", BOOK)
    assert code == 0
    assert "transformers" in report["book"]
    assert report["rows"][0]["top1"] == 1 and report["rows"][0]["top5"] == 1


def test_beside_the_checkpoint(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    int4 = compile_checkpoint(MODEL, tmp_path / "int4", QwenchConfig(weights="int4")).path
    written = tmp_path / "book.json"
    arguments = ("--text", TEXT, "--max-tokens", "1100", "--window", "512", "--threads", "1", "--truth", "reference")
    code, report = run(capsys, int4, *arguments, "--against", MODEL, "--write-book", written, "--max-loss", "0")
    ours, truth = report["rows"]
    assert code == 1 and not report["ok"]
    assert ours["perplexity"] > truth["perplexity"] and truth["top1"] == 1
    assert 3 < ours["bits_per_weight"] < 6
    assert report["loss_percent"] == pytest.approx(100 * (ours["perplexity"] / truth["perplexity"] - 1))
    # NumPy and transformers rank alike but where two logits are equal to the last bits.
    stored, made = (json.loads(path.read_text())["top5"] for path in (BOOK, written))
    assert sum(a[0] == b[0] for a, b in zip(stored, made)) >= 510
    code, _ = run(capsys, int4, *arguments, "--against", MODEL, "--max-loss", "50")
    assert code == 0


def test_the_table(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(artifact), *SHORT, "--book", str(BOOK)]) == 0
    out = capsys.readouterr().out
    for word in ("window 256, stride 128", "perplexity", "qwench bf16", "100.00%", "511 predictions"):
        assert word in out


def test_the_shipped_text(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, report = run(capsys, artifact, "--max-tokens", "200", "--threads", "1")
    assert report["text"] == "shipped" and report["num_tokens"] == 200
    assert report["window"] == 1024 and report["rows"][0]["top1"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "{missing}"], "No such file"),
        (["--window", "4096"], "--window is 4096"),
        (["--window", "100", "--stride", "100"], "stride of 100"),
        (["--max-tokens", "1"], "--max-tokens is 1"),
        (["--max-loss", "3"], "--max-loss needs --against"),
        (["--write-book", "x"], "--write-book needs --against"),
        (["--also", "transformers-bf16"], "--also needs --against"),
        (["--book", "{text}"], "not a book"),
        (["--against", "{missing}"], "missing"),
    ],
)
def test_errors_are_one_line(
    artifact: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"missing": tmp_path / "missing", "text": TEXT}
    assert main(["eval", str(artifact), *(a.format(**places) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("qwench: error:") and err.count("\n") == 1
    assert message in err
