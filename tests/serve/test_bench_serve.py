"""The load tool: its plans by arithmetic, its figures by hand, and runs against a real server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from server_process import ServerProcess

from qwench.cli.main import main
from qwench.errors import ConfigError
from qwench.evaluate.load.client import Outcome
from qwench.evaluate.load.figures import Goals, figures
from qwench.evaluate.load.plan import Request, make_plan, parse_length, read_lengths


def outcome(due: float, tokens: list[float], **fields: object) -> Outcome:
    return Outcome(Request(10, len(tokens)), due, due, tokens[-1] if tokens else due, tokens, 10, len(tokens), **fields)


def test_figures_by_hand() -> None:
    """Three answers and a refusal in 10 s; one answer keeps both goals."""
    outcomes = [
        outcome(0.0, [1.0, 1.5, 2.0]),  # first token 1 s, 0.5 s a token
        outcome(1.0, [4.0, 4.1, 4.2]),  # first token 3 s
        outcome(2.0, [3.0, 6.5, 10.0]),  # 3.5 s a token
        outcome(3.0, [], error="status 429: busy"),
    ]
    result = figures(outcomes, Goals(2.0, 1.0))
    assert (result.num_requests, result.num_answered, result.errors) == (4, 3, {"status 429: busy": 1})
    assert result.duration_s == 10
    assert result.answer_tokens_per_s == pytest.approx(0.9)
    assert result.prompt_tokens_per_s == pytest.approx(3.0)
    assert result.goodput_per_s == pytest.approx(0.1)
    assert result.ttft_s.p50 == 1.0
    assert result.ttft_s.most == 3.0
    assert result.tpot_s.mean == pytest.approx((0.5 + 0.1 + 3.5) / 3)
    assert figures(outcomes, Goals()).goodput_per_s == pytest.approx(0.3)
    assert figures(outcomes[3:], Goals()).ttft_s.p99 is None


def test_arrivals_are_a_poisson_process() -> None:
    plan = make_plan(4000, lambda random: (5, 5), users=None, rate=20.0, seed=3)
    due = np.array([request.at_s for request in plan.requests])
    gaps = np.diff(due)
    assert due[0] == 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.1)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.1)  # as an exponential's, not a clock's
    at_once = make_plan(5, lambda random: (5, 5), users=None, rate=math.inf, seed=3)
    assert [request.at_s for request in at_once.requests] == [0.0] * 5


def test_lengths(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    assert parse_length("7")(random) == 7
    drawn = [parse_length("3-5")(random) for _ in range(200)]
    assert set(drawn) == {3, 4, 5}
    assert np.mean([parse_length("exp:100")(random) for _ in range(4000)]) == pytest.approx(100, rel=0.1)
    for bad in ("0", "5-3", "exp:0", "-1", "x", "1-", "9" * 9):
        with pytest.raises(ConfigError, match="length"):
            parse_length(bad)
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"prompt": 3, "answer": 4}\n\n{"prompt": 5, "answer": 6}\n')
    assert read_lengths(file) == [(3, 4), (5, 6)]
    for text in ("", "{}", '{"prompt": 0, "answer": 1}', '{"prompt": true, "answer": 1}', "[1, 2]", "nonsense"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            read_lengths(file)


def test_closed_loop(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    options = ["--users", "3", "--requests", "7", "--prompt", "20-60", "--answer", "5", "--json", str(report)]
    assert main(["bench-serve", server.url.removeprefix("http://"), *options]) == 0  # as curl takes it
    assert "time to first token" in capsys.readouterr().out
    data = json.loads(report.read_text())
    assert data["figures"]["num_answered"] == 7
    for request in data["requests"]:
        assert request["num_answer"] == 5
        assert request["num_prompt"] == pytest.approx(request["request"]["num_prompt"], rel=0.25, abs=4)
        assert request["due_s"] <= request["sent_s"] < request["token_s"][0] <= request["end_s"]
    moments = sorted([(r["sent_s"], 1) for r in data["requests"]] + [(r["end_s"], -1) for r in data["requests"]])
    assert np.cumsum([step for _, step in moments]).max() == 3


def test_open_loop(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "load.png"
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    options = ["--rate", "inf", "--requests", "5", "--prompt", "10", "--answer", "4", "--plot", str(plot)]
    assert main(["bench-serve", f"{server.url}/v1", *options, "--ttft-goal", "60", "--tpot-goal", "60"]) == 0
    assert "goodput" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["http://127.0.0.1:9"], "doesn't answer"),
        (["http://127.0.0.1:9", "--users", "1", "--rate", "2"], "who asks"),
        (["http://127.0.0.1:9", "--prompt", "x"], "length"),
        (["http://127.0.0.1:9", "--requests", "0"], "positive"),
        (["http://127.0.0.1:9", "--ttft-goal", "-1"], "above 0"),
        (["nonsense"], "doesn't answer"),
    ],
)
def test_errors_are_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-serve", *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
