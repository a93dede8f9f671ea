"""A BERT encoder in plain numpy at double precision: what the graphs are measured against, and slowly.

Nothing is shared with the builder but the weights: no fused operator, no transposed copy, one equation a line.
Devlin et al. 2018 (arXiv 1810.04805), Reimers and Gurevych 2019 (arXiv 1908.10084).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.models.graph import BertShape

__all__ = ["Matrix", "Reference", "erf"]

Matrix = NDArray[np.float64]


def erf(x: Matrix) -> Matrix:
    """The error function to 1.2e-7 (Numerical Recipes' erfcc, a Chebyshev fit): far below float32's own rounding."""
    z = np.abs(x)
    t = 1.0 / (1.0 + 0.5 * z)
    fit = np.zeros_like(x)
    for coefficient in (
        0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    ):  # fmt: skip
        fit = fit * t + coefficient
    tail = t * np.exp(-z * z - 1.26551223 + t * fit)
    return np.where(x >= 0, 1.0 - tail, tail - 1.0)


def layer_norm(x: Matrix, gamma: Matrix, beta: Matrix, epsilon: float) -> Matrix:
    """Mean 0 and variance 1 over the last axis, scaled and moved."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def softmax(x: Matrix) -> Matrix:
    """Shares of one over the last axis."""
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


class Reference:
    """A BERT by its weights and its shape. Raises KeyError where a tensor is missing."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], shape: BertShape) -> None:
        self._w = {name: value.astype(np.float64) for name, value in weights.items() if value.dtype.kind == "f"}
        self._shape = shape

    def embed(self, rows: Sequence[Sequence[int]]) -> Matrix:
        """Token ids, one row a text and unpadded → [n, d]. Rows of one length go together: none is padded."""
        width = self._w["embeddings.word_embeddings.weight"].shape[1]
        out = np.zeros((len(rows), width))
        for length in {len(row) for row in rows}:
            where = [index for index, row in enumerate(rows) if len(row) == length]
            out[where] = self._embed_alike(np.array([rows[index] for index in where]))
        return out

    def _embed_alike(self, ids: NDArray[np.int64]) -> Matrix:
        w, at = self._w, "embeddings."
        x = w[at + "word_embeddings.weight"][ids] + w[at + "position_embeddings.weight"][: ids.shape[1]]
        x = x + w[at + "token_type_embeddings.weight"][0]
        x = self._normed("embeddings", x)
        for layer in range(self._shape.layers):
            x = self._layer(f"encoder.layer.{layer}.", x)
        pooled = x[:, 0] if self._shape.pooling == "cls" else x.mean(1)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True) if self._shape.normalise else pooled

    def _layer(self, at: str, x: Matrix) -> Matrix:
        n, t, width = x.shape
        heads = self._shape.heads
        query, key, value = (
            self._linear(f"{at}attention.self.{name}", x).reshape(n, t, heads, width // heads).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        weight = softmax(query @ key.transpose(0, 1, 3, 2) / np.sqrt(width // heads))
        context = (weight @ value).transpose(0, 2, 1, 3).reshape(n, t, width)
        x = self._normed(f"{at}attention.output", self._linear(f"{at}attention.output.dense", context) + x)
        wide = self._linear(f"{at}intermediate.dense", x)
        bent = wide * 0.5 * (1.0 + erf(wide / np.sqrt(2.0)))
        return self._normed(f"{at}output", self._linear(f"{at}output.dense", bent) + x)

    def _linear(self, at: str, x: Matrix) -> Matrix:
        return x @ self._w[at + ".weight"].T + self._w[at + ".bias"]

    def _normed(self, at: str, x: Matrix) -> Matrix:
        norm = self._w[at + ".LayerNorm.weight"], self._w[at + ".LayerNorm.bias"]
        return layer_norm(x, *norm, self._shape.norm_epsilon)
