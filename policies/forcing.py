"""What an operator says of a breaker, whatever the breaker thinks: it is held to until the next word.

Apart from `breaker`, which is compiled: what is compiled can't be asked for the types of its fields, and these are read
back from files and from other workers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Mode = Literal["auto", "forced-open", "disabled", "metrics-only"]
MODES: tuple[Mode, ...] = ("auto", "forced-open", "disabled", "metrics-only")


class Forced(NamedTuple):
    """What an operator has said of a tier's breakers, or of one endpoint's; when, in seconds of the wall clock, and who
    says so."""

    route: str
    tier: str
    endpoint: str
    mode: Mode
    since: float = 0.0
    by: str = ""
