"""The embedded model at double precision, in a process of its own (`understudy.models.reference` is the arithmetic)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from understudy.models.built import MINILM
from understudy.models.reference import Matrix, Reference
from understudy.models.weights import read_safetensors


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
    np.save(out, Reference(read_safetensors(Path(sys.argv[1])), MINILM.shape).embed(json.load(sys.stdin)))
    sys.stdout.buffer.write(out.getvalue())
