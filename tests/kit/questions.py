"""What is asked of a language model and what it says, in no provider's words, and what a provider can do with them."""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(8)).decode()


@dataclass(frozen=True, slots=True)
class Use:
    """A tool's use. `id` is a number: the how manieth use of the conversation it is."""

    id: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: words, pictures (base64, or an address), uses of tools, or their results by the use's id."""

    role: str
    text: str = ""
    pictures: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()
    results: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """A tool that may be used."""

    name: str
    description: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """All that is asked. `schema`: {} for any JSON object, None for words."""

    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[Function, ...] = ()
    choice: str = "auto"
    schema: dict[str, Any] | None = None
    stop: tuple[str, ...] = ()
    tokens_max: int | None = None
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """What a model says: words in pieces, uses of tools with their arguments in pieces, why it ends, what it cost."""

    words: tuple[str, ...] = ()
    uses: tuple[tuple[str, tuple[str, ...]], ...] = ()
    end: str = "stop"
    prompt_tokens: int = 11
    completion_tokens: int = 7
    model: str = "provider-model"
    ids: tuple[str, ...] = field(default=("one", "two"))

    @property
    def text(self) -> str:
        """All the words."""
        return "".join(self.words)

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """The uses, each with its arguments as they are meant."""
        return [(name, json.loads("".join(pieces))) for name, pieces in self.uses]


class Provider(ABC):
    """One provider's wire format, from its side."""

    name = ""
    path = ""
    content_type = "text/event-stream"

    @abstractmethod
    def body(self, question: Question) -> dict[str, Any]:
        """What a client sends, but for the model and whether it streams."""
        ...

    @abstractmethod
    def read(self, body: dict[str, Any]) -> Question:
        """What is asked. Raises AssertionError for what the API would answer with a 400."""
        ...

    @abstractmethod
    def whole(self, script: Script, body: dict[str, Any]) -> dict[str, Any]: ...
    @abstractmethod
    def stream(self, script: Script, body: dict[str, Any]) -> list[bytes]:
        """Event by event; the first of the words is event `begun` of them."""
        ...

    @abstractmethod
    def begun(self, script: Script, body: dict[str, Any]) -> int: ...
    @abstractmethod
    def error_event(self) -> bytes: ...
    @abstractmethod
    def error(self, kind: str) -> tuple[int, dict[str, Any]]:
        """`context`, `key`, `busy` or `broken`, with its status."""
        ...
