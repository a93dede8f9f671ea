"""Fill in what stands outside the file: `${NAME}` and `${NAME:-default}` from the environment, `file:` from a file.

A fault found here names the variable and never says what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from understudy.proxy.settings.policy_files import read_bounded

SECRET_BYTES_MAX = 64 * 1024

_FORMS = re.compile(
    r"(?P<escape>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|(?P<stray>\$\{)"
)
_WHOLE = re.compile(r"\$\{[^{}]*\}")


class Unfilled(Exception):
    """A string that can't be filled in, and why. `unset` says that the environment alone is to blame."""

    def __init__(self, why: str, *, unset: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.unset = unset


class Filled(NamedTuple):
    """A string with its variables replaced. `whole` says that it was one variable and nothing else.

    `names` are the variables it names, `heard` those of them that the environment has a value for.
    """

    text: str
    whole: bool
    names: tuple[str, ...]
    heard: tuple[str, ...]


def fill(text: str, environ: Mapping[str, str]) -> Filled:
    """`text` with its variables replaced; like a shell's, `:-` also covers a variable that is set but empty.

    Raises Unfilled.
    """
    names: list[str] = []
    unset: list[str] = []

    def replaced(form: re.Match[str]) -> str:
        if form["escape"]:
            return "${"
        name, default = form["name"], form["default"]
        if form["stray"]:
            raise Unfilled("a ${ that isn't ${NAME} or ${NAME:-default}; write $${ where a plain ${ is meant")
        names.append(name)
        value = environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            unset.append(name)
        return value or ""

    filled = _FORMS.sub(replaced, text)
    if unset:
        raise Unfilled(_not_set(list(dict.fromkeys(unset))), unset=True)
    if any("\ud800" <= letter <= "\udfff" for letter in filled):
        raise Unfilled("not valid Unicode")
    heard = dict.fromkeys(name for name in names if environ.get(name))
    return Filled(filled, _WHOLE.fullmatch(text) is not None, tuple(names), tuple(heard))


def _not_set(names: list[str]) -> str:
    if len(names) > 1:
        return f"{' and '.join(names)} are not set"
    return f"{names[0]} is not set; ${{{names[0]}:-default}} would give it a default"


def read_secret(path: str, folder: Path) -> str:
    """The secret in the file at `path`, seen from `folder`, without the line break at its end. Raises Unfilled."""
    try:
        text = read_bounded(folder / path, SECRET_BYTES_MAX).decode()
    except UnicodeDecodeError:
        raise Unfilled("the file it names is not UTF-8", unset=True) from None
    except (OSError, ValueError) as error:
        # The error's own words would repeat the path, and a variable may be part of that.
        why = (error.strerror if isinstance(error, OSError) else None) or "not a readable file"
        raise Unfilled(f"the file it names can't be read: {why}", unset=True) from None
    return text.removesuffix("\n").removesuffix("\r")
