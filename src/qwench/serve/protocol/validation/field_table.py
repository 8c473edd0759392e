"""What becomes of the fields that requests have beside those of their classes: one table.

reading.py goes by it, and docs/serving.md prints it. A field that is in no class and not here has no effect and is
named as ignored, as is one of a Neutral row at another value. null is the same as nothing everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwench.serve.protocol.validation import other_forms


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Renamed:
    """Another name of the field `to`, whose own value goes first. convert: to a value of that field, None to leave it
    out."""

    to: str
    convert: Callable[[Any], Any] = _same


@dataclass(frozen=True)
class Neutral:
    """Taken where it says what is so anyway."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values)


class Nothing:
    """Taken at any value: it can't change an answer."""


class Unpacked:
    """An object whose fields count as the request's own, which go first."""


@dataclass(frozen=True)
class Refused:
    """An answer without it would be another one than what was asked for. but: values that ask for nothing."""

    why: str
    but: Neutral = Neutral(())


Rule = Renamed | Neutral | Nothing | Unpacked | Refused


class Row(NamedTuple):
    """place: where the fields stand; each class of bodies says which places are its own. names: separated by blanks."""

    place: str
    names: str
    rule: Rule


NOTHING = Nothing()
OFF, ON, EMPTY = Neutral((False,)), Neutral((True,)), Neutral(([], {}, ""))

TABLE: tuple[Row, ...] = (
    # Other names
    Row("chat", "n_predict num_predict max_new_tokens max_output_tokens", Renamed("max_tokens")),
    Row("completions", "max_completion_tokens n_predict num_predict max_new_tokens max_output_tokens",
        Renamed("max_tokens")),
    Row("responses", "max_tokens max_completion_tokens max_new_tokens", Renamed("max_output_tokens")),
    Row("answers", "random_seed sampling_seed", Renamed("seed")),
    Row("answers", "repeat_penalty rep_pen", Renamed("repetition_penalty")),
    Row("answers", "stop_sequences stopping_strings stop_strings", Renamed("stop")),
    Row("answers", "min_new_tokens min_completion_tokens", Renamed("min_tokens")),
    Row("answers", "ban_eos_token", Renamed("ignore_eos")),
    Row("answers", "thinking_budget thinking_token_budget thinking_budget_tokens reasoning_budget",
        Renamed("max_thinking_tokens")),
    Row("answers", "no_stop_trim", Renamed("include_stop_str_in_output")),
    Row("answers", "do_sample", Renamed("temperature", other_forms.temperature_of_sampling)),
    Row("answers", "guided_json json_schema", Renamed("structured_outputs.json", other_forms.unless_empty)),
    Row("answers", "guided_regex regex", Renamed("structured_outputs.regex", other_forms.unless_empty)),
    Row("answers", "guided_choice", Renamed("structured_outputs.choice")),
    Row("answers", "guided_grammar grammar grammar_string ebnf",
        Renamed("structured_outputs.grammar", other_forms.unless_empty)),
    Row("answers", "guided_json_object", Renamed("structured_outputs.json_object")),
    Row("completions", "n_probs", Renamed("logprobs", other_forms.positive)),
    Row("conversation", "enable_thinking think thinking",
        Renamed("chat_template_kwargs.enable_thinking", other_forms.is_thinking)),
    Row("conversation", "add_generation_prompt", Renamed("chat_template_kwargs.add_generation_prompt")),
    Row("chat", "format", Renamed("response_format", other_forms.unless_empty)),
    Row("completions", "format", Renamed("response_format", other_forms.unless_empty)),
    Row("embeddings", "prompt content texts inputs", Renamed("input")),
    Row("embeddings", "output_dimension output_dimensionality", Renamed("dimensions")),
    Row("messages", "max_completion_tokens max_output_tokens max_tokens_to_sample max_new_tokens",
        Renamed("max_tokens")),
    Row("messages", "stop stopping_strings stop_strings", Renamed("stop_sequences")),
    Row("messages", "output_format", Renamed("output_config.format")),
    Row("messages", "reasoning_effort effort", Renamed("output_config.effort")),
    Row("ollama", "max_tokens max_completion_tokens n_predict max_new_tokens max_output_tokens",
        Renamed("num_predict")),
    Row("ollama", "thinking enable_thinking", Renamed("think", other_forms.is_thinking)),
    Row("ollama model", "name", Renamed("model")),
    Row("ollama embed", "prompt", Renamed("input")),
    Row("request", "ttl", Renamed("keep_alive")),
    Row("tokens", "content text", Renamed("prompt")),
    Row("tokens", "add_special", Renamed("add_special_tokens")),
    Row("tokens", "with_pieces", Renamed("return_token_strs")),
    Row("message", "reasoning reasoning_text thinking thinking_blocks reasoning_details",
        Renamed("reasoning_content", other_forms.thoughts_of)),
    Row("message", "partial", Renamed("prefix")),
    Row("message", "tool_name", Renamed("name")),
    Row("function", "input_schema inputSchema parametersJsonSchema", Renamed("parameters")),
    Row("messages tool", "parameters inputSchema parametersJsonSchema", Renamed("input_schema")),
    Row("answers", "options extra_body", Unpacked()),
    # Of no consequence
    Row("request", "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
        "request_id priority cache_control tags", NOTHING),
    Row("answers", "prediction stream_interval cache_prompt id_slot slot_id n_keep num_keep n_cache_reuse n_ctx "
        "num_ctx num_batch num_gpu main_gpu num_thread use_mmap use_mlock low_vram numa timings_per_token "
        "return_progress t_max_predict_ms guided_decoding_backend guided_whitespace_pattern", NOTHING),
    Row("answers", "mirostat_tau mirostat_eta dry_base dry_allowed_length dry_penalty_last_n dry_range "
        "dry_sequence_breakers xtc_threshold dynatemp_low dynatemp_high dynatemp_exponent smoothing_curve min_keep "
        "samplers sampler_order sampler_priority sampler_seed", NOTHING),
    Row("chat", "return_citations citation_options", NOTHING),
    Row("responses", "include_obfuscation", NOTHING),
    Row("message", "id created created_at timestamp date model index phase status finish_reason stop_reason usage "
        "weight metadata annotations citations provider_specific_fields cache_control extra_content "
        "reasoning_signature reasoning_id logprobs", NOTHING),
    Row("part", "id cache_control annotations logprobs citations signature provider_specific_fields extra_content",
        NOTHING),
    Row("call", "cache_control provider_specific_fields extra_content thought_signature thoughtSignature caller index "
        "toolset_name", NOTHING),
    Row("tool", "cache_control", NOTHING),
    Row("function", "cache_control title annotations icons outputSchema output_schema _meta returns response "
        "input_examples eager_input_streaming defer_loading allowed_callers", NOTHING),
    Row("messages", "context_management anthropic_version anthropic_beta betas inference_geo speed diagnostics "
        "user_profile_id workspace_id", NOTHING),
    Row("turn", "type stop_sequence stop_details container context_management tool_name partial reasoning "
        "reasoning_text thinking thinking_blocks reasoning_details", NOTHING),
    Row("ollama", "f16_kv logits_all vocab_only embedding_only shift width height steps", NOTHING),
    Row("ollama model", "verbose insecure system template options", NOTHING),
    Row("ollama embed", "options", NOTHING),
    Row("item", "cache_control created_by created_at provider_specific_fields acknowledged_safety_checks namespace",
        NOTHING),
    Row("reasoning", "summary generate_summary exclude", NOTHING),
    Row("stream_options", "include_obfuscation", NOTHING),
    Row("format", "description strict disable_any_whitespace disable_additional_properties disable_fallback "
        "whitespace_pattern backend", NOTHING),
    # Neutral at a value
    Row("answers", "use_beam_search early_stopping post_sampling_probs return_tokens return_token_ids "
        "return_tokens_as_token_ids return_hidden_states return_meta_info return_full_text details watermark "
        "safe_prompt enable_search deferred raw raw_output perf_metrics_in_response temperature_last "
        "dynamic_temperature deterministic penalize_nl background", OFF),
    Row("answers", "detokenize spaces_between_special_tokens parse_tool_calls separate_reasoning stream_reasoning "
        "include_reasoning add_bos_token add_special_tokens", ON),
    Row("answers", "length_penalty typical_p typical typ_p tfs tfs_z guidance_scale cfg_scale num_beams beam_width "
        "encoder_repetition_penalty", Neutral((1,))),
    Row("answers", "mirostat mirostat_mode dry_multiplier xtc_probability top_a dynatemp_range smoothing_factor "
        "no_repeat_ngram_size epsilon_cutoff eta_cutoff penalty_alpha diversity_penalty n_indent skew "
        "num_beam_groups", Neutral((0,))),
    Row("answers", "top_n_sigma nsigma", Neutral((0, -1))),
    Row("answers", "repeat_last_n penalty_last_n repetition_penalty_range rep_pen_range", Neutral((-1,))),
    Row("answers", "bad_words bad_words_ids banned_tokens banned_strings allowed_token_ids logits_processors "
        "logit_processors stop_regex lora documents plugins transforms negative_prompt "
        "custom_token_bans vllm_xargs kv_transfer_params", EMPTY),
    Row("conversation", "n_probs", Neutral((0,))),
    Row("chat", "echo", OFF),
    Row("chat", "best_of", Neutral((1,))),
    Row("chat", "verbosity", Neutral(("medium",))),
    Row("chat", "suffix prompt", EMPTY),
    Row("responses", "best_of", Neutral((1,))),
    Row("responses", "logprobs", OFF),
    Row("verbosity", "verbosity", Neutral(("medium",))),
    Row("messages", "mcp_servers container", EMPTY),
    Row("ollama", "penalize_newline", OFF),
    Row("embeddings", "add_special_tokens", ON),
    Row("embeddings", "embed_dtype", Neutral(("float32",))),
    Row("embeddings", "endianness", Neutral(("native", "little"))),
    Row("embeddings", "embd_normalize", Neutral((2,))),
    Row("embeddings", "input_type task instruction", EMPTY),
    Row("embeddings", "options", NOTHING),
    Row("tokens", "parse_special", ON),
    Row("message", "attachments files", EMPTY),
    # Refused
    Row("answers", "images image_data", Refused("only text is read here", EMPTY)),
    Row("message", "images", Refused("only text is read here", EMPTY)),
    Row("chat", "functions", Refused("OpenAI deprecates it; give tools", EMPTY)),
    Row("chat", "function_call", Refused("OpenAI deprecates it; give tool_choice", Neutral(("none",)))),
    Row("conversation", "chat_template", Refused("a request can't bring a chat template; the model has its own")),
    Row("responses", "previous_response_id conversation", Refused("nothing is stored; send the whole conversation")),
    Row("responses", "prompt", Refused("nothing is stored, prompts neither; send instructions and input")),
    Row("ollama", "template", Refused("a request can't bring a chat template; the model has its own", EMPTY)),
    Row("completions", "prompt_embeds", Refused("prompts are texts or tokens")),
)  # fmt: skip


def rules_of(places: tuple[str, ...]) -> dict[str, Rule]:
    """The rules for objects that stand in these places; of two for a name, the later row's."""
    return {name: row.rule for row in TABLE if row.place in places for name in row.names.split()}
