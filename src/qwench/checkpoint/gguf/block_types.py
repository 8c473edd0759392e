"""ggml's types: how many values a block has, in how many bytes, and what they are in qwench's formats."""

from __future__ import annotations

from collections.abc import Mapping

from qwench.formats import BF16, NESTED_BLOCK, SMALLEST_GROUP, Format

# Name -> values in a block, bytes of a block.
BLOCK_TYPES: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
}  # fmt: skip
TYPE_NAMES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16",
}  # fmt: skip
UNREAD_NAMES: Mapping[int, str] = {
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

# The format of a matrix, and whether it holds the very values. Groups of 16, of Q6_K, Q3_K and Q2_K, become int8 in
# groups of 32, whose products are twice as fast. Embedding and head keep them: few rows meet these.
EXACT: Mapping[str, Format] = {
    "BF16": BF16,
    "Q4_0": Format("int4", 32, "fp16"),
    "Q4_1": Format("int4", 32, "fp16", "min"),
    "Q5_0": Format("int8", 32, "fp16"),
    "Q5_1": Format("int8", 32, "fp16", "min"),
    "Q8_0": Format("int8", 32, "fp16"),
    "IQ4_NL": Format("int8", 32, "fp16"),
    "Q4_K": Format("int4", 32, "nested", "min"),
    "Q5_K": Format("int8", 32, "nested", "min"),
    "IQ4_XS": Format("int8", 32, "nested"),
}
ROUNDED: Mapping[str, Format] = {
    "F32": BF16,
    "F16": BF16,
    **dict.fromkeys(("Q2_K", "Q3_K", "Q6_K"), Format("int8", 32)),
}
EXACT_HEAD: Mapping[str, Format] = {
    **EXACT,
    "Q2_K": Format("int8", SMALLEST_GROUP, "nested", "min"),
    "Q3_K": Format("int8", SMALLEST_GROUP, "nested"),
    "Q6_K": Format("int8", SMALLEST_GROUP, "nested"),
}
assert all(fmt.scales != "nested" or BLOCK_TYPES[kind][0] == NESTED_BLOCK for kind, fmt in EXACT_HEAD.items())
