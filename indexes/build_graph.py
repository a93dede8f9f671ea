"""Build the graph of a saved matrix, in this process or as a program of its own.

    python -m understudy.indexes.build_graph vectors.npy graph.hnsw cosine [present.npy]     prints the probes as JSON

As a program it keeps the GIL of the proxy free: hnswlib holds it while it saves (0.2 s for 50 000 x 384).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from understudy.indexes.vectors import Distance, Graph, Matrix, VectorIndex, default_threads, find_probes


def build_graph(
    matrix_path: Path, graph_path: Path, distance: Distance, present_path: Path | None = None
) -> list[list[int]]:
    """Write the graph over a prepared matrix .npy [n, d], n > 0, or over those of its rows that `present` .npy [n]
    marks, one at least; its probes (see `vectors.find_probes`).

    Raises OSError if it cannot be written whole, CorruptIndex if it does not find its own vectors.
    """
    matrix: Matrix = np.asarray(np.load(matrix_path, mmap_mode="r", allow_pickle=False))
    present = None if present_path is None else np.asarray(np.load(present_path, allow_pickle=False))
    graph = Graph.build(matrix, distance, threads=default_threads(), present=present)
    probes = find_probes(VectorIndex(matrix, distance, graph, present))
    graph.save(graph_path)
    return probes


def main(arguments: list[str]) -> None:
    """The program."""
    matrix_path, graph_path, distance, *present = arguments
    present_path = Path(present[0]) if present else None
    probes = build_graph(Path(matrix_path), Path(graph_path), Distance.of(distance), present_path)
    sys.stdout.write(json.dumps(probes))


if __name__ == "__main__":
    main(sys.argv[1:])
