"""The command line's manners: sizes, exit codes, one line on stderr, no traceback, a quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import running_hub

from qwench.cli.main import main
from qwench.cli.sizes import parse_size
from qwench.errors import ConfigError
from qwench.host import format_bytes, process_age_s

CONFIG = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 300,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QWENCH_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """A checkpoint folder that has a config and no weights."""
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("8GiB", 8 << 30), ("800MB", 800_000_000), ("1.5 gib", 3 << 29), ("4096", 4096), ("2KiB", 2048), ("7B", 7)],
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    assert parse_size(text, "--memory") == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "0.1", "8 GiBs", "8,5GB", "1e9", "nan", "٣GB"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_size(text, "--memory")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (10 << 20, "10.0 MiB"),
        (1023 << 20, "1.00 GiB"),
        (-5 << 30, "-5.00 GiB"),
    ],
)
def test_sizes_are_written(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


USER_ERRORS = {
    "no such command": ["frobnicate"],
    "no such option": ["compile", "--frobnicate"],
    "missing argument": ["run"],
    "missing output": ["compile", "config-only"],
    "not a number": ["run", "config-only", "-p", "x", "--max-new-tokens", "many"],
    "bad number of guesses": ["run", "config-only", "-p", "x", "--prompt-lookup", "many"],
    "missing model to run": ["run", "./nowhere", "-p", "x"],
    "missing model to chat with": ["chat", "./nowhere"],
    "missing model to demonstrate": ["demo", "./nowhere"],
    "missing model to bench": ["bench", "./nowhere"],
    "missing checkpoint": ["compile", "./nowhere", "-o", "out"],
    "missing artifact": ["inspect", "./nowhere"],
    "not an artifact": ["inspect", "config-only"],
    "no weights": ["compile", "config-only", "-o", "out"],
    "bad size": ["compile", "config-only", "-o", "out", "--memory", "8 elephants"],
    "bad weights": ["compile", "config-only", "-o", "out", "--weights", "int3"],
    "bad group size": ["compile", "config-only", "-o", "out", "--weights", "int8", "--group-size", "100"],
    "bad length": ["compile", "config-only", "-o", "out", "--max-seq-len", "0"],
    "unknown target": ["compile", "config-only", "-o", "out", "--target", "npu"],
    "impossible hub id": ["pull", "no/such/thing"],
}


@pytest.mark.parametrize("arguments", USER_ERRORS.values(), ids=USER_ERRORS.keys())
def test_a_user_error_is_one_line_and_exit_code_2(
    arguments: list[str], config_only: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("qwench: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    assert not Path("out").exists()


def test_the_line_names_what_was_wrong(config_only: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["compile", "config-only", "-o", "out", "--target", "npu"])
    assert "npu" in (line := capfd.readouterr().err) and "cpu" in line
    main(["compile", "config-only", "-o", "out", "--memory", "8 elephants"])
    assert "--memory" in (line := capfd.readouterr().err) and "8 elephants" in line


def test_serving_without_its_extra_fails_before_a_model_is_compiled(
    config_only: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", "config-only"]) == 2
    says = 'serving needs prometheus_client, uvicorn; to install what it needs: pip install "qwench[serve]"'
    assert capfd.readouterr().err == f"qwench: error: {says}\n"


def raises(error: BaseException) -> object:
    def command(*_: object, **__: object) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ZeroDivisionError("of\nours"), 1, "unexpected ZeroDivisionError: of ours (QWENCH_DEBUG=1 shows where)"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (MemoryError(), 2, "out of memory; close other programs, or choose int8 or int4 weights"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_other_errors_look_like(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qwench.cli.sizes.parse_size", raises(error))
    assert main(["compile", "a", "-o", "b", "--memory", "1GB"]) == code
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"qwench: error: {says}\n" if says else "\n")


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwench.cli.sizes.parse_size", raises(ZeroDivisionError()))
    monkeypatch.setenv("QWENCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["compile", "a", "-o", "b", "--memory", "1GB"])


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_version_and_help(capfd: pytest.CaptureFixture[str]) -> None:
    import qwench

    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"qwench {qwench.__version__}\n"
    assert main([]) == main(["--help"]) == 0
    for name in ("compile", "run", "chat", "demo", "bench", "inspect", "pull"):
        assert name in capfd.readouterr().out or main([name, "--help"]) == 0


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "qwench.cli.main", "--version"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert done.stderr == ""


def test_help_loads_nothing_heavy() -> None:
    done = python(
        "import sys; from qwench.cli.main import main; main(['--help']);"
        "print(*[m for m in ('numpy', 'rich', 'tokenizers', 'huggingface_hub', 'jinja2', 'torch') if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_the_clock_counts_from_the_start_of_the_process() -> None:
    done = python("import time; time.sleep(0.3); from qwench.host import process_age_s; print(process_age_s())")
    assert 0.3 <= float(done.stdout) < 30
    before = process_age_s()
    assert before > 0 and process_age_s() - before < 1


def test_pull_prints_the_folder_it_filled(tmp_path: Path) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"0" * 5000}
    with running_hub({"Qwen/tiny": files}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "qwench.cli.main", "pull"]
        found, absent = (
            subprocess.run(
                [*command, model_id, "-o", str(tmp_path / "out")],
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )
            for model_id in ("Qwen/tiny", "Qwen/absent")
        )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{tmp_path / 'out'}\n", "")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr.startswith("qwench: error: ") and "Qwen/absent" in absent.stderr
    assert absent.stderr.count("\n") == 1
