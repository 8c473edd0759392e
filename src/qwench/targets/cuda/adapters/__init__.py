"""LoRA adapters beside the weights: their matrices, and which rows of a step are whose."""
