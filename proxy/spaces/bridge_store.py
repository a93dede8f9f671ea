"""Keep maps between spaces, and the pairs they are fitted from, in the state folder: written whole, checked when read.

    bridges/KEY.map.npz      the map, its version, and what was measured of it on each copy     read by every worker
    bridges/KEY.pairs.npz    the pairs, with as much of their texts as judging takes            read at start, by one
    bridges/PID-N.passed     texts and vectors that passed another worker                       read once, by that one

KEY stands for both spaces and the dimensions, so that a map is never taken for another's.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from understudy.models.bridge import Bridge, Pair, Standing
from understudy.proxy.durable import replace_file

log = logging.getLogger("understudy.bridges")

PASSED_FILES_MAX: Final = 8
"""25 MB of 1 536 dimensions: when nobody reads them, no more are written."""


class Offered(NamedTuple):
    """A text that was embedded, and its vector (float32 bytes); `key` is the vector's space and dimensions."""

    key: tuple[str, int]
    vector: bytes
    text: str
    kind: Literal["query", "document"]


_OFFERED = msgspec.msgpack.Decoder(list[Offered])


class Key(NamedTuple):
    """What a map leads from and to: the local model's fingerprint, the other space's canonical name, and how long its
    vectors are."""

    own: str
    space: str
    dimensions: int

    @property
    def file(self) -> str:
        """What its files are called."""
        return sha256(json.dumps([*self]).encode()).hexdigest()[:16]


class Published(NamedTuple):
    """A map that was fitted at `fitted_at` (Unix time), and how it stands with each copy."""

    bridge: Bridge
    standings: dict[str, Standing]
    fitted_at: float


class BridgeStore:
    """The files of one state folder. Every call reads or writes disk: make it in a thread. Nothing raises: what can't
    be written is logged and stays in memory, what can't be read is as if it were not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def pass_on(self, offered: Sequence[Offered]) -> bool:
        """Let the process that gathers have these; whether there was room for them."""
        if len(list(self.folder.glob("*.passed"))) >= PASSED_FILES_MAX:
            return False
        plain = [each._replace(text=each.text.encode("utf-8", "replace").decode()) for each in offered]
        path = self.folder / f"{os.getpid()}-{next(self._numbers)}.passed"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, msgspec.msgpack.encode(plain))
        except OSError as fault:
            log.warning("pairs can't be passed on: %s", fault.strerror)
            return False
        return True

    def passed_on(self, room: int) -> list[Offered]:
        """What others have passed on, at most about `room`, the oldest first; each is given once."""
        found: list[Offered] = []
        for path in sorted(self.folder.glob("*.passed"), key=_age):
            if len(found) >= room:
                break
            try:
                found += _OFFERED.decode(path.read_bytes())
            except (OSError, ValueError) as fault:
                log.warning("pairs that were passed on are passed over: %s", fault)
            path.unlink(missing_ok=True)
        return found[:room]

    def publish(self, key: Key, told: Published) -> None:
        """Have every worker know of a map."""
        bridge = told.bridge
        about = {
            "key": [*key],
            "pairs": bridge.pairs,
            "normalised": bridge.normalised,
            "version": bridge.version,
            "fitted_at": told.fitted_at,
            "standings": {name: _plain(standing) for name, standing in told.standings.items()},
        }
        arrays = {"weights": bridge.weights, "local_mean": bridge.local_mean, "other_mean": bridge.other_mean}
        self._write(key, "map", about, arrays)

    def published(self, key: Key) -> Published | None:
        """The map of this key, where there is one."""
        found = self._read(key, "map", ("weights", "local_mean", "other_mean"))
        if found is None:
            return None
        about, arrays = found
        try:
            bridge = Bridge(**arrays, pairs=int(about["pairs"]), normalised=bool(about["normalised"]))
            standings = {str(name): Standing(**each) for name, each in about["standings"].items()}
            told = Published(bridge, standings, float(about["fitted_at"]))
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            return self._unread(key, "map", fault)
        if bridge.version != about.get("version") or bridge.weights.shape[1:] != (key.dimensions,):
            return self._unread(key, "map", "it is not what it says it is")
        return told

    def written_at(self, key: Key) -> int:
        """When its map was last written, as the file system tells it; 0 where there is none."""
        try:
            return self._path(key, "map").stat().st_mtime_ns
        except OSError:
            return 0

    def keep_pairs(self, key: Key, pairs: Sequence[Pair]) -> None:
        """Have the pairs outlive us."""
        if not pairs:
            return
        arrays = {
            "local": np.stack([pair.local for pair in pairs]),
            "other": np.stack([pair.other for pair in pairs]),
            "documents": np.array([pair.is_document for pair in pairs], np.bool_),
        }
        self._write(key, "pairs", {"key": [*key], "texts": [pair.text for pair in pairs]}, arrays)

    def pairs(self, key: Key) -> list[Pair]:
        """Those that were kept."""
        found = self._read(key, "pairs", ("local", "other", "documents"))
        if found is None:
            return []
        about, arrays = found
        rows = zip(arrays["local"], arrays["other"], arrays["documents"], about.get("texts", ()), strict=False)
        if arrays["other"].ndim != 2 or arrays["other"].shape[1] != key.dimensions:
            self._unread(key, "pairs", "they are of other dimensions")
            return []
        return [Pair(local, other, bool(flag), str(text)) for local, other, flag, text in rows]

    def _path(self, key: Key, what: str) -> Path:
        return self.folder / f"{key.file}.{what}.npz"

    def _write(self, key: Key, what: str, about: dict[str, Any], arrays: dict[str, Any]) -> None:
        data = io.BytesIO()
        spelt = np.frombuffer(json.dumps(about).encode("utf-8", "replace"), np.uint8)
        np.savez(data, about=spelt, **arrays)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._path(key, what), data.getvalue())
        except OSError as fault:
            log.warning("the %s to %s can't be kept: %s", what, key.space, fault.strerror)

    def _read(self, key: Key, what: str, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        path = self._path(key, what)
        try:
            # each member of the archive has a checksum of its own
            with np.load(path, allow_pickle=False) as held:
                arrays = {name: held[name] for name in names}
                about: Any = json.loads(held["about"].tobytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
            return self._unread(key, what, fault)
        if about.get("key") != [*key]:
            return self._unread(key, what, "it is another's")
        return about, arrays

    def _unread(self, key: Key, what: str, fault: object) -> None:
        log.warning("the %s to %s that was kept is passed over: %s", what, key.space, fault)


def _plain(standing: Standing) -> dict[str, Any]:
    return {name: getattr(standing, name) for name in Standing.__slots__}


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
