"""Answer from a graph that hnswlib wrote without hnswlib: its links are read, its vectors stay in the mapped matrix.

    graph.hnsw --Walk.open--> links (7 % of the file), checked     walk.c, called without the interpreter's lock
    query      --nearest----> rows                                 any number of threads

hnswlib takes the interpreter's lock while it copies a graph into memory, 60 ms for 50 000 x 384, and every call that is
being proxied waits for it. So it builds and saves graphs, in a child, and this reads them. Where walk.c was not
compiled (`built` says so) hnswlib reads them, too.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.faults import CorruptIndex

VERSION: Final = 2

# HierarchicalNSW::saveIndex, of hnswlib 0.5 to 0.8: offset of level 0, room, nodes, bytes of one, its label and vector
# within it; levels, entry; links of a node above level 0 and at most on it, M, the level's multiplier, ef_construction
_HEADER: Final = struct.Struct("<6QiI3QdQ")
_LABEL: Final = 8
_CHECKS: Final = (
    "",
    "its nodes have too many links",
    "a label is beyond the matrix",
    "a link leads nowhere",
    "it is too short",
    "a node has too many levels",
    "a link above leads nowhere",
    "it is too long",
    "a link above leads to a lower node",
)


class _Graph(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("matrix", "rows", "links", "above_at", "above")),
        *(
            (name, ctypes.c_uint32)
            for name in ("count", "dimensions", "width", "above_width", "top", "entry", "squared")
        ),
    ]


class Walk:
    """A graph over some rows of a matrix. Never changed; safe from any thread."""

    def __init__(self, compiled: ctypes.CDLL, graph: _Graph, held: tuple[NDArray[Any], ...]) -> None:
        self._nearest = compiled.walk_nearest
        self._graph = graph
        self._at = ctypes.addressof(graph)
        # what the addresses in the graph are of
        self._held = held
        self.count = int(graph.count)

    @classmethod
    def open(cls, path: Path, matrix: NDArray[np.float32], *, squared: bool, compiled: ctypes.CDLL) -> Walk:
        """Read the links of a graph over rows of `matrix` [n, d], which is searched in its place; `squared` where
        Euclid's distance built it. Raises CorruptIndex for a file that is no such graph: whatever it holds, no walk
        leads outside of it."""
        with path.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise CorruptIndex(f"{path.name}: {error}") from error
        return cls(compiled, *_read(path.name, np.frombuffer(mapped, np.uint8), matrix, squared, compiled))

    def nearest(self, query: NDArray[np.float32], k: int, ef: int) -> NDArray[np.int64]:
        """About the `k` nearest rows of a query [d], ascending, found by keeping the best `ef` at every step."""
        wanted = np.ascontiguousarray(query, np.float32)
        if wanted.shape != (self._graph.dimensions,) or k < 1:
            # read in C, where nobody looks: what is asked further out has been checked, and is checked again
            raise ValueError(
                f"{k} nearest of shape {wanted.shape}, where vectors have {self._graph.dimensions} numbers"
            )
        rows = np.empty(k, np.int64)
        many = self._nearest(self._at, _address(wanted), max(ef, k), k, _address(rows))
        if many < 0:
            raise MemoryError("no memory to walk a graph with")
        found = rows[:many]
        found.sort()
        return found


@lru_cache(maxsize=1)
def built() -> ctypes.CDLL | None:
    """walk.c as it was compiled when this was installed; None where it was not."""
    folder = Path(__file__).parent
    paths = [folder / f"_walk{suffix}" for suffix in EXTENSION_SUFFIXES]
    return next((compiled for path in paths if path.exists() and (compiled := load(path)) is not None), None)


def load(path: Path) -> ctypes.CDLL | None:
    """walk.c, compiled into a shared library; None for one that does not load, or was compiled of another walk.c."""
    try:
        compiled = ctypes.CDLL(str(path))
        if compiled.walk_version() != VERSION:
            return None
    except (OSError, AttributeError):
        return None
    at, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    compiled.walk_read.argtypes = [at, u64, u64, u64, at, u64, u32, u32, u32, u64, at, at, at, at, at]
    compiled.walk_nearest.argtypes = [at, at, u64, u64, at]
    compiled.walk_nearest.restype = ctypes.c_int64
    compiled.walk_products.argtypes = [at, u64, at, u64, at, at]
    compiled.walk_products.restype = None
    compiled.walk_touch.argtypes = [at, u64]
    compiled.walk_touch.restype = u64
    return compiled


def products(
    compiled: ctypes.CDLL, matrix: NDArray[np.float32], rows: NDArray[np.int64], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The products [m] of a query [d] with some rows of a matrix [n, d], read where they lie: copying them together
    would cost as much again. Summed in another order than numpy's, so they differ in their last bits."""
    found = np.empty(len(rows), np.float32)
    args = _address(matrix), matrix.shape[1], _address(rows), len(rows), _address(query), _address(found)
    compiled.walk_products(*args)
    return found


def _read(
    name: str, file: NDArray[np.uint8], matrix: NDArray[np.float32], squared: bool, compiled: ctypes.CDLL
) -> tuple[_Graph, tuple[NDArray[Any], ...]]:
    rows_max, dimensions = matrix.shape
    if matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
        raise ValueError("the matrix is not of float32 in rows")
    if len(file) < _HEADER.size:
        raise CorruptIndex(f"{name}: {len(file)} bytes are no graph")
    header = _HEADER.unpack(file[: _HEADER.size].tobytes())
    level0, _, count, stride, label_at, vector_at, top, entry, above_max, width_max, _, _, _ = header
    width, above_width = width_max + 1, above_max + 1
    laid_out = (0, 4 * width, 4 * width + 4 * dimensions, 4 * width + 4 * dimensions + _LABEL)
    if (level0, vector_at, label_at, stride) != laid_out or not 0 < count <= rows_max:
        raise CorruptIndex(f"{name}: it is not laid out as a graph of {dimensions} dimensions")
    end = _HEADER.size + count * stride
    if end + 4 * count > len(file) or not 0 <= top < 64 or entry >= count or not 1 < above_width <= width:
        raise CorruptIndex(f"{name}: {len(file)} bytes are too few for {count} nodes")
    rows = np.empty(count, np.uint32)
    links = np.zeros((count, width), np.uint32)
    above_at = np.empty(count, np.int64)
    # all that follows, though part of it is no links: it is only known where they end once they were copied
    above = np.zeros((len(file) - end) // 4 + 1, np.uint32)
    levels = np.empty(count, np.uint32)
    failed = compiled.walk_read(
        _address(file) + _HEADER.size, count, stride, label_at, _address(file) + end, len(file) - end,
        width, above_width, top, rows_max,
        *map(_address, (rows, links, above_at, above, levels)),
    )  # fmt: skip
    if failed or levels[entry] < top:
        raise CorruptIndex(f"{name}: {_CHECKS[failed] or 'its entry is not at the top'}")
    compiled.walk_touch(_address(matrix), matrix.nbytes)
    at = map(_address, (matrix, rows, links, above_at, above))
    return _Graph(*at, count, dimensions, width, above_width, top, entry, squared), (
        matrix,
        rows,
        links,
        above_at,
        above,
    )


def _address(array: NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]
