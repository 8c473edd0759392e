"""Other ways to write the value of a field than the one that its class reads, each as a function from JSON to JSON.

What none of them knows stays as it is, for the class to refuse. Called by the classes and by field_table.py.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

from qwench.serve.models.keep_alive import keep_alive_s

MAX_TOKENS = 1 << 31
TINY = 1e-9  # a probability that the likeliest token alone reaches


def no_flag(value: Any) -> Any:
    """A number, which true and false are not, whatever Python says."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number is wanted, not {value}", {"value": str(value).lower()})
    return value


def without_limit(value: Any) -> Any:
    """-1: as many tokens as the context has room for, where leaving it out is fewer."""
    return MAX_TOKENS - 1 if no_flag(value) in (-1, "-1") else value


def unless_minus_one(value: Any) -> Any:
    """-1: none, as llama.cpp and vLLM have it: a random seed, no limit."""
    return None if no_flag(value) in (-1, "-1") else value


def unless_empty(value: Any) -> Any:
    """An empty text is none: forms send it."""
    return None if value == "" else value


def seconds_of_keep_alive(value: Any) -> Any:
    """A number of seconds, or a duration as Ollama has it; infinite for ever."""
    try:
        return None if value is None else keep_alive_s(value)
    except ValueError as error:
        raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from None


def at_least_tiny(value: Any) -> Any:
    """0 as top_p: the likeliest token alone."""
    return TINY if no_flag(value) in (0, "0") else value


def without_empty(stop: Any) -> Any:
    """Stop strings; an empty one stops nothing."""
    if isinstance(stop, list):
        return [text for text in stop if text != ""]
    return None if stop == "" else stop


def bias_of_pairs(value: Any) -> Any:
    """llama.cpp's pairs of a token and a number, false for "never", as an object."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int for pair in value):
        raise PydanticCustomError("pairs", "it must map token ids to numbers")
    return {str(token): -100 if bias is False else bias for token, bias in value}


def temperature_of_sampling(do_sample: Any) -> Any:
    """0 for false."""
    return 0 if do_sample is False else None


def positive(value: Any) -> Any:
    """Unless it is 0."""
    return None if value == 0 else value


def is_thinking(value: Any) -> Any:
    """`{"type": "enabled"}` and words such as low are true, `{"type": "disabled"}` and none false."""
    if isinstance(value, dict):
        value = value.get("type", True)
    words = {"enabled": True, "adaptive": True, "auto": True, "low": True, "medium": True, "high": True,
             "true": True, "disabled": False, "none": False, "false": False}  # fmt: skip
    return words.get(value.lower(), value) if isinstance(value, str) else value


def thoughts_of(blocks: Any) -> Any:
    """The text of thinking blocks, as gateways give them back. What holds none is left out."""
    if not isinstance(blocks, list):
        return blocks if isinstance(blocks, str) else None
    texts = [block.get("thinking") or block.get("text") for block in blocks if isinstance(block, dict)]
    return "".join(text for text in texts if isinstance(text, str)) or None
