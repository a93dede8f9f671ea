"""Read newline-delimited JSON out of bytes that may have been cut anywhere: a line is complete when its end has come.

Line ends are \\n, \\r\\n or \\r; empty lines are left out.
"""

from __future__ import annotations

from collections.abc import Iterator


def lines(held: bytes, *, ended: bool = False) -> Iterator[bytes]:
    """The complete lines among `held`, in order; once the stream has `ended`, its last one needs no line end."""
    text = held
    if b"\r" in text:
        # a bare \r can't stand in JSON's strings: wherever it is, it ends a line or is a space
        text = text.replace(b"\r", b"\n")
    found = text.split(b"\n")
    for line in found if ended else found[:-1]:
        if line.strip():
            yield line
