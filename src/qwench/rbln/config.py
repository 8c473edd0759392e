"""Optimum RBLN's options under its own names and rules, each broken rule a ValueError that says what to write instead.

A config holds what it was given, None for the rest; `resolve` makes a new one, complete, for one model. `to_qwench`
says what qwench makes of it. Knows nothing of memory, files or torch; docs/rbln.md has the table of rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwench.config import ATTN_IMPLS, PARTITION_MULTIPLE, QwenchConfig
from qwench.errors import ConfigError
from qwench.option_checks import batch_sizes, check_choice, check_flag, check_known, check_positive, check_seconds
from qwench.rbln.lora import RBLNLoRAConfig

DEFAULT_PARTITION_LEN = 16384
SHORTEST_PARTITION, LONGEST_PARTITION = 4096, 32768
LONGEST_EAGER, SHORTEST_FLASH = 32768, 8192
CHUNK_MULTIPLE = 64
OF_A_RUN = ("create_runtimes", "device", "timeout", "activate_profiler")  # never kept
# Options of other pages and later versions of Optimum RBLN, and what to do about them.
ELSEWHERE = {
    "npu": "no NPU is compiled for; the machine is qwench's target, which is this one's best",
    "num_devices": "write tensor_parallel_size",
    "memory_budget": "give kvcache_num_blocks",
    "dtype": "the formats are quantization's weights and kv_caches",
    "output_hidden_states": "no option is needed: pass output_hidden_states to the model when you call it",
    "logits_to_keep": "no option is needed: pass logits_to_keep to the model when you call it",
}


@dataclass(frozen=True, init=False)
class RBLNDecoderOnlyModelForCausalLMConfig:
    """The options of Optimum RBLN's page. None: the default, which `resolve` fills in.

    What each means here, its default and its rule: docs/rbln.md. create_runtimes, device, activate_profiler and timeout
    are options of a run, never saved.
    """

    batch_size: int | None
    max_seq_len: int | None
    use_inputs_embeds: bool | None
    use_attention_mask: bool | None
    attn_impl: str | None
    kvcache_partition_len: int | None
    kvcache_block_size: int | None
    quantization: Mapping[str, Any] | None
    prefill_chunk_size: int | None
    kvcache_num_blocks: int | None
    lora_config: RBLNLoRAConfig | None
    tensor_parallel_size: int | None
    decoder_batch_sizes: tuple[int, ...] | None
    create_runtimes: bool | None
    device: str | None
    activate_profiler: bool | None
    timeout: float | None

    def __init__(
        self,
        batch_size: int | None = None,
        max_seq_len: int | None = None,
        use_inputs_embeds: bool | None = None,
        use_attention_mask: bool | None = None,
        attn_impl: str | None = None,
        kvcache_partition_len: int | None = None,
        kvcache_block_size: int | None = None,
        quantization: Mapping[str, Any] | None = None,
        prefill_chunk_size: int | None = None,
        kvcache_num_blocks: int | None = None,
        lora_config: RBLNLoRAConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """kwargs: tensor_parallel_size, decoder_batch_sizes, and the options of a run. Raises ConfigError."""
        options = {name: value for name, value in locals().items() if name not in ("self", "kwargs")} | kwargs
        for name in options:
            if name in ELSEWHERE:
                raise ConfigError(f"{name} isn't an option here: {ELSEWHERE[name]}")
        names = [field.name for field in dataclasses.fields(self)]
        check_known(options, names)
        for name in names:
            object.__setattr__(self, name, options.get(name))
        object.__setattr__(self, "decoder_batch_sizes", batch_sizes("decoder_batch_sizes", self.decoder_batch_sizes))
        object.__setattr__(self, "lora_config", RBLNLoRAConfig.of(self.lora_config))
        if self.quantization is not None:
            QwenchConfig(quantization=self.quantization)  # checks it
            object.__setattr__(self, "quantization", dict(self.quantization))
        self._check_each()
        self._check_attention()

    def _check_each(self) -> None:
        for name in ("batch_size", "max_seq_len", "kvcache_block_size", "kvcache_num_blocks", "tensor_parallel_size"):
            check_positive(name, getattr(self, name))
        check_positive("kvcache_partition_len", self.kvcache_partition_len, PARTITION_MULTIPLE)
        check_positive("prefill_chunk_size", self.prefill_chunk_size, CHUNK_MULTIPLE)
        check_choice("attn_impl", self.attn_impl, ATTN_IMPLS)
        for name in ("use_inputs_embeds", "use_attention_mask", "create_runtimes", "activate_profiler"):
            check_flag(name, getattr(self, name))
        check_seconds("timeout", self.timeout)
        if self.device not in (None, "cpu"):
            raise ConfigError(
                f"device is {self.device!r}; allowed: 'cpu'. Numbers name NPUs, and there is none here: leave it out"
            )

    def _check_attention(self) -> None:
        """The rules among attn_impl, partition length, block size and max_seq_len, as far as they are known."""
        partition_len, block_size, length = self.kvcache_partition_len, self.kvcache_block_size, self.max_seq_len
        if self.attn_impl == "eager" and partition_len is not None:
            raise ConfigError(
                f"kvcache_partition_len is {partition_len}, but attn_impl 'eager' has no partitions; leave one of "
                "them out"
            )
        if self.attn_impl == "flash_attn" or partition_len is not None:
            partition_len = partition_len or DEFAULT_PARTITION_LEN
            _check_flash(partition_len, block_size, length)
        elif length is not None:
            _check_eager(length, block_size)

    def resolve(self, model: Mapping[str, Any]) -> RBLNDecoderOnlyModelForCausalLMConfig:
        """A complete copy for a model whose config.json says `model`; kvcache_num_blocks stays None if it's to be
        estimated, timeout if there is none. Raises ConfigError."""
        length = self.max_seq_len or model.get("max_position_embeddings") or model.get("n_positions")
        if length is None:
            raise ConfigError(
                "max_seq_len can't be told: the model's config has neither max_position_embeddings nor n_positions; "
                "give rbln_max_seq_len"
            )
        is_flash = self.attn_impl == "flash_attn" or self.kvcache_partition_len is not None
        partition_len = (self.kvcache_partition_len or DEFAULT_PARTITION_LEN) if is_flash else None
        resolved = dataclasses.replace(
            self,
            batch_size=self.batch_size or 1,
            max_seq_len=length,
            use_inputs_embeds=self.use_inputs_embeds is True,
            use_attention_mask=self.use_attention_mask is not False,
            attn_impl="flash_attn" if is_flash else "eager",
            kvcache_partition_len=partition_len,
            kvcache_block_size=self.kvcache_block_size or partition_len or length,
            prefill_chunk_size=self.prefill_chunk_size or 128,
            tensor_parallel_size=self.tensor_parallel_size or 1,
            decoder_batch_sizes=self.decoder_batch_sizes or (self.batch_size or 1,),
            create_runtimes=self.create_runtimes is not False,
            device=self.device or "cpu",
            activate_profiler=self.activate_profiler is True,
        )
        resolved._check_together(model)
        return resolved

    def _check_together(self, model: Mapping[str, Any]) -> None:
        assert self.batch_size and self.decoder_batch_sizes and self.tensor_parallel_size
        if self.decoder_batch_sizes[0] > self.batch_size:
            raise ConfigError(
                f"decoder_batch_sizes has {self.decoder_batch_sizes[0]}, more than batch_size {self.batch_size}; "
                "raise batch_size or leave the larger sizes out"
            )
        if self.kvcache_num_blocks is not None and self.kvcache_num_blocks < self.num_full_blocks:
            raise ConfigError(
                f"kvcache_num_blocks is {self.kvcache_num_blocks}; a full sequence of {self.max_seq_len} tokens for "
                f"each of {self.batch_size} rows needs {self.num_full_blocks} blocks of {self.kvcache_block_size}: "
                "give that many, a smaller batch_size, or leave it out"
            )
        heads = model.get("num_attention_heads")
        if isinstance(heads, int) and self.tensor_parallel_size > heads:
            raise ConfigError(
                f"tensor_parallel_size is {self.tensor_parallel_size}, more than the model's {heads} attention heads; "
                f"give at most {heads}"
            )

    @property
    def num_full_blocks(self) -> int:
        """Blocks for a full sequence in each row; call it on a resolved config."""
        assert self.batch_size and self.max_seq_len and self.kvcache_block_size, "resolve() first"
        return self.batch_size * -(-self.max_seq_len // self.kvcache_block_size)

    def to_qwench(self) -> QwenchConfig:
        """What a resolved config makes qwench do. kvcache_block_size and kvcache_num_blocks say how many positions the
        cache has; its pages stay small, so that sequences take what they need and share what is equal."""
        return QwenchConfig(
            batch_size=self.batch_size,
            max_seq_len=self.max_seq_len,
            use_inputs_embeds=self.use_inputs_embeds,
            use_attention_mask=self.use_attention_mask,
            attn_impl=self.attn_impl,
            kvcache_partition_len=self.kvcache_partition_len,
            quantization=self.quantization,
            prefill_chunk_size=self.prefill_chunk_size,
            decoder_batch_sizes=self.decoder_batch_sizes,
            create_runtimes=self.create_runtimes,
            device=self.device,
            activate_profiler=self.activate_profiler,
            timeout=self.timeout,
            tensor_parallel_size=self.tensor_parallel_size,
        )

    @property
    def _lora_names(self) -> list[str]:
        """Those of the adapters; a compiled folder has its own copies of their files."""
        return [] if self.lora_config is None else self.lora_config.adapter_names

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_saved(self) -> dict[str, Any]:
        """As `to_dict`, without the options of a run: what rbln_config.json holds."""
        return {name: value for name, value in self.to_dict().items() if name not in OF_A_RUN}

    @classmethod
    def merged(
        cls, given: RBLNDecoderOnlyModelForCausalLMConfig | Mapping[str, Any] | None, keywords: Mapping[str, Any]
    ) -> RBLNDecoderOnlyModelForCausalLMConfig:
        """The one precedence: keywords over `given` over defaults, where None counts as not given.

        Neither `given` nor `keywords` changes. Raises ConfigError.
        """
        if given is not None and not isinstance(given, (RBLNDecoderOnlyModelForCausalLMConfig, Mapping)):
            raise ConfigError(
                f"rbln_config is a {type(given).__name__}; give an RBLNQwen2ForCausalLMConfig or a dict of its fields"
            )
        base = given.to_dict() if isinstance(given, RBLNDecoderOnlyModelForCausalLMConfig) else dict(given or {})
        return cls(**base | {k: v for k, v in keywords.items() if v is not None or k not in base})

    def check_agreement(self, compiled: RBLNDecoderOnlyModelForCausalLMConfig, where: object) -> None:
        """Every option given is the one that the folder `where` was compiled with; what that left open is open.

        quantization isn't compared here: the formats in the folder's manifest say what it must be.
        """
        kept = compiled.to_saved()
        for name, value in self.to_saved().items():
            is_open = name == "quantization" or (name == "kvcache_num_blocks" and kept[name] is None)
            is_open |= name == "lora_config" and self._lora_names == compiled._lora_names
            if value is None or value == kept[name] or is_open:
                continue
            raise ConfigError(
                f"{name} is {value!r}, but {where} was compiled with {kept[name]!r}; leave the option out, or compile "
                "the checkpoint again with it (export=True)"
            )


RBLNQwen2ForCausalLMConfig = RBLNDecoderOnlyModelForCausalLMConfig
# Of RBLNQwen2Model, for which the options mean the same.
RBLNDecoderOnlyModelConfig = RBLNQwen2ModelConfig = RBLNDecoderOnlyModelForCausalLMConfig


def _check_flash(partition_len: int, block_size: int | None, length: int | None) -> None:
    if not SHORTEST_PARTITION <= partition_len <= LONGEST_PARTITION:
        raise ConfigError(
            f"kvcache_partition_len is {partition_len}; it must be from {SHORTEST_PARTITION} to {LONGEST_PARTITION}"
        )
    if block_size not in (None, partition_len):
        raise ConfigError(
            f"kvcache_block_size is {block_size}; with flash_attn it must equal kvcache_partition_len, "
            f"{partition_len}: leave it out"
        )
    if length is None:
        return
    if length < SHORTEST_FLASH:
        raise ConfigError(
            f"max_seq_len is {length}; attn_impl 'flash_attn' needs at least {SHORTEST_FLASH}: use "
            "rbln_attn_impl='eager' without kvcache_partition_len"
        )
    if length % partition_len or length < 2 * partition_len:
        raise ConfigError(
            f"max_seq_len is {length}; it must be a multiple of kvcache_partition_len, {partition_len}, and at least "
            f"twice it: {_flash_arguments(length)}"
        )


def _check_eager(length: int, block_size: int | None) -> None:
    if length > LONGEST_EAGER:
        raise ConfigError(
            f"max_seq_len is {length}, but attn_impl 'eager' goes to {LONGEST_EAGER}: {_flash_arguments(length)}, or a "
            f"smaller rbln_max_seq_len. QwenchForCausalLM has no such limit"
        )
    if block_size is not None and block_size > length:
        raise ConfigError(
            f"kvcache_block_size is {block_size}, more than max_seq_len {length}; give at most that, or leave it out"
        )


def _flash_arguments(length: int) -> str:
    """The two arguments with which a sequence this long is allowed."""
    lengths = range(LONGEST_PARTITION, SHORTEST_PARTITION - 1, -PARTITION_MULTIPLE)
    fitting = [n for n in lengths if length % n == 0 and length >= 2 * n]
    if fitting:
        best = DEFAULT_PARTITION_LEN if DEFAULT_PARTITION_LEN in fitting else fitting[0]
        return f"pass rbln_attn_impl='flash_attn' and rbln_kvcache_partition_len={best}"
    shorter = max(length // SHORTEST_PARTITION * SHORTEST_PARTITION, SHORTEST_FLASH)
    return f"pass rbln_max_seq_len={shorter} and rbln_kvcache_partition_len={SHORTEST_PARTITION}"
