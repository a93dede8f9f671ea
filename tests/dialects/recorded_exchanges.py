"""Read the exchanges recorded from real clients: requests as they were sent, answers as those clients accepted them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.policies.service import Answer, Headers, Request

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Exchange:
    """One call of a client, named after what was called."""

    call: str
    request: Request
    answer: Answer
    json: Any

    @property
    def is_stream(self) -> bool:
        return isinstance(self.json, str)


def recorded(name: str) -> list[Exchange]:
    """The exchanges of the file `name`; a stream's answer is its bytes, any other its JSON written tersely."""
    return [_exchange(entry) for entry in json.loads((FOLDER / f"{name}.json").read_text("utf-8"))]


def request(method: str, path: str, body: Any = None, headers: Headers | None = None) -> Request:
    """A request; a body that is not bytes is sent as JSON."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(method.encode(), path.encode(), headers or [], content)


def _exchange(entry: dict[str, Any]) -> Exchange:
    headers = [(name.encode(), value.encode()) for name, value in entry["headers"].items()]
    # what is no JSON, such as the lines of a bulk, is recorded as its text
    sent = entry["request"].encode() if isinstance(entry["request"], str) else entry["request"]
    asked = request(entry["method"], entry["path"], sent, headers)
    said = entry["answer"]
    body = said.encode() if isinstance(said, str) else json.dumps(said, separators=(",", ":")).encode()
    return Exchange(entry["call"], asked, Answer(entry["status"], [], body), said)
