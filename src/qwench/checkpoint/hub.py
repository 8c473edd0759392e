"""Downloads checkpoints from the Hugging Face hub: only files that compiling needs, resumed and verified.

Talks to the hub through huggingface_hub (its tokens, HF_ENDPOINT, offline mode); downloads by itself, since
huggingface_hub no longer resumes a file. Never fetches pickles or code. Called by `qwench pull`, the compiler and
`load.py`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from qwench.checkpoint.gguf.container import is_gguf
from qwench.checkpoint.hub_file import RemoteFile, download, is_sound, is_unreachable, size_of
from qwench.checkpoint.sentence_transformers import is_embedding_file
from qwench.checkpoint.weights import COMPANION_FILES, INDEX, PICKLES, SINGLE, read_index
from qwench.errors import CapacityError, CheckpointError, HubError
from qwench.host import cache_dir, hub_endpoint
from qwench.progress import ProgressCallback, Reporter
from qwench.shared_files import lock_file, replace_text

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

log = logging.getLogger("qwench")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_REFERENCE = re.compile(rf"(?P<id>{HUB_ID.pattern})(:(?P<kind>[\w.-]+)|/(?P<file>[\w./-]+\.gguf))?")
RECORD = ".qwench-pull.json"  # files already verified; hashed again only when their size or time changes


def find_checkpoint(source: str | Path, progress: ProgressCallback | None = None) -> tuple[Path, str]:
    """The path of a checkpoint and its name: a folder or a GGUF file here, or a hub id, which is pulled.

    Raises CheckpointError when `source` is neither, HubError when it can't be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if is_gguf(path):
        return path, path.stem
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder of a Hugging Face checkpoint, or a .gguf file")
    if isinstance(source, str) and HUB_REFERENCE.fullmatch(source):
        return pull(source, progress=progress), source.replace(":", "-")
    raise CheckpointError(
        f"there is no folder or file {str(source)!r}, and it is not a hub id such as Qwen/Qwen2.5-0.5B"
    )


def pull(
    model_id: str,
    out: str | Path | None = None,
    revision: str | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Path:
    """Downloads what compiling needs of `model_id` into `out` (default: a folder in qwench's cache); the folder.

    model_id: ID, or of a repository of GGUF files ID:Q4_K_M or ID/FILE.gguf; then the path of the file is returned.
    Files that are there and verified are kept, broken downloads resumed. Without `out`, a complete snapshot in
    huggingface_hub's own cache is used as it is. Raises HubError, CheckpointError or CapacityError.
    """
    reference = HUB_REFERENCE.fullmatch(model_id)
    if reference is None:
        raise HubError(
            f"{model_id!r} is not a hub id; it looks like ORGANISATION/NAME, and for a GGUF file like "
            "ORGANISATION/NAME:Q4_K_M or ORGANISATION/NAME/FILE.gguf"
        )
    model_id, wanted = reference["id"], reference["kind"] or reference["file"]
    default = cache_dir() / "checkpoints" / model_id.replace("/", "--")
    folder = default / (revision or "main").replace("/", "--") if out is None else Path(out).expanduser()
    with _hub_errors(model_id, revision, folder):
        try:
            info = _model_info(model_id, revision)
        except Exception as error:
            if wanted and is_unreachable(error) and (here := [p.name for p in folder.glob("*.gguf")]):
                return folder / _choose_gguf(here, wanted, str(folder))[0]
            if out is None and is_unreachable(error) and (found := _offline_folder(model_id, revision, folder)):
                log.warning("the hub can't be reached; using what was downloaded before: %s", found)
                return found
            raise
        if out is None and not wanted and (found := _hub_cache_folder(model_id, info.sha)):
            return found
        with lock_file(folder / ".qwench-pull.lock"):
            work = _Pull(model_id, info, folder, progress)
            return work.run_gguf(wanted) if wanted else work.run()


def _model_info(model_id: str, revision: str | None) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint()).model_info(model_id, revision=revision or "main", files_metadata=True)


class _Pull:
    """One download into one folder."""

    def __init__(self, model_id: str, info: ModelInfo, folder: Path, progress: ProgressCallback | None) -> None:
        self.model_id, self.folder, self.progress = model_id, folder, progress
        self.revision = info.sha
        self.names = {sibling.rfilename for sibling in info.siblings or []}
        self.record = _read_record(folder)

    def run(self) -> Path:
        self._check_kind()
        weights = [SINGLE]
        if SINGLE not in self.names:
            self._fetch([INDEX])
            weights = sorted(read_index(self.folder / INDEX))
        if absent := [name for name in weights if name not in self.names]:
            raise HubError(f"{self.model_id} on the hub lacks {', '.join(absent)}, which its {INDEX} names")
        texts = [name for name in COMPANION_FILES if name in self.names] + sorted(filter(is_embedding_file, self.names))
        self._fetch(texts + weights)
        return self.folder

    def run_gguf(self, wanted: str) -> Path:
        """One GGUF file with all its parts; the path of the first."""
        names = sorted(name for name in self.names if name.endswith(".gguf"))
        parts = _choose_gguf(names, wanted, f"{self.model_id} on the hub")
        self._fetch(parts)
        return self.folder / _base(parts[0])

    def _check_kind(self) -> None:
        files = sorted(_base(name) for name in self.names if name.endswith(".gguf"))
        if files and not self.names & {SINGLE, INDEX}:
            raise HubError(
                f"{self.model_id} on the hub has GGUF files: {', '.join(files)}; name one, as in "
                f"{self.model_id}/{files[0]}"
            )
        if "config.json" not in self.names:
            raise HubError(f"{self.model_id} on the hub has no config.json; it is not a transformers checkpoint")
        if not self.names & {SINGLE, INDEX}:
            pickled = any(name.endswith(PICKLES) for name in self.names)
            only = "only pickled weights, which can run code and are refused" if pickled else "no safetensors weights"
            raise HubError(f"{self.model_id} on the hub has {only}; look for a safetensors version of it")

    def _fetch(self, names: list[str]) -> None:
        """Downloads and verifies the files; those verified before are skipped unless size or time changed."""
        files = [self._remote(name) for name in names if not self._is_recorded(_base(name))]
        total = sum(file.num_bytes for file in files)
        before = sum(size_of(self._partial(file)) for file in files)
        self._check_disk(total - before)
        report, done = Reporter(self.progress, before), 0
        for file in files:
            self._fetch_one(file, functools.partial(_report_bytes, report, done, total))
            done += file.num_bytes

    def _fetch_one(self, file: RemoteFile, advance: Callable[[int], None]) -> None:
        path, partial = self.folder / file.name, self._partial(file)
        if path.is_file() and not is_sound(path, file):
            log.warning("%s is not what the hub has, and is downloaded again", path)
        elif path.is_file():
            return self._remember(file.name)
        for _ in range(2):  # a damaged resumed download is repeated once from the start
            download(file, partial, advance)
            if is_sound(partial, file):
                path.parent.mkdir(exist_ok=True)
                os.replace(partial, path)
                return self._remember(file.name)
            partial.unlink()
        raise HubError(f"{file.name} of {self.model_id} arrived damaged (its hash is not {file.etag}); try again later")

    def _remote(self, name: str) -> RemoteFile:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        url = hf_hub_url(self.model_id, name, revision=self.revision, endpoint=hub_endpoint())
        meta = get_hf_file_metadata(url)
        if meta.size is None:
            raise HubError(f"the hub doesn't say how large {name} of {self.model_id} is")
        headers = {key: value for key, value in build_hf_headers().items() if isinstance(value, str)}
        if urlparse(meta.location).netloc != urlparse(url).netloc:
            headers.pop("authorization", None)  # the token is for the hub, not for its file servers
        return RemoteFile(_base(name), meta.location, meta.size, meta.etag or "", headers)

    def _partial(self, file: RemoteFile) -> Path:
        """Named by etag, so that a file that changed on the hub isn't continued."""
        return (
            self.folder
            / f".{file.name.replace('/', '-')}.{hashlib.sha256(file.etag.encode()).hexdigest()[:12]}.partial"
        )

    def _is_recorded(self, name: str) -> bool:
        """Verified by an earlier pull of the same revision, and not touched since."""
        return (self.folder / name).is_file() and self.record.get(name) == [self.revision, *_stamp(self.folder / name)]

    def _remember(self, name: str) -> None:
        self.record[name] = [self.revision, *_stamp(self.folder / name)]
        replace_text(self.folder / RECORD, json.dumps(self.record))

    def _check_disk(self, needed: int) -> None:
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise CapacityError(
                f"{self.model_id} needs {needed / 2**20:.0f} MiB more, but {self.folder} has {free / 2**20:.0f} MiB "
                "free; free some space or give a folder on another disk"
            )


def _base(name: str) -> str:
    """The name that a file of the hub gets here: without the folders it lies in there, but for those of
    sentence-transformers, which name their module."""
    return name if is_embedding_file(name) else name.rpartition("/")[2]


def _choose_gguf(names: list[str], wanted: str, where: str) -> list[str]:
    """Of the names of GGUF files the one that is `wanted`, a file's name or a type such as Q4_K_M, with all its parts.

    Raises HubError, which lists what there is, if there is none or more than one.
    """
    models: dict[str, list[str]] = {}
    for name in names:
        models.setdefault(re.sub(r"-\d{5}-of-\d{5}(?=\.gguf$)", "", name), []).append(name)
    kind = re.compile(rf"(^|[-._/]){re.escape(wanted)}(?=[-./]|$)", re.IGNORECASE)
    found = [model for model, parts in models.items() if wanted in (model, _base(model), *parts) or kind.search(model)]
    if len(found) != 1:
        told = ", ".join(map(_base, names)) or "none"
        raise HubError(f"{where} has {len(found) or 'no'} GGUF models that {wanted!r} names; there are: {told}")
    return sorted(models[found[0]])


def _report_bytes(report: Reporter, before: int, total: int, count: int) -> None:
    report("download", before + count, total)


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}  # absent or damaged: everything is verified anew
    return {k: v for k, v in record.items() if isinstance(v, list)} if isinstance(record, dict) else {}


def _hub_cache_folder(model_id: str, revision: str | None) -> Path | None:
    """The snapshot in huggingface_hub's cache, if it is whole."""
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(model_id, name, revision=revision), str)

    config = try_to_load_from_cache(model_id, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    if cached(SINGLE):
        return folder
    return folder if cached(INDEX) and all(cached(name) for name in read_index(folder / INDEX)) else None


def _offline_folder(model_id: str, revision: str | None, folder: Path) -> Path | None:
    """What an earlier pull or huggingface_hub left here, if it is whole."""
    record = _read_record(folder)

    def untouched(name: str) -> bool:
        return name in record and (folder / name).is_file() and record[name][1:] == _stamp(folder / name)

    sharded = untouched(INDEX) and all(untouched(name) for name in read_index(folder / INDEX))
    if untouched("config.json") and (untouched(SINGLE) or sharded):
        return folder
    return _hub_cache_folder(model_id, revision)


@contextmanager
def _hub_errors(model_id: str, revision: str | None, folder: Path) -> Iterator[None]:
    """Turns errors of huggingface_hub into HubError with a message that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hf

    endpoint = hub_endpoint() or constants.ENDPOINT
    try:
        yield
    except (HubError, CheckpointError, CapacityError):
        raise
    except hf.GatedRepoError:
        raise HubError(
            f"{model_id} is gated: ask for access at {endpoint}/{model_id}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        ) from None
    except hf.RepositoryNotFoundError:
        raise HubError(
            f"{endpoint} has no model {model_id!r} that you may read (and there is no folder of that name); "
            "check the spelling, or log in with `hf auth login` if it is private"
        ) from None
    except hf.RevisionNotFoundError:
        raise HubError(f"{model_id} has no revision {revision!r}") from None
    except hf.HFValidationError as error:
        raise HubError(f"{model_id!r} is not a hub id: {error}") from None
    except hf.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        todo = "log in with `hf auth login` or set HF_TOKEN" if status in (401, 403) else "try again later"
        raise HubError(f"{endpoint} answered {status} for {model_id}; {todo}") from None
    except Exception as error:
        if is_unreachable(error):
            raise HubError(
                f"{endpoint} can't be reached for {model_id} ({error}); check the network and HF_ENDPOINT, "
                "or give a checkpoint folder; what was downloaded is kept and resumed"
            ) from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(f"the disk is full at {folder}; free some space, then pull again to resume") from None
        if isinstance(error, OSError):
            raise HubError(f"{model_id} can't be downloaded to {folder}: {error}; pull again to resume") from None
        raise
