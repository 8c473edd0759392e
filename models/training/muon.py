"""Muon: momentum whose matrix updates are made orthogonal, so that a model learns from fewer tokens than with AdamW.

Keller Jordan's optimiser, in fp32 for CPUs. For hidden matrices only; embeddings, norms and biases belong to AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def orthogonalised(matrix: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: a quintic Newton-Schulz iteration on the singular values."""
    first, second, third = 3.4445, -4.7750, 2.0315
    wide = matrix.size(0) <= matrix.size(1)
    current = matrix if wide else matrix.T
    current = current / (current.norm() + 1e-7)
    for _ in range(num_steps):
        gram = current @ current.T
        current = first * current + (second * gram + third * gram @ gram) @ current
    return current if wide else current.T


class Muon:
    """Nesterov momentum, then orthogonalisation, then a step of `lr` in which every direction counts the same."""

    def __init__(self, parameters: Iterable[torch.Tensor], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        self.parameters = list(parameters)
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.momentum, self.weight_decay = momentum, weight_decay

    def step(self, lr: float) -> None:
        """Update all matrices from their gradients."""
        with torch.no_grad():
            for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
                assert parameter.grad is not None
                buffer.lerp_(parameter.grad, 1 - self.momentum)
                update = orthogonalised(parameter.grad.lerp(buffer, self.momentum))
                scale = max(1.0, parameter.size(0) / parameter.size(1)) ** 0.5
                parameter.mul_(1 - lr * self.weight_decay).add_(update, alpha=-lr * scale)
