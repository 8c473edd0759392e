"""Requests as clients, gateways and other servers' users send them, each with what is to become of it.

A case is a path, what it adds to the plainest body for that path, and the fields that the answer names as ignored. In
SAME each form stands beside the plain one that it means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tool_checkpoint import NOW, WEATHER

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS, TOKENIZE = "/v1/embeddings", "/tokenize"
USER = {"role": "user", "content": "Hello"}
PLAIN: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER], "max_tokens": 2, "temperature": 0},
    COMPLETIONS: {"prompt": "Once upon a time", "max_tokens": 2, "temperature": 0},
    RESPONSES: {"input": "Hello", "max_output_tokens": 2, "temperature": 0},
    EMBEDDINGS: {"input": "a fox"},
    TOKENIZE: {"prompt": "a fox"},
    "/detokenize": {"tokens": [5, 6]},
}
ANSWERS = (CHAT, COMPLETIONS, RESPONSES)
SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"color": {"enum": ["red"]}}, "required": ["color"], "additionalProperties": False,
}  # fmt: skip
FUNCTION = WEATHER["function"]


class Case(NamedTuple):
    path: str
    fields: dict[str, Any]
    ignored: str = ""

    @property
    def body(self) -> dict[str, Any]:
        return {**PLAIN[self.path], **self.fields}


# Of no consequence, or at the value that changes nothing: taken without a word, by all three kinds of answers.
QUIET: dict[str, Any] = {
    # OpenAI
    "metadata": {"a": "b"}, "store": True, "user": "x", "service_tier": "flex", "safety_identifier": "x",
    "prompt_cache_key": "x", "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "x"},
    # vLLM and SGLang
    "request_id": "a-1", "priority": 5, "use_beam_search": False, "length_penalty": 1.0, "early_stopping": False,
    "spaces_between_special_tokens": True, "detokenize": True, "bad_words": [], "logits_processors": [],
    "return_token_ids": False, "return_tokens_as_token_ids": False, "guided_decoding_backend": "xgrammar",
    "return_hidden_states": False, "separate_reasoning": True, "stream_reasoning": True, "vllm_xargs": {},
    "include_reasoning": True, "add_special_tokens": True, "allowed_token_ids": [], "stop_regex": [],
    "no_stop_trim": False,
    # llama.cpp, Ollama, LM Studio
    "cache_prompt": True, "id_slot": 3, "n_keep": 0, "n_probs": 0, "mirostat": 0, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "typical_p": 1, "tfs_z": 1.0, "dry_multiplier": 0, "dry_base": 1.75, "xtc_probability": 0,
    "xtc_threshold": 0.1, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "top_n_sigma": -1, "repeat_last_n": -1,
    "samplers": ["top_k"], "min_keep": 0, "post_sampling_probs": False, "timings_per_token": True,
    "t_max_predict_ms": 9,
    "return_progress": True, "lora": [], "image_data": [], "images": [], "keep_alive": "5m", "n_indent": 0,
    "options": {"num_ctx": 4096, "num_gpu": 1, "main_gpu": 0, "num_thread": 4, "use_mmap": True},
    # text-generation-webui, SillyTavern, HF
    "no_repeat_ngram_size": 0, "guidance_scale": 1, "penalty_alpha": 0, "num_beams": 1, "smoothing_factor": 0,
    "epsilon_cutoff": 0, "eta_cutoff": 0, "sampler_priority": ["temperature"], "negative_prompt": "", "do_sample": True,
    "ban_eos_token": False, "add_bos_token": True, "encoder_repetition_penalty": 1, "temperature_last": False,
    # Mistral, DeepSeek, Qwen, OpenRouter, Anthropic-style proxies
    "safe_prompt": False, "enable_search": False, "transforms": [], "plugins": [],
    "cache_control": {"type": "ephemeral"},
    "anything_that_is_null": None, "grammar": "", "grammar_string": "", "json_schema": "", "logit_bias": [],
}  # fmt: skip

# Without effect here at these values: taken, and named.
NAMED: dict[str, Any] = {
    "no_such_field": 1, "reasoning_split": True, "logit_processors": ["x"], "length_penalty": 1.2,
    "use_beam_search": True, "mirostat": 2, "typical_p": 0.9, "tfs_z": 0.95, "dry_multiplier": 0.8,
    "xtc_probability": 0.5, "no_repeat_ngram_size": 3, "bad_words": ["x"], "allowed_token_ids": [5],
    "repeat_last_n": 64, "top_n_sigma": 1, "negative_prompt": "x", "safe_prompt": True, "enable_search": True,
    "search_parameters": {"mode": "auto"}, "provider": {"order": ["x"]}, "models": ["a", "b"], "route": "fallback",
    "documents": [{"text": "x"}], "draft_model": "x", "stream_chunk_size": 4, "truncation_length": 2048,
    "return_hidden_states": True, "return_token_ids": True, "post_sampling_probs": True, "lora": [{"id": 0,
    "scale": 1}],
    "preset": "x", "context_length_exceeded_behavior": "truncate", "spaces_between_special_tokens": False,
    "reasoning_format": "parsed", "kv_transfer_params": {"a": 1}, "custom_params": {"a": 1}, "rid": "a",
    "logprob_start_len": 0, "session_params": {"id": 1}, "nested": {"deep": [1, {"x": None}]}, "ünïcode": 1, "a b": 1,
}  # fmt: skip


def fields_of_all() -> Iterator[Case]:
    """One by one in chats; in the others, which read them in the same way, together."""
    for name, value in QUIET.items():
        yield Case(CHAT, {name: value})
    for name, value in NAMED.items():
        yield Case(CHAT, {name: value}, name.replace("ü", "?").replace("ï", "?").replace(" ", "?"))
    few = dict(list(NAMED.items())[:30])
    for path in (COMPLETIONS, RESPONSES):
        yield Case(path, QUIET)
        yield Case(path, few, ", ".join(few))


OF_CHATS = [
    Case(CHAT, {"verbosity": "low"}, "verbosity"), Case(CHAT, {"verbosity": "medium"}),
    Case(CHAT, {"web_search_options": {}}, "web_search_options"), Case(CHAT, {"best_of": 1}),
    Case(CHAT, {"best_of": 4}, "best_of"), Case(CHAT, {"echo": False}), Case(CHAT, {"modalities": ["text"]}),
    Case(CHAT, {"audio": {"voice": "alloy", "format": "wav"}}, "audio"), Case(CHAT, {"functions": []}),
    Case(CHAT, {"function_call": "none"}), Case(CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
    Case(CHAT, {"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning_effort"),
    Case(CHAT, {"reasoning_effort": "auto"}), Case(CHAT, {"reasoning": {"exclude": True}}),
    Case(CHAT, {"reasoning": {"max_tokens": 100}}), Case(CHAT, {"format": ""}),
    Case(CHAT, {"enable_thinking": True}, "chat_template_kwargs.enable_thinking"),
    Case(CHAT, {"thinking": {"type": "disabled"}}, "chat_template_kwargs.enable_thinking"),
    Case(CHAT, {"think": "low"}, "chat_template_kwargs.enable_thinking"),
    Case(CHAT, {"chat_template_kwargs": {"no_such": 1}}, "chat_template_kwargs.no_such"),
    Case(CHAT, {"top_logprobs": 0}), Case(CHAT, {"stream_options": {"include_usage": True}}),
    Case(CHAT, {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}),
    Case(CHAT, {"stream": True, "stream_options": {"chunks": 1}}, "stream_options.chunks"),
    Case(CHAT, {"stop": []}), Case(CHAT, {"stop": [f"word{i}" for i in range(200)]}), Case(CHAT, {"suffix": ""}),
    Case(CHAT, {"max_tokens": 10**9, "stop": "\n"}), Case(CHAT, {"parallel_tool_calls": "false"}),
    Case(CHAT, {"logprobs": 1}), Case(CHAT, {"stream": 0}), Case(CHAT, {"seed": -1}), Case(CHAT, {"tools": []}),
    Case(CHAT, {"model": "TINY"}), Case(CHAT, {"model": "tiny:latest"}), Case(CHAT, {"model": "default"}),
    Case(CHAT, {"model": ""}), Case(CHAT, {"model": " Tiny "}), Case(CHAT, {"model": None}),
]  # fmt: skip
OF_COMPLETIONS = [
    Case(COMPLETIONS, {"best_of": 1}), Case(COMPLETIONS, {"suffix": ""}), Case(COMPLETIONS, {"logprobs": True}),
    Case(COMPLETIONS, {"logprobs": False}), Case(COMPLETIONS, {"logprobs": True, "top_logprobs": 3}),
    Case(COMPLETIONS, {"n_probs": 2}), Case(COMPLETIONS, {"prompt_logprobs": 1}), Case(COMPLETIONS, {"echo": "false"}),
    Case(COMPLETIONS, {"truncate_prompt_tokens": 2}), Case(COMPLETIONS, {"stream_options": {"include_usage": True}}),
    Case(COMPLETIONS, {"verbosity": "low"}, "verbosity"), Case(COMPLETIONS, {"messages": [USER]}, "messages"),
]  # fmt: skip
OF_RESPONSES = [
    Case(RESPONSES, fields, ignored)
    for fields, ignored in (
        ({"previous_response_id": None}, ""), ({"conversation": None}, ""), ({"prompt": None}, ""), ({"n": 1}, ""),
        ({"truncation": "auto"}, ""), ({"truncation": "disabled"}, ""), ({"background": False}, ""),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning_effort"), ({"reasoning": {}}, ""),
        ({"reasoning": {"effort": None, "summary": None, "generate_summary": None}}, ""),
        ({"max_tool_calls": 5}, "max_tool_calls"), ({"include": ["reasoning.encrypted_content"]}, ""),
        ({"include": ["file_search_call.results"]}, "include[].file_search_call.results"),
        ({"text": {"verbosity": "medium"}}, ""), ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"stream_options": {"include_obfuscation": False}}, ""), ({"stop": ["\n"]}, ""), ({"top_logprobs": "2"}, ""),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"input": [{"type": "input_text", "text": "Hello"}]}, ""), ({"input": USER}, ""),
        ({"input": ["Hello"]}, ""), ({"input": [USER]}, ""),
        ({"input": [{"role": "system", "content": None}, USER]}, ""),
        ({"input": [{"type": "item_reference", "id": "rs_1"}, USER]}, "input[].item_reference"),
        ({"input": [{"type": "web_search_call", "id": "ws", "status": "completed"}, USER]}, "input[].web_search_call"),
        ({"input": [USER, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}, USER]}, ""),
        ({"input": [USER, {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Hm."}]},
                    {"type": "message", "role": "assistant", "id": "msg", "status": "completed", "content": [
                        {"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}]}, USER]}, ""),
        ({"input": [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER]}, ""),
        ({"input": [USER, {"type": "function_call", "call_id": "a", "name": "x", "arguments": {"a": 1}},
                    {"type": "function_call_output", "call_id": "a", "output": {"ok": True}}]}, ""),
        ({"input": [USER, {"type": "function_call", "call_id": "a", "name": "x", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "a", "output": None}]}, ""),
        ({"tools": [{"type": "function", "name": "x", "parameters": None, "strict": None}]}, ""),
        ({"tools": [WEATHER]}, ""), ({"tools": [{"type": "web_search"}, WEATHER]}, "tools[].web_search"),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto"}}, ""), ({"tools": [WEATHER], "tool_choice": "any"}, ""),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, ""),
        ({"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, ""),
        ({"text": {"format": {"type": "json_object", "schema": SCHEMA}}}, ""),
    )
]  # fmt: skip

CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "sunny"}


def turn(**fields: Any) -> list[dict[str, Any]]:
    """A conversation with an assistant's turn that comes back."""
    return [USER, {"role": "assistant", "content": "Hi.", **fields}, USER]


def tools(*functions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"tools": list(functions), **fields}


OF_MESSAGES = [
    Case(CHAT, {"messages": messages}, ignored)
    for messages, ignored in (
        (turn(reasoning_content="Hm."), ""), (turn(reasoning="Hm."), ""), (turn(reasoning=None), ""),
        (turn(reasoning_content=None, refusal=None, audio=None, function_call=None, tool_calls=None), ""),
        (turn(tool_calls=[]), ""), (turn(annotations=[{"type": "url_citation"}]), ""), (turn(id="x", created=1), ""),
        (turn(provider_specific_fields={"a": 1}), ""), (turn(prefix=False), ""), (turn(partial=False), ""),
        (turn(cache_control={"type": "ephemeral"}), ""), (turn(model="x", usage={}, finish_reason="stop"), ""),
        (turn(thinking_blocks=[{"type": "thinking", "thinking": "Hm.", "signature": "x"}]), ""),
        (turn(reasoning_details=[{"type": "reasoning.text", "text": "Hm."}]), ""), (turn(content=""), ""),
        (turn(admin=True), "messages[].admin"), (turn(audio={"id": "x"}), "messages[].audio"), (turn(content=None), ""),
        ([USER, {"role": "assistant"}, USER], ""), ([{**USER, "name": "Ann"}], ""), ([{**USER, "images": []}], ""),
        ([{"role": "system", "content": None}, USER], ""), ([{"role": "developer"}, USER], ""),
        ([{**USER, "tool_call_id": "a"}], "messages[].tool_call_id"), ([USER, USER], ""), ([{**USER, "id": 5}], ""),
        ([{"role": "user", "content": ["a", "b"]}], ""), ([{"role": "user", "content": []}], ""),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], ""),
        ([{"role": "user", "content": [{"text": "a"}]}], ""),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], ""),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}], ""),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "color": 1}]}], "content[].color"),
        (turn(content=[{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Hi."}]),
        ""),
        (turn(content=[{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "Hi."}]), ""),
        (turn(content=[{"type": "refusal", "refusal": "No."}]), ""),
        (turn(content=[{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": None}]), ""),
        ([USER, CALLED, RESULT], ""), ([USER, {**CALLED, "content": ""}, RESULT], ""),
        ([USER, CALLED, {**RESULT, "content": None}], ""), ([USER, CALLED, {"role": "tool", "content": "x"}], ""),
        ([USER, CALLED, {**RESULT, "tool_call_id": ""}], ""), ([USER, CALLED, {**RESULT, "name": "weather"}], ""),
        ([USER, CALLED, {**RESULT, "content": {"degrees": 21}}], ""), ([USER, CALLED, {**RESULT, "content": 21}], ""),
        ([USER, CALLED, {**RESULT, "content": [{"degrees": 21}]}], ""), ([USER, CALLED, {**RESULT, "content": []}], ""),
        ([USER, CALLED, {**RESULT, "content": ["a"]}], ""), ([USER, CALLED, {**RESULT, "is_error": True}],
                                                             "messages[].is_error"),
        ([USER, {"role": "assistant", "function_call": {"name": "x", "arguments": "{}"}},
          {"role": "function", "name": "x", "content": "1"}], ""),
        *(
            ([USER, {**CALLED, "tool_calls": [{**CALL, **call}]}, RESULT], "")
            for call in (
                {"id": None}, {"id": ""}, {"type": None}, {"index": 0}, {"type": "function", "cache_control": {}},
                {"function": {"name": "x", "arguments": {"city": "Paris"}}}, {"function": {"name": "x"}},
                {"function": {"name": "x", "arguments": None}}, {"extra_content": {"google": {}}},
                {"function": {"name": "x", "arguments": ""}}, {"provider_specific_fields": {"thought_signature": "x"}},
            )
        ),
    )
]  # fmt: skip

OF_TOOLS = [
    Case(CHAT, fields, ignored)
    for fields, ignored in (
        *(
            (tools({"type": "function", "function": {**FUNCTION, "name": name}}), "")
            for name in ("a.b", "server/tool", "x" * 80, "x" * 128, "a:b", "@scope/x", "mcp__fs__read", "1",
            "a-b_c.d/e")
        ),
        (tools({"function": FUNCTION}), ""), (tools(FUNCTION), ""), (tools({"type": "function", **FUNCTION}), ""),
        (tools({"type": None, "function": FUNCTION}), ""),
        (tools({**WEATHER, "cache_control": {"type": "ephemeral"}}), ""),
        (tools({"name": "x", "description": "y", "input_schema": {"type": "object", "properties": {}}}), ""),
        (tools({"type": "custom", "name": "x", "input_schema": {"type": "object"}}), ""),
        (tools({"name": "x", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}, "title": "X"}),
        ""),
        (tools({"type": "function", "function": {"name": "x", "parameters": {}}}), ""),
        (tools({"type": "function", "function": {"name": "x", "parameters": {
            "type": "object", "properties": None, "required": None}}}, tool_choice="required"), ""),
        (tools({"type": "function", "function": {"name": "x", "parameters": None, "strict": None}}), ""),
        (tools({"type": "function", "function": {"name": "x", "parameters": {"properties": {}}}}), ""),
        (tools({"type": "function", "function": {"name": "x", "color": 1}}), "tools[].color"),
        (tools({"type": "web_search_preview"}, WEATHER), "tools[].web_search_preview"), (tools(WEATHER, NOW), ""),
        *(
            (tools(WEATHER, tool_choice=choice, max_tokens=60), "")
            for choice in (
                "auto", "none", "any", "required", {"type": "auto"}, {"type": "any"}, {"type": "none"}, None,
                {"type": "tool", "name": "weather"}, {"type": "function", "name": "weather"}, {"name": "weather"},
                {"function": {"name": "weather"}}, {"type": "required"},
                {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            )
        ),
        (tools(WEATHER, tool_choice={"type": "auto", "disable_parallel_tool_use": False}), ""),
        (tools(WEATHER, tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
         "tool_choice.disable_parallel_tool_use"),
    )
]  # fmt: skip

OF_FORMATS = [
    Case(CHAT, {"max_tokens": 40, **fields}, ignored)
    for fields, ignored in (
        ({"response_format": {"type": "text"}}, ""), ({"response_format": {"type": "json_object"}}, ""),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, ""), ({"response_format": "json_object"}, ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": None}}}, ""),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, ""), ({"response_format": SCHEMA}, ""),
        ({"response_format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}, ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "hint": 1}}},
         "format.hint"),
        ({"response_format": {"type": "json", "value": SCHEMA}}, ""), ({"format": "json"}, ""),
        ({"format": SCHEMA}, ""),
        ({"guided_json": SCHEMA}, ""), ({"guided_regex": "[a-c]{2}"}, ""), ({"guided_choice": ["yes", "no"]}, ""),
        ({"guided_grammar": 'start: "a"'}, ""), ({"json_schema": SCHEMA}, ""), ({"regex": "[ab]"}, ""),
        ({"structured_outputs": {"choice": ["a"], "whitespace_pattern": "x", "disable_fallback": True}}, ""),
        ({"structured_outputs": {"choice": ["a"], "color": 1}}, "format.color"), ({"guided_json_object": True}, ""),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": "x", "guided_decoding_backend": "outlines"}, ""),
    )
]  # fmt: skip

OF_EMBEDDINGS = [
    Case(EMBEDDINGS, fields, ignored)
    for fields, ignored in (
        ({"dimensions": 16}, ""), ({"dimensions": "16"}, ""), ({"input": ""}, ""), ({"input": ["", "a"]}, ""),
        ({"input": "fox " * 3000, "truncate_prompt_tokens": -1}, ""), ({"input": "fox " * 30, "truncate": True}, ""),
        ({"truncate_prompt_tokens": 1}, ""), ({"truncate": "NONE"}, ""), ({"truncate": False}, ""),
        ({"input": "fox " * 3000, "truncate": "END"}, ""), ({"encoding_format": None}, ""), ({"user": "x"}, ""),
        ({"model": "Tiny"}, ""),
        ({"input_type": "query"}, "input_type"), ({"task": "retrieval"}, "task"), ({"add_special_tokens": True}, ""),
        ({"priority": 0}, ""), ({"keep_alive": -1}, ""), ({"options": {"num_ctx": 9}}, ""), ({"normalize": "true"}, ""),
        ({"embed_dtype": "float32"}, ""), ({"embed_dtype": "int8"}, "embed_dtype"), ({"pooling": None}, ""),
        ({"no_such_field": 1}, "no_such_field"), ({"input": None, "content": "a"}, ""),
    )
]  # fmt: skip
OF_TOKENS = [
    Case(TOKENIZE, {"add_special_tokens": False}), Case(TOKENIZE, {"no_such": 1}, "no_such"),
    Case(TOKENIZE, {"prompt": None, "content": "a fox"}), Case(TOKENIZE, {"with_pieces": True}),
    Case(TOKENIZE, {"add_special": True, "parse_special": True}), Case("/detokenize", {"no_such": 1}, "no_such"),
    Case(TOKENIZE, {"prompt": None, "messages": [USER], "add_generation_prompt": False}),
    Case(TOKENIZE, {"prompt": None, "messages": [USER, {"role": "assistant", "content": "I"}],
                    "continue_final_message": True}),
]  # fmt: skip

TAKEN = [
    *fields_of_all(), *OF_CHATS, *OF_COMPLETIONS, *OF_RESPONSES, *OF_MESSAGES, *OF_TOOLS, *OF_FORMATS, *OF_EMBEDDINGS,
    *OF_TOKENS,
]  # fmt: skip

# --- what a form means ---------------------------------------------------------------------------------------------

WRITTEN = {"max_tokens": 24, "temperature": 0}  # long enough to tell answers apart
SAME: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        (path, {**WRITTEN, "temperature": 1, "seed": 7, **loose}, {**WRITTEN, "temperature": 1, "seed": 7, **plain})
        for path in (CHAT, COMPLETIONS)
        for loose, plain in (
            ({"temperature": "0.7"}, {"temperature": 0.7}), ({"max_tokens": 8.0}, {"max_tokens": 8}),
            ({"max_tokens": "8"}, {"max_tokens": 8}), ({"seed": 1.0}, {"seed": 1}), ({"seed": "1"}, {"seed": 1}),
            ({"top_p": 0}, {"top_k": 1}), ({"top_k": 5.0}, {"top_k": 5}), ({"top_k": "5"}, {"top_k": 5}),
            ({"n": 2.0}, {"n": 2}), ({"n": "2"}, {"n": 2}), ({"stop": ""}, {}),
            ({"stop": ["", " a"]}, {"stop": [" a"]}),
            ({"top_p": "0.5"}, {"top_p": 0.5}), ({"min_p": "0.1"}, {"min_p": 0.1}),
            ({"min_tokens": 8.0}, {"min_tokens": 8}),
            ({"presence_penalty": "1"}, {"presence_penalty": 1}),
            ({"frequency_penalty": "1"}, {"frequency_penalty": 1}),
            ({"logit_bias": {"300": "5"}}, {"logit_bias": {"300": 5}}),
            ({"logit_bias": [[300, 5], [301, False]]}, {"logit_bias": {"300": 5, "301": -100}}),
            ({"repeat_penalty": 1.3}, {"repetition_penalty": 1.3}), ({"rep_pen": 1.3}, {"repetition_penalty": 1.3}),
            ({"seed": None, "random_seed": 3}, {"seed": 3}), ({"seed": None, "sampling_seed": 3}, {"seed": 3}),
            ({"stop_sequences": [" a"]}, {"stop": [" a"]}), ({"stopping_strings": [" a"]}, {"stop": [" a"]}),
            ({"stop": [" a"], "no_stop_trim": True}, {"stop": [" a"], "include_stop_str_in_output": True}),
            ({"do_sample": False, "temperature": None}, {"temperature": 0}),
            ({"ban_eos_token": 1}, {"ignore_eos": True}),
            ({"max_tokens": None, "n_predict": 9}, {"max_tokens": 9}),
            ({"max_tokens": None, "num_predict": 9}, {"max_tokens": 9}),
            ({"max_tokens": None, "max_completion_tokens": 9}, {"max_tokens": 9}),
            ({"max_tokens": None, "max_new_tokens": 9}, {"max_tokens": 9}),
            ({"max_tokens": 9, "n_predict": 12}, {"max_tokens": 9}),
            ({"max_tokens": None, "options": {"num_predict": 9, "top_k": 3, "stop": [" a"]}},
             {"max_tokens": 9, "top_k": 3, "stop": [" a"]}),
            ({"max_tokens": 9, "options": {"num_predict": 12}}, {"max_tokens": 9}),
            ({"extra_body": {"top_k": 3}}, {"top_k": 3}), ({"stream": "false"}, {}), ({"ignore_eos": "true"},
                                                                                    {"ignore_eos": True}),
            ({"guided_choice": ["yes", "no"]}, {"structured_outputs": {"choice": ["yes", "no"]}}),
            ({"guided_regex": "[a-d]{9}"}, {"structured_outputs": {"regex": "[a-d]{9}"}}),
            ({"guided_json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
            ({"grammar": 'root ::= "x" word\nword ::= [a-d]+ "."'}, {"structured_outputs": {"regex": "x[a-d]+[.]"}}),
            ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, {"structured_outputs": {"json": SCHEMA}}),
            ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"structured_outputs": {"json": SCHEMA}}),
            ({"format": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
            ({"format": "json"}, {"structured_outputs": {"json_object": True}}),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
             {"structured_outputs": {"json_object": True}}),
            ({"truncate_prompt_tokens": -1}, {}), ({"truncate_prompt_tokens": 10**6}, {}),
        )
    ),
    (COMPLETIONS, {"logprobs": True}, {"logprobs": 0}), (COMPLETIONS, {"n_probs": 2}, {"logprobs": 2}),
    (COMPLETIONS, {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
    (COMPLETIONS, {"logprobs": "2"}, {"logprobs": 2}),
    (COMPLETIONS, {"logprobs": False}, {}), (COMPLETIONS, {"echo": 1}, {"echo": True}),
    (CHAT, {"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    *(
        (path, {"response_format": {"type": "regex", name: "[a-d]{9}"}}, {"structured_outputs": {"regex": "[a-d]{9}"}})
        for path in (CHAT, COMPLETIONS)
        for name in ("regex", "pattern", "value")
    ),
    (CHAT, {"response_format": {"type": "grammar", "grammar": 'root ::= "x"'}}, {"structured_outputs": {"regex": "x"}}),
    *(
        (EMBEDDINGS, {"input": list(range(5, 25)), **loose}, {"input": plain})
        for loose, plain in (
            ({"truncate_prompt_tokens": 4}, [21, 22, 23, 24]), ({"truncate_prompt_tokens": 40}, list(range(5, 25))),
            ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, [5, 6, 7, 8]),
        )
    ),
    (EMBEDDINGS, {"input": [5] * 2047 + [6] * 9, "truncate": True}, {"input": [5] * 2047 + [6]}),
    (EMBEDDINGS, {"input": [5] * 2047 + [6] * 9, "truncate": "START"}, {"input": [5] * 2039 + [6] * 9}),
    (CHAT, {"logprobs": "true", "top_logprobs": "2"}, {"logprobs": True, "top_logprobs": 2}),
    (RESPONSES, {"max_output_tokens": None, "max_tokens": 5}, {"max_output_tokens": 5}),
    (RESPONSES, {"max_output_tokens": -1, "stop": " "}, {"max_output_tokens": None, "stop": [" "]}),
    (RESPONSES, {"max_output_tokens": "5"}, {"max_output_tokens": 5}),
    (RESPONSES, {"input": [USER]}, {"input": "Hello"}),
    (RESPONSES, {"input": USER}, {"input": "Hello"}), (RESPONSES, {"input": ["Hello"]}, {"input": "Hello"}),
    *(
        (CHAT, {**WRITTEN, "messages": loose}, {**WRITTEN, "messages": plain})
        for loose, plain in (
            ([{"role": "system", "content": None}, USER], [USER]),
            ([{"role": "user", "content": ["Hel", {"type": "input_text", "text": "lo"}]}], [USER]),
            ([{"role": "user", "content": {"type": "text", "text": "Hello"}}], [USER]),
            (turn(content=[{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hi."}]), turn()),
            (turn(content=[{"type": "refusal", "refusal": "No."}]), turn(content="No.")),
            (turn(content=None), turn(content="")), (turn(content=None, refusal="No."), turn(content="No.")),
            ([USER, CALLED, {**RESULT, "content": {"a": [1, "é"]}}],
             [USER, CALLED, {**RESULT, "content": '{"a": [1, "é"]}'}]),
            ([USER, CALLED, {**RESULT, "content": ["a", "b"]}], [USER, CALLED, {**RESULT, "content": '["a", "b"]'}]),
            ([USER, CALLED, {**RESULT, "content": None}], [USER, CALLED, {**RESULT, "content": ""}]),
            ([USER, CALLED, {"role": "tool", "content": "sunny"}], [USER, CALLED, RESULT]),
            ([USER, {**CALLED, "tool_calls": [{**CALL, "function": {"name": "weather",
            "arguments": {"city": "Paris"}}}]},
              RESULT], [USER, CALLED, RESULT]),
            ([USER, {"role": "assistant", "function_call": CALL["function"]},
              {"role": "function", "name": "weather", "content": "sunny"}],
             [USER, CALLED, {**RESULT, "name": "weather"}]),
        )
    ),
    *(
        (CHAT, tools(loose, max_tokens=1), tools(plain, max_tokens=1))
        for loose, plain in (
            (FUNCTION, WEATHER), ({"type": "function", **FUNCTION}, WEATHER), ({"function": FUNCTION}, WEATHER),
            ({"name": "weather", "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]},
            WEATHER),
        )
    ),
    (CHAT, tools({"type": "web_search"}, WEATHER), tools(WEATHER)),
    (RESPONSES, tools(WEATHER), tools({"type": "function", **FUNCTION})),
]  # fmt: skip

# --- what stays impossible -----------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(
        (path, {name: value})
        for path in ANSWERS
        for name, values in {
            "temperature": ["hot", True, -1, 2.5, [], {}], "top_p": [-0.1, 1.5, "x", False], "top_k": [-2, 1.5, "x"],
            "min_p": [2, "x"], "seed": [0.5, "x", 2**64], "presence_penalty": [3], "frequency_penalty": ["x"],
            "repetition_penalty": [0, "x"], "min_tokens": [-1, 1.5], "stop": [5, [5], "x" * 257, ["ab"] * 257,
                                                                           ["x" * 250] * 17],
            "logit_bias": [{"x": 1}, [[1, 2, 3]], ["x"], {"1": "x"}], "ignore_eos": ["perhaps", 2],
            "stop_token_ids": [["x"], 5], "truncate_prompt_tokens": [-2, 0, "x"],
            "structured_outputs": [{}, {"regex": "("}, {"json": "{"}, 5],
            "grammar": ["root ::= (", "root ::= " + "(" * 5000, 'x ::= "a"', "root ::= missing", "no grammar"],
            "guided_regex": ["("], "guided_choice": [[]],
            "options": [{"top_k": "x"}], "model": [5, "another", "tiny:other"], "stream": ["yes please"],
        }.items()
        for value in values
    ),
    *(
        (CHAT, fields)
        for fields in (
            {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": [{"role": "user"}]}, {"messages": []},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            {"messages": [{"role": "user", "content": 5}]}, {"messages": [{"role": "user", "content": [5]}]},
            {"messages": [USER, CALLED, {**RESULT, "content": [{"type": "image", "data": "x"}]}]},
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "a"}]}, USER]},
            {"messages": [{**USER, "tool_calls": [CALL]}]}, {"messages": [USER], "max_tokens": 0},
            {"max_tokens": -2}, {"max_tokens": 1.5}, {"max_tokens": "many"}, {"n": 0}, {"n": "x"}, {"n": True},
            {"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 3}, {"prompt_logprobs": 2, "stream": True},
            {"functions": [{"name": "x"}]}, {"function_call": "auto"}, {"chat_template": "{{ 1 }}"},
            {"chat_template_kwargs": {"chat_template": "x"}}, {"chat_template_kwargs": {"messages": "x"}},
            {"chat_template_kwargs": {"enable_thinking": "perhaps"}}, {"enable_thinking": []},
            {"reasoning_effort": "tremendous"}, {"reasoning": {"effort": 5}}, {"modalities": ["audio"]},
            {"response_format": {"type": "regex"}}, {"response_format": {"type": "regex", "pattern": "("}},
            {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}}, {"format": "xml"},
            {"continue_final_message": True, "add_generation_prompt": True}, tools({"type": "web_search"}),
            tools({"name": "a b"}), tools({"name": ""}), tools({"name": "x" * 129}), tools({}), tools(None),
            tools(WEATHER, FUNCTION), tools(WEATHER, tool_choice="sometimes"), tools(WEATHER,
            tool_choice={"type": "x"}),
            tools(WEATHER, tool_choice={"name": "other"}), {"tool_choice": "required"}, {"tools": "weather"},
            {f"field{i}": i for i in range(300)}, {"options": {f"field{i}": i for i in range(300)}},
            {"options": 5}, {"extra_body": "top_k"},
        )
    ),
    *(
        (RESPONSES, fields)
        for fields in (
            {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}, {"n": 2},
            {"prompt": {"id": "x"}}, {"truncation": "always"}, {"input": []}, {"input": [{"type": "mystery"}]},
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            {"input": [{"type": "item_reference", "id": "x"}]}, {"max_output_tokens": 0},
        )
    ),
    *(
        (COMPLETIONS, fields)
        for fields in (
            {"prompt": ""}, {"prompt": None}, {"best_of": 0}, {"prompt_embeds": "x", "prompt": None}, {"logprobs": 21},
            {"prompt_logprobs": 2, "stream": True}, {"prompt": [True]}, {"prompt": ["a", 1]}, {"max_tokens": 0},
        )
    ),
    (EMBEDDINGS, {"dimensions": 0}), (EMBEDDINGS, {"dimensions": 100_000}), (EMBEDDINGS, {"input": "fox " * 3000}),
    (EMBEDDINGS, {"input": []}), (EMBEDDINGS, {"input": None}), (TOKENIZE, {"prompt": None}),
]  # fmt: skip
