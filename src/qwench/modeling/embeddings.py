"""TokenEmbeddings: what `get_input_embeddings` gives, rows of the packed embedding matrix as torch tensors.

Knows nothing of generating. Made by `QwenchForCausalLM`; users call it to build `inputs_embeds`.
"""

from __future__ import annotations

import numpy as np
import torch

from qwench.errors import RequestError
from qwench.targets.target import Executor


class TokenEmbeddings(torch.nn.Module):  # type: ignore[misc]
    """Looks up embeddings as torch.nn.Embedding does, and gives what the model itself reads for a token, bit for bit.

    No parameters: the matrix stays packed, and `weight` unpacks a copy of it each time.
    """

    def __init__(self, executor: Executor, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self._executor = executor
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids: integers of any shape. Returns [*shape, embedding_dim] fp32. Raises RequestError."""
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise RequestError(f"token ids must be integers, but are {input_ids.dtype}")
        ids = input_ids.to("cpu")
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.num_embeddings):
            raise RequestError(f"a token id is outside the vocabulary of 0 to {self.num_embeddings - 1}")
        rows = self._executor.embed(ids.reshape(-1).numpy().astype(np.int32))
        return torch.from_numpy(rows).view(*ids.shape, self.embedding_dim)

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix, [num_embeddings, embedding_dim] fp32: a copy, which the model won't see changed."""
        return self(torch.arange(self.num_embeddings))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
