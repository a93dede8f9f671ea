"""The ways in which a local model says no; every one names what is wrong and, where it can, what to do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DeadlinePassed", "ModelError", "Overloaded"]


class ModelError(Exception):
    """A model cannot be built, read, trusted or run. The text is meant for the operator, not for a traceback."""

    def __init__(self, why: str, *, where: Path | str | None = None) -> None:
        super().__init__(f"{where}: {why}" if where is not None else why)
        self.why = why
        self.where = where


class Overloaded(Exception):
    """The queue before the model is full. Nothing was spent: ask somebody else now, or this one later."""


class DeadlinePassed(TimeoutError):
    """The caller's time was up before the model had answered. Work not yet begun for it was dropped."""
