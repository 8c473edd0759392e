"""The calibration text: a text file -> rows of tokens, through the checkpoint's tokenizer.json."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from qwench.errors import ConfigError
from qwench.targets.target import Int32

NUM_ROWS = 32  # rows taken from the text, evenly spread over it
ROW_LENGTH = 512  # tokens
_IDENTITY = re.compile(r".* sha256:[0-9a-f]{64}", re.DOTALL)
MIN_TOKENS = 1024  # fewer say too little about the inputs of a matrix


def calibration_rows(path: Path, checkpoint: Path, max_length: int) -> Int32:
    """The tokens of up to 32 windows of 512 (or `max_length`) tokens, evenly spread over the text: [rows, length].

    Raises ConfigError if the file can't be read, is no UTF-8 text, holds fewer than 1,024 tokens, or the checkpoint
    has no tokenizer.json that the tokenizers library reads.
    """
    tokens = _encode(_read(path), checkpoint)
    if len(tokens) < MIN_TOKENS:
        raise ConfigError(
            f"{path} has {len(tokens)} tokens; calibration needs at least {MIN_TOKENS}, better "
            f"{NUM_ROWS * ROW_LENGTH}, of text like what the model will read and write"
        )
    length = min(ROW_LENGTH, max_length)
    num_rows = min(NUM_ROWS, len(tokens) // length)
    starts = np.linspace(0, len(tokens) - length, num_rows).astype(np.int64)
    return np.stack([tokens[start : start + length] for start in starts])


def text_identity(path: str) -> str:
    """What an artifact records of the text: the file's name and sha256. Such a record is returned as it is. Raises
    ConfigError if the file can't be read."""
    if _IDENTITY.fullmatch(path):
        return path
    return f"{Path(path).name} sha256:{hashlib.sha256(_read(Path(path)).encode()).hexdigest()}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the calibration text {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the calibration text {path} isn't UTF-8; give a plain text file") from None


def _encode(text: str, checkpoint: Path) -> Int32:
    import tokenizers  # takes half a second, so only when calibrating

    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{checkpoint} has no tokenizer.json, which calibrating with a text needs")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ConfigError(f"{path} can't be used: {error}") from None
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
