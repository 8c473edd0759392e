"""The draft model of another one: opened or compiled, and checked whether its tokens are the other's.

Called by `LLM`, the command line and `QwenchForCausalLM`; what it does in a step is
`runtime/spec_decode/draft_model.py`'s.
"""

from __future__ import annotations

from pathlib import Path

from qwench.artifact.artifact import Artifact, is_artifact
from qwench.checkpoint.hub import find_checkpoint
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.tokenizer_files import has_tokenizer
from qwench.config import QwenchConfig
from qwench.errors import ConfigError
from qwench.formats import WEIGHT_KINDS
from qwench.load import resolve_model
from qwench.progress import ProgressCallback
from qwench.text.tokenizer import Tokenizer

_MOST_PADDING = 1024  # rows of an embedding matrix that are no tokens: Qwen2.5 has 271 or 399


def resolve_draft(draft: str | Path, model: Artifact, progress: ProgressCallback | None = None) -> Artifact:
    """Opens the draft of `model`: an artifact, a checkpoint folder or a hub id, which is compiled to the model's format
    of weights (int8 beside a checkpoint that was quantised by others).

    Raises ConfigError for a draft with another vocabulary or no language model, and what `resolve_model` raises.
    """
    path = Path(draft).expanduser()
    options = QwenchConfig(target=model.config.target)
    if not (path.is_dir() and is_artifact(path)):
        folder, _ = find_checkpoint(draft, progress)
        if not open_checkpoint(folder).is_quantized:
            kind = model.config.weights if model.config.weights in WEIGHT_KINDS else "int8"
            options = QwenchConfig(target=model.config.target, weights=kind)
    artifact = resolve_model(draft, options, progress=progress)
    check_draft(artifact, model)
    return artifact


def check_draft(draft: Artifact, model: Artifact, *, by_files: bool = True) -> None:
    """Raises ConfigError for a draft that can't guess what the model says. by_files: one of them alone without
    tokenizer files is refused, too."""
    spec = draft.program.spec
    if spec.head.kind != "causal_lm" or not spec.is_causal:
        raise ConfigError(
            f"the draft {draft.path} continues no text (its head is {spec.head.kind!r}); take one that does"
        )
    sizes = spec.vocab_size, model.program.spec.vocab_size
    has = has_tokenizer(draft.path), has_tokenizer(model.path)
    if abs(sizes[0] - sizes[1]) > _MOST_PADDING or (by_files and has[0] != has[1]):
        raise ConfigError(
            f"the draft {draft.path} has {sizes[0]} tokens{'' if has[0] else ' and no tokenizer files'}, the model "
            f"{sizes[1]}{'' if has[1] else ' and no tokenizer files'}; a draft must have the model's own tokenizer"
        )
    if all(has):
        _check_tokens(Tokenizer(draft.path), Tokenizer(model.path), max(sizes))


def _check_tokens(draft: Tokenizer, model: Tokenizer, vocab_size: int) -> None:
    """Each id that both have must be the same token; what only one has may be an added token, such as those for tools
    in Qwen2.5, never one of ordinary text."""
    pair = [tokenizer.vocabulary(vocab_size).tokens for tokenizer in (draft, model)]
    if pair[0] == pair[1]:
        return
    added = {*draft.added_ids(), *model.added_ids()}
    for token, (one, other) in enumerate(zip(*pair)):
        if one != other and ((one and other) or token not in added):
            raise ConfigError(
                f"the draft {draft.folder} has another tokenizer: its token {token} is {one!r}, the model's {other!r}; "
                "a draft must have the model's own"
            )
