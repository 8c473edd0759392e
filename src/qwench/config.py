"""QwenchConfig: every option, its default and its rules.

None means "decide for me"; `resolve` turns it into a value, in a new object, once the model is known. The resolved
config is what an artifact keeps, but for the options of a run. Knows nothing of targets beyond their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

from qwench.calibration.text import text_identity
from qwench.checkpoint.rope import parse_rope_scaling
from qwench.checkpoint.spec import EMBEDDING, HEAD, SCORES, ModelSpec
from qwench.errors import ConfigError
from qwench.formats import (
    ACTIVATION_KINDS,
    BF16,
    GROUP_SIZES,
    INTEGER_ACTIVATIONS,
    WEIGHT_KINDS,
    Format,
)
from qwench.lora.peft_folder import adapter_identity
from qwench.option_checks import batch_sizes, check_choice, check_flag, check_known, check_positive, check_seconds
from qwench.program.cache_groups import most_blocks, windows_of
from qwench.program.ops import Weight
from qwench.program.recipes import RECIPES, Recipe, check_matches, check_overrides, overridden
from qwench.quantization_option import options_of
from qwench.targets.registry import default_target, target_names
from qwench.targets.target import KV_CACHE_DTYPES, CacheConfig

KEPT = "checkpoint"  # weights as a quantised checkpoint stores them
ATTN_IMPLS = ("eager", "flash_attn")
DEVICES = ("cpu",)
BLOCK_MULTIPLE = 16  # cache positions per vector of scores; see targets/cpu/native/kernels/attention
PARTITION_MULTIPLE = 64  # cache positions per tile of scores, likewise
DEFAULT_PARTITION_LEN = 512
DEFAULT_CHUNK, DEFAULT_WHOLE_TEXT = 512, 8192

LOAD_OPTIONS = ("kvcache_num_blocks", "memory")  # an artifact keeps what it was given; loading may say otherwise
RUNTIME_OPTIONS = (
    "create_runtimes",
    "device",
    "timeout",
    "activate_profiler",
    "tensor_parallel_size",
    "shares",
)  # of one run: never kept


@dataclass(frozen=True)
class QwenchConfig:
    """All options. Every field may be None: "the default for this model and machine".

    weights: format of the matrices: bf16 (exact for bf16 checkpoints), int8 or int4; checkpoint: as a checkpoint that
        is quantised already stores them, which is its default.
    head_weights: format of embedding and output head; default: int8 when `weights` is int4, else as `weights`.
    group_size: values along K that share a scale in int8 and int4.
    activations: what weights are multiplied by. Beside bf16 weights fp32 (default; bf16 for the target cuda), or bf16,
        which is faster where the processor multiplies bf16; beside int8 and int4 weights int8 (default), int16, which
        is 128 times finer and takes twice the multiplications, or fp32, exact and slow. Matrices that a choice isn't
        for keep their default.
    recipe: accuracy, balanced or speed: defaults for the four above, `overrides` and `kv_cache`; `program/recipes.py`.
    overrides: pattern of checkpoint names -> format, such as {"*.down_proj.weight": "int8/g64"}; the last match counts.
    calibrate: path of a text whose tokens the model reads while it is compiled, so that rounding harms least what it
        does to such text. An artifact keeps the file's name and sha256.
    requantize: weights for a checkpoint that is quantised already: int8 or int4 rounds it a second time, bf16 makes it
        larger and hardly changes it.
    merged_lora: folder of a LoRA adapter, as PEFT saves it, that becomes part of the weights before they are rounded.
        An artifact keeps the folder's name and the sha256 of its files.
    kv_cache: fp32, int16 (codes with a scale per position and head), bf16 or int8 (half of bf16); default: fp32 beside
        bf16 weights with fp32 activations and in the recipe accuracy, where answers must match the original's, bf16
        beside bf16 activations and on GPUs, else int16. bf16 activations beside a bf16 cache round what attention
        multiplies, too.
    quantization: weights, activations, kv_cache and group_size as one dict, in Optimum RBLN's words:
        quantization_option.py.
    max_seq_len: tokens in a sequence, prompt and answer; default: the model's max_position_embeddings, or what its rope
        scaling makes of it.
    rope_scaling: in place of the checkpoint's, as "yarn:4" (type and factor) or as config.json's `rope_scaling` would
        say it: {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}.
    batch_size: sequences that generate at once. More may be asked for; they wait for their turn.
    decoder_batch_sizes: batch sizes to prepare decoding for, none above batch_size; default: batch_size alone.
        Targets of today run any number of sequences up to batch_size as it is and prepare nothing.
    bidirectional: each token sees all of its text, what is behind it too, though config.json doesn't say so: for
        embedding models whose own code does. Such a model gives embeddings and scores; a text is read in one step.
    prefill_chunk_size: tokens in one step, over all sequences; default: 512, or where a text must be read in one step
        the longest, up to 8192.
    use_inputs_embeds: False refuses `inputs_embeds`; default: True, tokens and embeddings both run.
    use_attention_mask: False refuses padding in an `attention_mask`; default: True, padding is never computed.
    attn_impl: flash_attn (default) computes attention partition by partition, in parallel when there are few
        sequences, and merges the parts in order; eager computes each sequence as a single partition.
    kvcache_partition_len: positions in a partition of flash_attn, a multiple of 64. Its boundaries are absolute, so
        that it decides the order of sums: equal lengths give equal bits whatever else differs.
    kvcache_block_size: positions in a cache block, a multiple of 16; default: 64 where the cache has codes, which
        attention then reads as they lie, else 32.
    kvcache_num_blocks: blocks in the cache; default: estimated from the memory there is when the model is loaded.
    memory: bytes that the loaded model may use; default: what the machine has free.
    target: the kind of machine; default: cuda where there is a GPU and qwench[cuda] is installed, else cpu.
    create_runtimes: False makes a model that can be saved, not run, whether or not this machine's memory holds it.
    device: where it runs: cpu.
    timeout: seconds that a request, or a call of `forward`, may take before it fails with DeadlineError. Looked at
        after each step; no limit by default.
    tensor_parallel_size: processes on this machine that compute each step together, each with its share of weights and
        cache; the bits are those of one process. Default: 1. shares: how much each takes, as "2,1,1"; default: alike.
    activate_profiler: count where the time of each step goes: `profiler` of the Engine and of QwenchForCausalLM.
    """

    weights: str | None = None
    head_weights: str | None = None
    group_size: int | None = None
    activations: str | None = None
    recipe: str | None = None
    overrides: Mapping[str, str] | None = None
    calibrate: str | None = None
    requantize: str | None = None
    merged_lora: str | None = None
    kv_cache: str | None = None
    max_seq_len: int | None = None
    rope_scaling: Mapping[str, Any] | str | None = None
    bidirectional: bool | None = None
    batch_size: int | None = None
    decoder_batch_sizes: tuple[int, ...] | None = None
    prefill_chunk_size: int | None = None
    use_inputs_embeds: bool | None = None
    use_attention_mask: bool | None = None
    attn_impl: str | None = None
    kvcache_partition_len: int | None = None
    kvcache_block_size: int | None = None
    kvcache_num_blocks: int | None = None
    memory: int | None = None
    target: str | None = None
    create_runtimes: bool | None = None
    device: str | None = None
    timeout: float | None = None
    activate_profiler: bool | None = None
    tensor_parallel_size: int | None = None
    shares: str | None = None
    quantization: InitVar[Mapping[str, Any] | None] = None

    def __post_init__(self, quantization: Mapping[str, Any] | None) -> None:
        for name, value in options_of(quantization).items():
            if getattr(self, name) not in (None, value):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but quantization says {value!r}; give it once")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "decoder_batch_sizes", batch_sizes("decoder_batch_sizes", self.decoder_batch_sizes))
        object.__setattr__(self, "rope_scaling", parse_rope_scaling(self.rope_scaling))
        self._check_each()
        if self.attn_impl == "eager" and self.kvcache_partition_len is not None:
            raise ConfigError(
                f"kvcache_partition_len is {self.kvcache_partition_len}, but attn_impl 'eager' has no partitions; "
                "leave one of them out"
            )

    def _check_each(self) -> None:
        check_choice("weights", self.weights, (*WEIGHT_KINDS, KEPT))
        check_choice("requantize", self.requantize, WEIGHT_KINDS)
        check_choice("head_weights", self.head_weights, (*WEIGHT_KINDS, KEPT))
        check_choice("group_size", self.group_size, GROUP_SIZES)
        check_choice("activations", self.activations, ACTIVATION_KINDS)
        check_choice("recipe", self.recipe, tuple(RECIPES))
        if self.overrides is not None:
            check_overrides(self.overrides)
        if self.calibrate is not None and (not isinstance(self.calibrate, str) or not self.calibrate):
            raise ConfigError(f"calibrate is {self.calibrate!r}; it must be the path of a text file")
        if self.merged_lora is not None and (not isinstance(self.merged_lora, str) or not self.merged_lora):
            raise ConfigError(f"merged_lora is {self.merged_lora!r}; it must be the folder of an adapter")
        check_choice("kv_cache", self.kv_cache, KV_CACHE_DTYPES)
        check_choice("target", self.target, target_names())
        check_choice("attn_impl", self.attn_impl, ATTN_IMPLS)
        check_choice("device", self.device, DEVICES)
        for name in (
            "max_seq_len",
            "batch_size",
            "prefill_chunk_size",
            "kvcache_num_blocks",
            "memory",
            "tensor_parallel_size",
        ):
            check_positive(name, getattr(self, name))
        check_positive("kvcache_block_size", self.kvcache_block_size, BLOCK_MULTIPLE)
        check_positive("kvcache_partition_len", self.kvcache_partition_len, PARTITION_MULTIPLE)
        for name in (
            "bidirectional",
            "use_inputs_embeds",
            "use_attention_mask",
            "create_runtimes",
            "activate_profiler",
        ):
            check_flag(name, getattr(self, name))
        check_seconds("timeout", self.timeout)
        if self.shares is not None and not (isinstance(self.shares, str) and self.tensor_parallel_size):
            raise ConfigError(f"shares is {self.shares!r}; it goes with tensor_parallel_size, as '2,1,1' with 3")

    def for_checkpoint(self, is_quantized: bool) -> QwenchConfig:
        """The same for a checkpoint that is quantised already, or isn't. Raises ConfigError for options that
        would round weights a second time without a word."""
        if not is_quantized:
            if self.requantize or self.weights == KEPT:
                name, value = ("requantize", self.requantize) if self.requantize else ("weights", KEPT)
                raise ConfigError(f"{name} is {value!r}, but the checkpoint isn't quantised; say weights int8 or int4")
            return self
        if self.requantize:
            return dataclasses.replace(self, weights=self.requantize)
        for name in ("weights", "head_weights", "recipe", "group_size", "overrides", "calibrate", "merged_lora"):
            if (value := getattr(self, name)) not in (None, KEPT):
                raise ConfigError(
                    f"{name} is {value!r}, but the checkpoint is quantised already and would be rounded a second time; "
                    "leave it out to keep the weights as they are, or say requantize too (--requantize int4)"
                )
        return dataclasses.replace(self, weights=KEPT)

    def resolve(self, spec: ModelSpec) -> QwenchConfig:
        """A copy with every default filled in for this model, except `kvcache_num_blocks` and `memory`, which are
        decided where the model is loaded, and `timeout`. Raises ConfigError for options that can't go together."""
        recipe = RECIPES.get(self.recipe or "")
        weights = self.weights or (recipe.weights if recipe else "bf16")
        head_weights = self.head_weights or (recipe.head_weights if recipe and not self.weights else None)
        overrides = {**(recipe.overrides if recipe else {}), **(self.overrides or {})}
        head_weights = head_weights or ("int8" if weights == "int4" else weights)
        target = self.target or default_target()
        activations = self._activations({weights, head_weights, *overrides.values()}, recipe, target)
        kv_cache = self.kv_cache or _default_kv_cache(weights, activations, recipe, target)
        attn_impl = self.attn_impl or "flash_attn"
        partition_len = None if attn_impl == "eager" else self.kvcache_partition_len or DEFAULT_PARTITION_LEN
        batch_size = self.batch_size or 32
        max_seq_len = self.max_seq_len or self._scaled(spec).max_position_embeddings
        is_causal = spec.is_causal and not self.bidirectional
        resolved = dataclasses.replace(
            self,
            weights=weights,
            head_weights=head_weights,
            group_size=self.group_size or (recipe.group_size if recipe else 128),
            activations=activations,
            overrides=overrides or None,
            calibrate=None if self.calibrate is None else text_identity(self.calibrate),
            merged_lora=None if self.merged_lora is None else adapter_identity(self.merged_lora),
            kv_cache=kv_cache,
            max_seq_len=max_seq_len,
            bidirectional=not is_causal,
            batch_size=batch_size,
            decoder_batch_sizes=self.decoder_batch_sizes or (batch_size,),
            prefill_chunk_size=self.prefill_chunk_size
            or (DEFAULT_CHUNK if is_causal else min(max_seq_len, DEFAULT_WHOLE_TEXT)),
            use_inputs_embeds=self.use_inputs_embeds is not False,
            use_attention_mask=self.use_attention_mask is not False,
            attn_impl=attn_impl,
            kvcache_partition_len=partition_len,
            kvcache_block_size=self.kvcache_block_size or _default_block_size(kv_cache),
            target=target,
            create_runtimes=self.create_runtimes is not False,
            device=self.device or "cpu",
            activate_profiler=self.activate_profiler is True,
        )
        resolved._check_together(spec)
        check_matches(overrides, spec)
        return resolved

    def _activations(self, formats: set[str], recipe: Recipe | None, target: str) -> str:
        """What weights of these formats are multiplied by. Raises ConfigError for a choice that is for none of them."""
        has_integers = any(not text.startswith("bf16") for text in formats)
        if self.activations is None:
            floats = "bf16" if target.startswith("cuda") else "fp32"
            return (recipe.activations if recipe else "int8") if has_integers else floats
        if self.activations in INTEGER_ACTIVATIONS and not has_integers:
            raise ConfigError(
                f"activations is {self.activations!r}, but bf16 weights are multiplied by floats; say weights int8 or "
                "int4, or activations fp32 or bf16"
            )
        if self.activations == "bf16" and "bf16" not in formats:
            raise ConfigError(
                "activations is 'bf16', but integer weights are multiplied by integers or fp32; say weights bf16, or "
                "activations int8, int16 or fp32"
            )
        return self.activations

    def _check_together(self, spec: ModelSpec) -> None:
        assert self.max_seq_len and self.batch_size and self.kvcache_block_size and self.decoder_batch_sizes
        if self.requantize and self.weights != self.requantize:
            raise ConfigError(f"weights is {self.weights!r}, but requantize says {self.requantize!r}; give it once")
        if self.calibrate is not None and self.weights == "bf16" and not self.overrides:
            raise ConfigError(
                "calibrate chooses how to round, but bf16 weights are not rounded; say weights int8 or int4"
            )
        num_blocks, block_size = self.kvcache_num_blocks, self.kvcache_block_size
        least = self.blocks_of_one_sequence(spec)
        if num_blocks is not None and num_blocks < least:
            raise ConfigError(
                f"kvcache_num_blocks is {num_blocks}: so many blocks of {block_size} positions "
                f"can't hold one sequence of max_seq_len {self.max_seq_len}; give at least "
                f"{least} blocks or a smaller max_seq_len"
            )
        if self.decoder_batch_sizes[0] > self.batch_size:
            raise ConfigError(
                f"decoder_batch_sizes has {self.decoder_batch_sizes[0]}, more than batch_size {self.batch_size}; "
                "raise batch_size or leave the larger sizes out"
            )

    @property
    def partition_len(self) -> int:
        """Positions in a partition of attention, as the kernels need it; call it on a resolved config."""
        assert self.max_seq_len, "resolve() first"
        whole = -(-self.max_seq_len // PARTITION_MULTIPLE) * PARTITION_MULTIPLE
        return min(self.kvcache_partition_len or whole, whole)

    def model(self, spec: ModelSpec) -> ModelSpec:
        """The model that a resolved config compiles of a checkpoint's. Raises ConfigError."""
        assert self.max_seq_len is not None, "resolve() first"
        spec = self._scaled(spec).for_length(self.max_seq_len)
        return spec.bidirectional() if self.bidirectional else spec

    def _scaled(self, spec: ModelSpec) -> ModelSpec:
        assert not isinstance(self.rope_scaling, str)
        return spec if self.rope_scaling is None else spec.with_rope_scaling(self.rope_scaling)

    def blocks_of_one_sequence(self, spec: ModelSpec, length: int | None = None) -> int:
        """Cache blocks that a sequence of `length`, by default max_seq_len, holds at most; call it on a resolved
        config."""
        assert self.max_seq_len and self.kvcache_block_size and self.prefill_chunk_size, "resolve() first"
        return most_blocks(
            windows_of(spec), length or self.max_seq_len, self.kvcache_block_size, self.prefill_chunk_size
        )

    def cache(self, num_blocks: int) -> CacheConfig:
        """A cache of `num_blocks` blocks; call it on a resolved config."""
        assert self.kvcache_block_size and self.kv_cache, "resolve() first"
        rounds_queries = self.activations == "bf16" and self.kv_cache == "bf16"
        return CacheConfig(num_blocks, self.kvcache_block_size, self.kv_cache, self.partition_len, rounds_queries)

    def format_of(self, weight: Weight) -> Format:
        """The format of one matrix, unless the checkpoint decides it; call it on a resolved config. Raises ConfigError
        for overrides that can't be."""
        if self.overrides and self.group_size and (given := overridden(weight, self.overrides, self.group_size)):
            return given
        if weight.name in SCORES:
            return BF16  # a row a label, whose rounding would be the answer's
        is_head = weight.name in (EMBEDDING, HEAD)
        kind = self.head_weights if is_head else self.weights
        assert kind in WEIGHT_KINDS and self.group_size, "resolve() first"
        return Format(kind, 0 if kind == "bf16" else self.group_size)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def at_load(self) -> QwenchConfig:
        """The options that are left for a model that is compiled already."""
        return QwenchConfig(**{name: getattr(self, name) for name in (*LOAD_OPTIONS, *RUNTIME_OPTIONS, "target")})

    def to_saved(self) -> dict[str, Any]:
        """As `to_dict`, without the options of a run: what an artifact keeps."""
        return {name: value for name, value in self.to_dict().items() if name not in RUNTIME_OPTIONS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QwenchConfig:
        """Raises ConfigError for keys that aren't options."""
        check_known(data, [*(f.name for f in dataclasses.fields(cls)), "quantization"])
        return cls(**data)

    @classmethod
    def merged(cls, given: QwenchConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> QwenchConfig:
        """The one precedence: keywords over `given` over defaults, where None counts as not given.

        Neither `given` nor `keywords` changes. Raises ConfigError for keys that aren't options.
        """
        base = given.to_dict() if isinstance(given, QwenchConfig) else dict(given or {})
        return cls.from_dict(base).overridden_by(cls.from_dict(keywords))

    def overridden_by(self, other: QwenchConfig) -> QwenchConfig:
        """A copy with the options that `other` gives."""
        return dataclasses.replace(self, **{name: v for name, v in other.to_dict().items() if v is not None})


def _default_kv_cache(weights: str, activations: str, recipe: Recipe | None, target: str) -> str:
    if weights == "bf16":
        return "fp32" if activations == "fp32" else "bf16"
    if recipe and recipe.kv_cache:
        return recipe.kv_cache
    return "bf16" if target.startswith("cuda") else "int16"


def _default_block_size(kv_cache: str) -> int:
    return 64 if kv_cache in ("int16", "int8") else 32
