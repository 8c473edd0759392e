"""Pulling from a hub on the loopback: what is fetched, resumed, verified, and what each refusal says."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import SHA, Hub, running_hub
from tiny_checkpoint import write_checkpoint

from qwench.checkpoint.hub import find_checkpoint, pull
from qwench.errors import CapacityError, CheckpointError, HubError
from qwench.progress import Progress

ID, SHARDED, PICKLED, GGUF = "Qwen/tiny", "Qwen/tiny-sharded", "Qwen/old", "Qwen/tiny-GGUF"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    folder = tmp_path_factory.mktemp("repositories")
    unwanted = {"modeling_evil.py": b"boom", "pytorch_model.bin": b"pickle", "README.md": b"hi", "original/x.pth": b"x"}
    return {
        ID: content(write_checkpoint(folder / "tiny")) | unwanted,
        SHARDED: content(write_checkpoint(folder / "sharded", num_shards=3)) | unwanted,
        PICKLED: {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
        GGUF: {
            "tiny-q4_k_m.gguf": b"GGUF4",
            "tiny-q8_0.gguf": b"GGUF8",
            "tiny-q4_k_s.gguf": b"GGUFs",
            "f16/tiny-f16-00001-of-00002.gguf": b"one",
            "f16/tiny-f16-00002-of-00002.gguf": b"two",
        },
    }


@pytest.fixture
def hub(repositories: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path / "qwench-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    # What is kept of a broken download is whole chunks; by default they are larger than these files.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    with running_hub({model: dict(files) for model, files in repositories.items()}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def assert_same(folder: Path, files: dict[str, bytes]) -> None:
    """The folder holds every file that compiling needs, and nothing else that is visible."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {n for n in files if n.endswith((".json", ".safetensors"))}
    for name in names:
        assert (folder / name).read_bytes() == files[name], name


def test_files_of_sentence_transformers_stay_in_their_folders(hub: Hub, tmp_path: Path) -> None:
    """A pooling's config.json is not the model's."""
    texts = {"modules.json": b"[]", "1_Pooling/config.json": b'{"pooling_mode": "mean"}', "2_Dense/config.json": b"{}",
             "config_sentence_transformers.json": b"{}"}  # fmt: skip
    hub.files[ID] |= texts
    folder = pull(ID, tmp_path / "out")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert found >= texts.keys() - {"2_Dense/config.json"} and "2_Dense/config.json" not in found
    assert (folder / "1_Pooling" / "config.json").read_bytes() == texts["1_Pooling/config.json"]
    assert (folder / "config.json").read_bytes() == hub.files[ID]["config.json"]
    hub.log.clear()
    pull(ID, folder)
    assert hub.log == [f"GET /api/models/{ID}/revision/main"]


@pytest.mark.parametrize("model", [ID, SHARDED])
def test_pulls_what_compiling_needs(hub: Hub, tmp_path: Path, model: str) -> None:
    seen: list[Progress] = []
    folder = pull(model, tmp_path / "out", progress=seen.append)
    assert folder == tmp_path / "out"
    assert_same(folder, hub.files[model])
    assert seen[-1].stage == "download" and seen[-1].bytes_done == seen[-1].bytes_total
    assert not any("partial" in path.name for path in folder.iterdir())

    hub.log.clear()
    pull(model, folder)
    assert hub.log == [f"GET /api/models/{model}/revision/main"]  # verified before, so only the revision is asked


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        (f"{GGUF}:Q4_K_M", ["tiny-q4_k_m.gguf"]),
        (f"{GGUF}/tiny-q8_0.gguf", ["tiny-q8_0.gguf"]),
        (f"{GGUF}:F16", ["tiny-f16-00001-of-00002.gguf", "tiny-f16-00002-of-00002.gguf"]),
        (f"{GGUF}/f16/tiny-f16-00002-of-00002.gguf", ["tiny-f16-00001-of-00002.gguf", "tiny-f16-00002-of-00002.gguf"]),
    ],
)
def test_a_gguf_of_a_repository(hub: Hub, tmp_path: Path, wanted: str, files: list[str]) -> None:
    path = pull(wanted, tmp_path / "out")
    assert path == tmp_path / "out" / files[0]
    assert sorted(p.name for p in path.parent.glob("*.gguf")) == files
    assert find_checkpoint(wanted)[0].name == files[0]


def test_which_gguf_it_should_be(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"has GGUF files: tiny-f16-00001-of-00002.gguf, .*; name one, as in"):
        pull(GGUF, tmp_path / "out")
    with pytest.raises(HubError, match=r"has no GGUF models that 'Q4_K' names; there are: .*tiny-q4_k_m.gguf"):
        pull(f"{GGUF}:Q4_K", tmp_path / "out")
    with pytest.raises(HubError, match="has no GGUF models that 'Q8_0' names; there are: none"):
        pull(f"{ID}:Q8_0", tmp_path / "out")


def test_default_folder_and_revision(hub: Hub, tmp_path: Path) -> None:
    folder = pull(ID)
    assert folder == tmp_path / "qwench-cache" / "checkpoints" / "Qwen--tiny" / "main"
    assert_same(folder, hub.files[ID])
    assert pull(ID, revision=SHA).name == SHA
    assert find_checkpoint(ID) == (folder, ID)


def test_the_token_stays_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(ID, tmp_path / "out")
    assert hub.tokens["api"] == "Bearer hf_secret" and hub.tokens["Qwen"] == "Bearer hf_secret"
    assert hub.tokens["cdn"] == ""


# -- broken downloads -------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.break_after[WEIGHTS] = [10_000]
    pull(ID, tmp_path / "out")
    assert_same(tmp_path / "out", hub.files[ID])
    assert any(line.startswith("GET /cdn/") and "bytes=" in line for line in hub.log)


def test_an_interrupted_pull_is_resumed_by_the_next(hub: Hub, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.bytes_done > 30_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(ID, tmp_path / "out", progress=interrupt)
    assert not (tmp_path / "out" / WEIGHTS).exists()
    (partial,) = (tmp_path / "out").glob(".model.safetensors.*.partial")
    size = partial.stat().st_size
    assert 20_000 < size < len(hub.files[ID][WEIGHTS])

    hub.log.clear()
    seen: list[Progress] = []
    pull(ID, tmp_path / "out", progress=seen.append)
    assert_same(tmp_path / "out", hub.files[ID])
    assert [line for line in hub.log if "/cdn/" in line] == [f"GET /cdn/{ID}/{WEIGHTS} bytes={size}-"]
    assert not partial.exists()
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(hub.files[ID][WEIGHTS])


def test_a_partial_file_that_was_damaged_is_fetched_from_the_start(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.break_after[WEIGHTS] = [10_000] + [10_000] * 20
    with pytest.raises(HubError, match=r"pull again to resume|kept and resumed"):
        pull(ID, tmp_path / "out")
    hub.break_after.clear()
    (partial,) = (tmp_path / "out").glob(".model.safetensors.*.partial")
    partial.write_bytes(b"x" * 10_000)
    pull(ID, tmp_path / "out")
    assert_same(tmp_path / "out", hub.files[ID])


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_corrupt_file_is_fetched_once_more(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.corrupt[name] = 1
    pull(ID, tmp_path / "out")
    assert_same(tmp_path / "out", hub.files[ID])


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_stays_corrupt_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.corrupt[name] = 9
    with pytest.raises(HubError, match=f"{name} of {ID} arrived damaged"):
        pull(ID, tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()


def test_a_file_that_was_changed_here_is_fetched_again(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pull(ID, tmp_path / "out") / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    pull(ID, tmp_path / "out")
    assert_same(tmp_path / "out", hub.files[ID])
    assert "is not what the hub has" in caplog.text


def test_a_file_that_changed_on_the_hub_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    pull(ID, tmp_path / "out")
    (tmp_path / "out" / ".qwench-pull.json").unlink()
    hub.files[ID]["generation_config.json"] = b'{"eos_token_id": 3}'
    pull(ID, tmp_path / "out")
    assert_same(tmp_path / "out", hub.files[ID])
    assert hub.downloads().count(WEIGHTS) == 1  # hashed here, not fetched again


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("qwench.checkpoint.hub.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(CapacityError, match=r"needs \d+ MiB more"):
        pull(ID, tmp_path / "out")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "has no model 'Qwen/tiny' that you may read (and there is no folder of that name)"),
        (401, "", "log in with `hf auth login`"),
        (403, "GatedRepo", "is gated: ask for access at"),
        (403, "", "answered 403"),
        (500, "", "answered 500 for Qwen/tiny; try again later"),
    ],
)
def test_refusals(hub: Hub, tmp_path: Path, status: int, code: str, words: str) -> None:
    hub.status[ID] = (status, code)
    with pytest.raises(HubError) as caught:
        pull(ID, tmp_path / "out")
    assert words in str(caught.value)


def test_unknown_names(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="has no model 'Qwen/nothing'"):
        find_checkpoint("Qwen/nothing")
    with pytest.raises(HubError, match="has no revision 'v9'"):
        pull(ID, tmp_path / "out", revision="v9")
    for name in ("tiny", "a/b/c", "../x", "a b/c", ""):
        with pytest.raises(HubError, match="is not a hub id"):
            pull(name, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no folder or file './tiny', and it is not a hub id"):
        find_checkpoint("./tiny")
    assert not (tmp_path / "out").exists()


def test_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="only pickled weights, which can run code and are refused"):
        pull(PICKLED, tmp_path / "out")
    del hub.files[PICKLED]["pytorch_model.bin"]
    with pytest.raises(HubError, match="no safetensors weights"):
        pull(PICKLED, tmp_path / "out")
    del hub.files[PICKLED]["config.json"]
    with pytest.raises(HubError, match=r"has no config\.json"):
        pull(PICKLED, tmp_path / "out")


def test_what_the_hub_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.files[SHARDED]["model-00002-of-00003.safetensors"]
    with pytest.raises(HubError, match=r"lacks model-00002-of-00003\.safetensors, which its"):
        pull(SHARDED, tmp_path / "out")


def test_an_index_from_the_hub_can_not_leave_the_folder(hub: Hub, tmp_path: Path) -> None:
    hub.files[SHARDED]["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": "../../x.safetensors"}}
    ).encode()
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file name"):
        pull(SHARDED, tmp_path / "out")


# -- without a network ------------------------------------------------------------------------------------------------


def test_unreachable(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"can't be reached for Qwen/tiny .*check the network and HF_ENDPOINT"):
        pull(ID)


def test_unreachable_but_pulled_before(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {model: pull(model) for model in (ID, SHARDED)}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    caplog.set_level(logging.WARNING)
    for model, folder in folders.items():
        assert pull(model) == folder
    assert "using what was downloaded before" in caplog.text
    (folders[SHARDED] / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(HubError, match="can't be reached"):
        pull(SHARDED)


def test_huggingface_hubs_own_cache_is_used(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in ("config.json", WEIGHTS):
        path = hf_hub_download(ID, name, endpoint=hub.endpoint, cache_dir=tmp_path / "hub-cache")
    hub.log.clear()
    assert pull(ID) == Path(path).parent
    assert hub.downloads() == []


def test_the_endpoint_of_the_environment_is_used_by_a_fresh_process(hub: Hub, tmp_path: Path) -> None:
    code = "import sys; from qwench.checkpoint.hub import pull; print(pull(sys.argv[1], sys.argv[2]))"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, ID, str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == str(tmp_path / "out"), run.stderr
    assert run.stderr == ""
    assert_same(tmp_path / "out", hub.files[ID])


def test_offline_mode(hub: Hub, tmp_path: Path) -> None:
    code = "import sys; from qwench.checkpoint.hub import pull; print(pull(sys.argv[1]))"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code, ID], capture_output=True, text=True, env=environment)
    assert "HubError" in run.stderr and "can't be reached" in run.stderr
    assert hub.log == []
