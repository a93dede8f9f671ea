"""The embedded model once more, in plain numpy at double precision: what the graphs are measured against.

Nothing is shared with the builder but the file of weights: no fused operator, no transposed copy, one equation a line.
Devlin et al. 2018 (arXiv 1810.04805), Reimers and Gurevych 2019 (arXiv 1908.10084).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.models.weights import read_safetensors

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


def layer_norm(x: Matrix, gamma: Matrix, beta: Matrix) -> Matrix:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * gamma + beta


def softmax(x: Matrix) -> Matrix:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


class Reference:
    """all-MiniLM-L6-v2: six layers, twelve heads, mean pooling, unit length."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._w = {name: value.astype(np.float64) for name, value in weights.items() if value.dtype.kind == "f"}

    def embed(self, rows: Sequence[Sequence[int]]) -> Matrix:
        """Token ids, one row a text and unpadded → [n, 384]. Rows of one length go together: none is padded."""
        out = np.zeros((len(rows), 384))
        for length in {len(row) for row in rows}:
            where = [index for index, row in enumerate(rows) if len(row) == length]
            out[where] = self._embed_alike(np.array([rows[index] for index in where]))
        return out

    def _embed_alike(self, ids: NDArray[np.int64]) -> Matrix:
        w, at = self._w, "embeddings."
        x = w[at + "word_embeddings.weight"][ids] + w[at + "position_embeddings.weight"][: ids.shape[1]]
        x = x + w[at + "token_type_embeddings.weight"][0]
        x = layer_norm(x, w[at + "LayerNorm.weight"], w[at + "LayerNorm.bias"])
        for layer in range(6):
            x = self._layer(f"encoder.layer.{layer}.", x)
        mean = x.mean(1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _layer(self, at: str, x: Matrix) -> Matrix:
        n, t, _ = x.shape
        query, key, value = (
            self._linear(f"{at}attention.self.{name}", x).reshape(n, t, 12, 32).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        weight = softmax(query @ key.transpose(0, 1, 3, 2) / np.sqrt(32.0))
        context = (weight @ value).transpose(0, 2, 1, 3).reshape(n, t, 384)
        x = self._normed(f"{at}attention.output", self._linear(f"{at}attention.output.dense", context) + x)
        wide = self._linear(f"{at}intermediate.dense", x)
        bent = wide * 0.5 * (1.0 + erf(wide / np.sqrt(2.0)))
        return self._normed(f"{at}output", self._linear(f"{at}output.dense", bent) + x)

    def _linear(self, at: str, x: Matrix) -> Matrix:
        return x @ self._w[at + ".weight"].T + self._w[at + ".bias"]

    def _normed(self, at: str, x: Matrix) -> Matrix:
        return layer_norm(x, self._w[at + ".LayerNorm.weight"], self._w[at + ".LayerNorm.bias"])


def embed_apart(weights: Path, rows: Sequence[Sequence[int]]) -> Matrix:
    """Reference.embed in a process of its own, with one thread: on a busy machine BLAS's threads spin sixfold."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.reference", str(weights)],
        input=json.dumps(rows).encode(),
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    return np.load(io.BytesIO(done.stdout))


if __name__ == "__main__":
    out = io.BytesIO()
    np.save(out, Reference(read_safetensors(Path(sys.argv[1]))).embed(json.load(sys.stdin)))
    sys.stdout.buffer.write(out.getvalue())
