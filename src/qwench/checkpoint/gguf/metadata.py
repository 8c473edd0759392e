"""A GGUF file's metadata -> the texts that a Hugging Face folder has: config.json, tokenizer files, generation config.

Keys: docs/gguf.md of github.com/ggml-org/ggml; what pre-tokenizers and end tokens mean: llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwench.checkpoint.experts import MIXTURES
from qwench.checkpoint.heads import FAMILIES
from qwench.checkpoint.sentence_transformers import SETTINGS, EmbeddingSettings
from qwench.checkpoint.tokenizer_files import PRETOKENIZER
from qwench.errors import CheckpointError

PRE_TOKENIZERS = ("qwen2", "deepseek-r1-qwen")  # which split alike
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # types of tokens; 1 is normal
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")  # that llama.cpp counts as ends of an answer, whatever the keys say
POOLINGS: Mapping[int, Literal["last", "mean", "first"]] = {1: "mean", 2: "first", 3: "last"}  # llama_pooling_type
NO_POOLING = 0
# What scales attention or mixes frequencies in llama.cpp otherwise than transformers does, and the value that doesn't.
NEUTRAL_SCALING = {"attn_factor": 1, "yarn_attn_factor": 1, "yarn_ext_factor": 1, "yarn_log_multiplier": 0, "alpha": 0}
MODEL_TYPES = {name.replace("_", ""): name for name in FAMILIES}  # by what llama.cpp calls them
_MISSING = object()


class Metadata:
    """The metadata of the file at `path`; errors name both."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values, self._path = values, path
        self.architecture: str = self.get("general.architecture", str)
        if self.architecture not in MODEL_TYPES:
            known = ", ".join(map(repr, MODEL_TYPES))
            raise self.error(f"its architecture is {self.architecture!r}; qwench compiles {known}")

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._path} can't be used: {message}")

    def get(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        """A value of that type; an int may stand for a float. Raises CheckpointError if it is missing or another."""
        value = self._values.get(key, default)
        if value is _MISSING:
            raise self.error(f"it lacks {key}")
        if value is default or (type(value) is int and kind is float) or type(value) is kind:
            return value
        raise self.error(f"{key} is a {type(value).__name__}, not a {kind.__name__}")

    def number(self, key: str, default: Any = _MISSING) -> Any:
        return self.get(f"{self.architecture}.{key}", int, default)

    def config(self, vocab_size: int, ties_embeddings: bool) -> dict[str, Any]:
        """config.json, in transformers' words."""
        heads, hidden = self.number("attention.head_count"), self.number("embedding_length")
        config = {
            "architectures": [FAMILIES[MODEL_TYPES[self.architecture]] + "ForCausalLM"],
            "model_type": MODEL_TYPES[self.architecture],
            "hidden_act": "silu",
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "intermediate_size": self.number("feed_forward_length"),
            "num_hidden_layers": self.number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.number("attention.head_count_kv", heads),
            "max_position_embeddings": self.number("context_length"),
            "rms_norm_eps": _short(self.get(f"{self.architecture}.attention.layer_norm_rms_epsilon", float)),
            "rope_theta": _short(self.get(f"{self.architecture}.rope.freq_base", float, 10000.0)),
            "tie_word_embeddings": ties_embeddings,
            "use_sliding_window": False,
            "is_causal": self.get(f"{self.architecture}.attention.causal", bool, True),
        }
        if (head_dim := self.number("attention.key_length", None)) is not None:
            config["head_dim"] = head_dim
        if (rotated := self.number("rope.dimension_count", None)) not in (None, head_dim or hidden // max(heads, 1)):
            raise self.error(f"rope.dimension_count is {rotated}; read are models that rotate whole heads")
        if MODEL_TYPES[self.architecture] in MIXTURES:
            config |= self._experts(config["intermediate_size"])
        if (scaling := self._rope_scaling()) is not None:
            config["rope_scaling"] = scaling
        ids = {name: self.token_id(name) for name in ("bos_token_id", "eos_token_id")}
        return config | {name: token for name, token in ids.items() if token is not None}

    def _experts(self, intermediate_size: int) -> dict[str, Any]:
        """As llama.cpp has it, also where older files don't say: llama-model.cpp."""
        chosen = self.number("expert_used_count")
        if chosen < 1:
            raise self.error(f"expert_used_count is {chosen}")
        is_qwen3 = self.architecture == "qwen3moe"
        return {
            "num_experts": self.number("expert_count"),
            "num_experts_per_tok": chosen,
            "moe_intermediate_size": self.number("expert_feed_forward_length", intermediate_size // chosen),
            "shared_expert_intermediate_size": self.number("expert_shared_feed_forward_length", intermediate_size),
            "norm_topk_prob": self.get(f"{self.architecture}.expert_weights_norm", bool, is_qwen3),
        }

    def _rope_scaling(self) -> dict[str, Any] | None:
        """As llama.cpp has it: linear where a factor comes without a type."""
        at = f"{self.architecture}.rope.scaling"
        for name, neutral in NEUTRAL_SCALING.items():
            if (value := self.get(f"{at}.{name}", float, neutral)) != neutral:
                raise self.error(f"{at}.{name} is {value:g}, which isn't read")
        older = self.get(f"{self.architecture}.rope.scale_linear", float, 0)
        factor = self.get(f"{at}.factor", float, older)
        kind = self.get(f"{at}.type", str, "linear" if factor else "none")
        if kind == "none":
            return None
        if kind not in ("linear", "yarn"):
            raise self.error(f"{at}.type is {kind!r}; read are none, linear and yarn")
        scaling: dict[str, Any] = {"rope_type": kind, "factor": _short(factor)}
        if kind == "yarn":
            for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
                if (value := self.get(f"{at}.{theirs}", float, None)) is not None:
                    scaling[ours] = _short(value)
            original = self.get(f"{at}.original_context_length", int, None)
            if original is not None:
                scaling["original_max_position_embeddings"] = original
        return scaling

    def token_id(self, name: str) -> int | None:
        token: int | None = self.get(f"tokenizer.ggml.{name}", int, None)
        if token is not None and not 0 <= token < len(self.tokens):
            raise self.error(f"tokenizer.ggml.{name} is {token}, but there are {len(self.tokens)} tokens")
        return token

    @property
    def tokens(self) -> list[str]:
        tokens: list[str] = self.get("tokenizer.ggml.tokens", list)
        return tokens

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """All files, by name."""
        files = {
            "config.json": config,
            "tokenizer.json": self._tokenizer(),
            "tokenizer_config.json": self._tokenizer_config(),
            "generation_config.json": self._generation_config(),
        }
        settings = self._embedding_settings()
        texts = {name: json.dumps(data, ensure_ascii=False).encode() for name, data in files.items()}
        return texts if settings is None else texts | {SETTINGS: settings.to_json()}

    def _embedding_settings(self) -> EmbeddingSettings | None:
        """How an embedding model pools; None where the file doesn't speak of it."""
        if (pooling := self.number("pooling_type", NO_POOLING)) == NO_POOLING:
            return None
        if pooling not in POOLINGS:
            raise self.error(f"pooling_type is {pooling}; read are 1 (mean), 2 (the first token) and 3 (the last)")
        return EmbeddingSettings(POOLINGS[pooling])

    def _token_types(self) -> list[int]:
        types = self._values.get("tokenizer.ggml.token_type")
        if types is None:
            return [1] * len(self.tokens)
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(self.tokens):
            raise self.error("tokenizer.ggml.token_type isn't a whole number for each token")
        return [int(kind) for kind in types]

    def _vocabulary(self) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """The ids of the tokens that merges make, and the entries of those that are added to them."""
        vocabulary: dict[str, int] = {}
        added = []
        for i, (token, kind) in enumerate(zip(self.tokens, self._token_types(), strict=True)):
            if kind in (CONTROL, USER_DEFINED):
                flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
                added.append({"id": i, "content": token, **flags, "special": kind == CONTROL})
            elif kind != UNUSED:
                vocabulary[token] = i
        return vocabulary, added

    def _merges(self, vocabulary: Mapping[str, int]) -> list[str]:
        merges: list[str] = self.get("tokenizer.ggml.merges", list)
        if malformed := [merge for merge in merges if merge.count(" ") != 1]:
            raise self.error(f"tokenizer.ggml.merges has {malformed[0]!r}, which isn't two tokens")
        for merge in merges:
            left, right = merge.split(" ")
            if not {left, right, left + right} <= vocabulary.keys():
                raise self.error(f"tokenizer.ggml.merges has {merge!r}, of which a part isn't a token")
        return merges

    def _tokenizer(self) -> dict[str, Any]:
        """A byte-level BPE as the tokenizers library saves it."""
        model = self.get("tokenizer.ggml.model", str)
        pre_tokenizer = self.get("tokenizer.ggml.pre", str, "qwen2")
        if model != "gpt2" or pre_tokenizer not in PRE_TOKENIZERS:
            raise self.error(
                f"its tokenizer is {model!r} with pre-tokenizer {pre_tokenizer!r}; read is 'gpt2' with "
                f"{' or '.join(map(repr, PRE_TOKENIZERS))}"
            )
        vocabulary, added = self._vocabulary()
        merges = self._merges(vocabulary)
        split = {"type": "Split", "pattern": {"Regex": PRETOKENIZER}, "behavior": "Isolated", "invert": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": self._post_processor() or byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        }

    def _post_processor(self) -> dict[str, Any] | None:
        """What puts the tokens of beginning and end around every text, those that are to be there."""
        begin, end = (self._around_texts(name) for name in ("bos", "eos"))
        if not begin and not end:
            return None
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        start, stop = ([{"SpecialToken": {"id": token, "type_id": 0}} for token in around] for around in (begin, end))
        special = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in (begin | end).items()}
        single, pair = [*start, first, *stop], [*start, first, *stop, second, *stop]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}

    def _around_texts(self, name: str) -> dict[str, int]:
        """The token of that name with its id, if every text is to have it."""
        token = self.token_id(f"{name}_token_id")
        is_added = self.get(f"tokenizer.ggml.add_{name}_token", bool, False)
        return {self.tokens[token]: token} if is_added and token is not None else {}

    def _tokenizer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": self.number("context_length"),
            "clean_up_tokenization_spaces": False,
        }
        for name, key in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("pad_token", "padding_token_id"),
        ):
            token = self.token_id(key)
            if token is not None:
                config[name] = self.tokens[token]
        template = self.get("tokenizer.chat_template", str, None)
        named = {key.removeprefix("tokenizer.chat_template."): self.get(key, str) for key in self._values
                 if key.startswith("tokenizer.chat_template.")}  # fmt: skip
        if named and template is not None:
            templates = {"default": template, **named}
            config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        elif template is not None:
            config["chat_template"] = template
        return config

    def _generation_config(self) -> dict[str, Any]:
        named = [token for key in END_KEYS if (token := self.token_id(key)) is not None]
        places = {token: i for i, token in enumerate(self.tokens)}
        ends = [*named, *(places[token] for token in END_TOKENS if token in places)]
        return {"eos_token_id": list(dict.fromkeys(ends))}


def _short(value: float) -> float:
    """A number that was written as fp32, as it was meant: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))
