"""Read server-sent events out of bytes that may have been cut anywhere.

    held bytes -> complete events (name, data)        an event is complete when a blank line has come

Line ends are \\n, \\r\\n or \\r, as the WHATWG's event stream format has it; comments and unknown fields are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

Event = tuple[bytes, bytes]
"""An event's name (mostly empty) and its data."""

_MARK = b"\xef\xbb\xbf"


def events(held: bytes, *, ended: bool = False) -> Iterator[Event]:
    """The complete events among `held`, in order; once the stream has `ended`, its last one needs no blank line."""
    text = held.removeprefix(_MARK)
    if b"\r" in text:
        # A \r at the very end may be half of a \r\n: read as a line end now, it will be read as one line end later too.
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    blocks = text.split(b"\n\n")
    for block in blocks if ended else blocks[:-1]:
        event = _event(block)
        if event is not None:
            yield event


def _event(block: bytes) -> Event | None:
    """One event's lines as (name, data), or None when it has neither (a comment, a stray blank line)."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return (name, b"\n".join(data)) if name or data else None
