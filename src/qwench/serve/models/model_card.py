"""What there is to say of a model without loading it: read from its artifact, for menus and for clients that ask what
it can do. Knows no API's JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qwench.artifact.artifact import MANIFEST, PROGRAM, Manifest
from qwench.checkpoint.json_file import read_object
from qwench.checkpoint.spec import ModelSpec
from qwench.program.ops import Program
from qwench.runtime.thoughts import OPEN
from qwench.text.tokenizer import read_chat_template

FIM_TOKEN = "<|fim_prefix|>"


@dataclass(frozen=True)
class ModelCard:
    """digest: of the artifact, hexadecimal. weights: the format of the matrices. max_seq_len: of the context, in
    tokens. can_fill: whether it was trained to fill a gap."""

    digest: str
    created: str
    size_bytes: int
    num_weights: int
    weights: str
    max_seq_len: int
    spec: ModelSpec
    chat_template: str
    can_fill: bool

    @property
    def knows_tools(self) -> bool:
        return "tools" in self.chat_template

    @property
    def thinks(self) -> bool:
        return OPEN in self.chat_template


@lru_cache(maxsize=64)
def read_card(folder: Path) -> ModelCard:
    """Of the artifact in `folder`, which was opened before: what is wrong with it was said then."""
    raw = (folder / MANIFEST).read_bytes()
    manifest = Manifest.from_json(raw)
    program = Program.from_dict(json.loads((folder / PROGRAM).read_bytes())["program"])
    tokenizer = read_object(folder / "tokenizer_config.json")
    template = read_chat_template(folder, tokenizer) or ""
    return ModelCard(
        digest=json.loads(raw)["manifest_sha256"], created=manifest.created,
        size_bytes=sum(record.num_bytes for record in manifest.files.values()),
        num_weights=sum(math.prod(weight.shape) for weight in program.weights.values()),
        weights=str(manifest.config["weights"]), max_seq_len=int(manifest.config["max_seq_len"]), spec=program.spec,
        chat_template="\n".join(template.values()) if isinstance(template, Mapping) else template,
        can_fill=FIM_TOKEN in json.dumps(tokenizer),
    )  # fmt: skip
