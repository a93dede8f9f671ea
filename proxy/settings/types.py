"""What settings are made of: numbers with bounds, names, secrets, and the struct that every settings type is."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0, description="seconds")]
PositiveSeconds = Annotated[float, Meta(gt=0, description="seconds")]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1, description="bytes")]
Share = Annotated[float, Meta(gt=0, le=1, description="a share of one")]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="lower-case letters, digits, '.', '_' and '-', a letter or digit first, up to 63 characters",
    ),
]
SplitKey = Annotated[
    str,
    Meta(
        pattern=r"^(tenant|caller|call|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+|body:[A-Za-z0-9_.-]+)$",
        description="tenant (who shows these credentials), caller (an address), call (each call for itself), "
        "header:NAME, or body:FIELD of a JSON body, with dots between the fields of fields",
    ),
]
EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="an environment variable's name")]
FilePath = Annotated[str, Meta(extra={"file": True}, description="a file, its path seen from the policy file's folder")]


MASK = "***"
"""What stands for a secret wherever people can read."""


class Secret(str):
    """A string that does not print: logs, errors, `explain` and `/status` show `***`.

    In a policy file it is written out, taken from the environment (`${NAME}`), or read from a file
    (`file:/run/secrets/token`, relative to the policy file's folder, the line break at its end taken off).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return str.__str__(self)


class Frozen(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every settings type is: immutable, keyword-only, and strict about keys."""
