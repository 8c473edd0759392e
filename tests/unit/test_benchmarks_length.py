"""benchmarks.length: its sum over steps by arithmetic, and a run on a tiny model from loading to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import write_checkpoint

from benchmarks import length


def test_a_prompt_is_the_sum_of_its_steps() -> None:
    points = [{"start": 0, "step_s": 1.0}, {"start": 300, "step_s": 4.0}]
    assert length.prompt_seconds(points, 400, 100) == pytest.approx(1 + 2 + 3 + 4)
    assert length.prompt_seconds(points, 150, 100) == pytest.approx(1 + 2 / 2)


@pytest.mark.parametrize("sliding", [{}, {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}])
def test_a_run(
    sliding: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path / "cache"))
    source, report = write_checkpoint(tmp_path / "source", **sliding), tmp_path / "report.json"
    options = ["--lengths", "700", "1400", "--whole", "900", "--rope-scaling", "yarn:20", "--json", str(report)]
    assert length.main([str(source), *options]) == 0
    found = json.loads(report.read_text())
    assert [point["length"] for point in found["points"]] == [700, 1400]
    assert [point["start"] for point in found["points"]] == [700 - 1 - 512, 1400 - 1 - 512]
    assert found["points"][1]["prompt_s"] > found["points"][0]["prompt_s"] > 0
    assert found["points"][1]["planned_bytes"] > found["points"][0]["planned_bytes"]
    [whole] = found["whole"]
    assert (whole["length"], whole["answer_tokens"]) == (900, length.ANSWER)
    assert "for real" in capsys.readouterr().out


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed")
    point = {"prompt_s": 1.0, "decode_s": 0.1, "measured_bytes": 2**30, "planned_bytes": 2**30}
    report = {
        "machine": {"cpu": "a processor", "threads": 2}, "model": "m", "options": "",
        "points": [{"length": n, **point} for n in (1024, 2048)], "whole": [{"length": 2048, **point}],
    }  # fmt: skip
    length.draw(report, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("wrong", [["--lengths"], ["--lengths", "3"], ["--repeats", "0"]])
def test_options_that_make_no_sense(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        length.main(["model", *wrong])
    assert "length" in capsys.readouterr().err
