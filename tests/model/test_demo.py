"""`qwench demo` on the default model: the prompts as the model gets them, figures that agree with each other, answers
that are those of `LLM`, and the determinism test as users run it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import qwench
from qwench import LLM, SamplingParams
from qwench.cli.main import main
from qwench.text.prompt_file import read_prompts, sample_file

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
QUICK = ["--threads", "1", "--iterations", "6"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def demo(capfd: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    assert main(["demo", *map(str, arguments)]) == code
    out, err = capfd.readouterr()
    assert (err == "") == (code != 2), err
    return out if code != 2 else err


def report_of(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    found = json.loads(demo(capfd, *arguments, *QUICK, "--json", "-"))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """32 prompts of a few words: the samples would take seconds."""
    path = tmp_path / "short.json"
    path.write_text(json.dumps([{"prompt": f"What is {i} plus {i % 7}?"} for i in range(32)]))
    return path


def test_the_default_model_is_found_from_anywhere(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = report_of(capfd, "--users", "2")
    assert Path(first["model"]).samefile(DEFAULT_MODEL)
    assert first["compile_s"] > 0 and first["load_s"] > 0
    assert report_of(capfd, "--users", "2")["compile_s"] is None  # found compiled
    monkeypatch.setattr(qwench, "__file__", str(tmp_path / "site-packages/qwench/__init__.py"))
    assert "clone" in demo(capfd, code=2)


@pytest.mark.parametrize("style", ["instruct", "general"])
def test_answers_are_those_of_llm(capfd: pytest.CaptureFixture[str], style: str) -> None:
    """The same tokens that each prompt gets alone, in chat ended as chat ends it."""
    options = ["--weights", style, "--users", "3", "--batches", "2", "--threads", "1", "--iterations", "40"]
    report = json.loads(demo(capfd, DEFAULT_MODEL, *options, "--weights", "int8", "--json", "-"))
    assert (report["style"], report["weights"], report["users"]) == (style, "int8", 3)
    prompts = read_prompts(sample_file(style))
    params = SamplingParams(temperature=0, max_tokens=41)
    with LLM(DEFAULT_MODEL, weights="int8", num_threads=1) as llm:
        for answer in report["runs"][0]["answers"]:
            prompt = prompts[answer["user"] + answer["batch"]].prompt
            assert answer["prompt"] == prompt
            if style == "general":
                [alone] = llm.generate(prompt, params)[0].outputs
            else:
                [alone] = llm.chat([{"role": "user", "content": prompt}], params)[0].outputs
            assert (answer["num_tokens"], answer["finish_reason"]) == (len(alone.token_ids), alone.finish_reason)
            assert answer["text"] == alone.text


def test_figures_agree(capfd: pytest.CaptureFixture[str]) -> None:
    report = report_of(capfd, "--users", "4", "--batches", "1,3", "--raw")
    assert [run["batches"] for run in report["runs"]] == [1, 3]
    assert report["style"] == "general"
    for run in report["runs"]:
        times = [step["seconds"] for step in run["steps"]]
        assert run["num_answers"] == len(run["answers"]) == 4 * run["batches"]
        assert run["num_tokens"] == sum(answer["num_tokens"] for answer in run["answers"])
        assert run["total_s"] == pytest.approx(sum(times))
        assert run["prefill_tokens"] == sum(step["num_prompt_tokens"] for step in report["runs"][0]["steps"])
        assert 0 < run["ttft_min_s"] <= run["ttft_s"] <= run["ttft_max_s"] <= run["total_s"]
        assert run["prefill_s"] <= run["total_s"]
        assert min(times) <= run["iteration_s"] <= max(times)
        assert run["tokens_per_s_per_user"] == pytest.approx(1 / run["iteration_s"])
        assert run["total_tokens_per_s"] == pytest.approx(run["num_tokens"] / run["total_s"])


def test_what_it_prints(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_text("Once upon a time there was a fox.")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"prompt": "Who is the story about?", "context": "tale.txt", "max_length": 20}]))
    options = ["--prompts", prompts, "--users", "2", "--batches", "1,2", "--verbose", "--show", "1", *QUICK]
    out = demo(capfd, *options, "--json", tmp_path / "report.json")
    words = ["machine", "through the chat template", "loaded in", "2 users at once", "1 batch", "2 batches", "prefill"]
    for word in (*words, "time to first token", "tokens/s/user", "iteration 0: ", "[user 0] ```Once upon"):
        assert word in out
    assert out.count("[user ") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runs"][1]["answers"][3]["prompt"] == "```Once upon a time the```\n\nWho is the story about?"


def test_determinism(capfd: pytest.CaptureFixture[str], short: Path) -> None:
    """32 users, three rounds: what Tenstorrent's test does, with the logits compared as well."""
    out = demo(capfd, "--determinism", "--prompts", short, "--threads", "2", "--iterations", "20")
    assert "96 in 3 rounds" in out and "64 compared" in out and "identical: tokens, and logits bit for bit" in out
    report = report_of(capfd, "--determinism", "--users", "3")
    assert report["determinism"]["identical"] is True and report["determinism"]["num_compared"] == 6


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux")
def test_determinism_over_ranks(capfd: pytest.CaptureFixture[str], short: Path) -> None:
    """32 users, three rounds, computed by one, two and three processes: one transcript, logits included."""
    options = ["--determinism", "--prompts", short, "--iterations", "4", "--json", "-"]
    found = []
    for size in (1, 2, 3):
        ranks = ["--tensor-parallel-size", str(size), "--threads", str(size)]
        found.append(json.loads(demo(capfd, *options, *ranks))["determinism"])
    assert found[0]["num_answers"] == 96 and found[0]["identical"] is True
    assert found[0] == found[1] == found[2]
    other = json.loads(demo(capfd, *options[:-3], "3", *options[-2:], "--threads", "2"))["determinism"]
    assert other["sha256"] != found[0]["sha256"]  # one token less


def test_a_difference_is_exit_code_1(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qwench.evaluate import determinism

    counting = iter(range(10**9))
    monkeypatch.setattr(determinism.zlib, "crc32", lambda row: next(counting))
    out = demo(capfd, "--determinism", "--users", "2", *QUICK, code=1)
    assert "NOT deterministic" in out and "logits of user" in out


def test_a_smaller_machine(capfd: pytest.CaptureFixture[str]) -> None:
    """--target and --memory: other instructions, and no more users at once than that memory would hold."""
    report = report_of(capfd, "--target", "cpu-generic", "--users", "2")
    assert report["machine"]["target"] == "cpu-generic"
    small = report_of(capfd, "--memory", "40MiB")
    assert 1 <= small["users"] < 32
    assert "cache blocks" in demo(capfd, "--memory", "40MiB", "--users", "32", code=2)
    assert "needs" in demo(capfd, "--memory", "10MiB", code=2)


WRONG = {
    "two styles": ["--weights", "instruct", "--raw"],
    "two formats": ["--weights", "int8", "--weights", "int4"],
    "no such format": ["--weights", "int3"],
    "no batches": ["--batches", "0"],
    "no number of batches": ["--batches", "1,x"],
    "batches of a fixed test": ["--determinism", "--batches", "2"],
    "no users": ["--users", "0"],
    "too many iterations": ["--iterations", "5000"],
    "no prompt file": ["--prompts", "absent.json"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_what_can_not_be_asked(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    err = demo(capfd, *arguments, code=2)
    assert err.startswith("qwench: error: ") and err.count("\n") == 1


def test_more_users_than_usual_are_compiled_for(capfd: pytest.CaptureFixture[str], short: Path) -> None:
    assert report_of(capfd, "--users", "33", "--prompts", short)["users"] == 33
