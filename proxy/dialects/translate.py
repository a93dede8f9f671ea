"""What is said to a language model and by it, in no provider's words: the middle of every translation.

    caller's bytes --Wire.read--> Prompt --Wire.write--> provider's bytes
    provider's bytes --Wire.reply | Hearing--> Reply | Saids --Wire.told | Telling--> caller's bytes

What the second wire has no words for is Refused, with what it was, so that another tier can be asked: a prompt that
lost something on its way would be answered wrongly, and nobody would know. What only asks for speed, price, effort or
book-keeping (seed, service tier, thinking, cache hints, user ids) changes nobody's meaning and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal, NoReturn, Protocol, cast

import msgspec

from understudy.policies.service import Header, Refused
from understudy.proxy.dialects.base import Malformed, parsed

End = Literal["stop", "length", "tools", "filter"]
Role = Literal["system", "user", "assistant"]
EVENT_BYTES_MAX = 1024 * 1024
"""What one event of a stream comes to at most; a longer one is none."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words, as they are."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, as base64 with its media type, or where it is to be had."""

    media_type: str = ""
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that the model wants used. Without an `id` where its provider gives none: who tells of it makes one."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool said. `id` is that of its use."""

    id: str
    name: str
    text: str


Part = Text | Picture | ToolUse | ToolResult


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says at once. The results of tools are the user's, and come first."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """What a tool is called and takes."""

    name: str
    description: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """All that is asked. `choice` is auto, none, any, or the name of a tool behind `tool:`; `schema` is what a JSON
    answer must fit, {} where any object will do, None where words are wanted."""

    model: str
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    parallel: bool = True
    tokens_max: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    stream: bool = False
    wants_usage: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `model` is who really gave it."""

    model: str
    text: str
    uses: tuple[ToolUse, ...] = ()
    end: End = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


# --- what a stream says --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer begins. `model` is who really gives it."""

    model: str
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Words:
    """More of the text."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A tool is used; its arguments follow. `at` counts the uses of one answer."""

    at: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON text of a use's arguments."""

    at: int
    json: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer has come to its end, and why."""

    end: End
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Broke:
    """The provider said in its stream that it cannot go on: one word of it."""

    word: str


Said = Begun | Words | Called | Arguments | Ended | Broke


class Hearing(Protocol):
    """Reads one stream of a provider; what was cut waits for its rest. Raises Malformed for what can't be followed."""

    def hear(self, piece: bytes) -> list[Said]: ...
    def over(self) -> list[Said]:
        """What the end of the bytes says: the end of the answer where it was told, else nothing."""
        ...


class Telling(Protocol):
    """Writes one stream for a caller. Raises Malformed for what its wire can't carry."""

    def tell(self, said: Said) -> bytes: ...


class Signature(msgspec.Struct, frozen=True):
    """What an answer of ours is signed with: an id, and seconds since the epoch."""

    id: str
    created_s: int

    def use_id(self, at: int) -> str:
        """An id for the use of a tool that came without one; no other answer of the conversation has it."""
        return f"call_{_digest(self.id)}_{at}"


class Readable(Protocol):
    """As much of a wire format as it takes to follow a conversation in it. Stateless."""

    name: str
    stream_type: bytes

    def read(self, body: bytes, path: bytes) -> Prompt:
        """What a caller asks. Raises Refused for what can't be said otherwise."""
        ...

    def hearing(self, prompt: Prompt) -> Hearing: ...


class Wire(Readable, Protocol):
    """One provider's wire format, both ways."""

    path: bytes
    """Where prompts are posted."""
    headers: Sequence[Header]
    """What a request must have that no policy has set."""

    def write(self, prompt: Prompt, tokens_max: int) -> bytes:
        """A prompt for this provider; `tokens_max` is for one who must be told. Raises Refused."""
        ...

    def reply(self, body: bytes, prompt: Prompt) -> Reply:
        """A whole answer of this provider. Raises Malformed."""
        ...

    def told(self, reply: Reply, prompt: Prompt, signature: Signature) -> bytes: ...
    def telling(self, prompt: Prompt, signature: Signature) -> Telling: ...


def saids_of(reply: Reply) -> Iterator[Said]:
    """A whole answer as a stream says it."""
    yield Begun(reply.model, reply.prompt_tokens)
    if reply.text:
        yield Words(reply.text)
    for at, use in enumerate(reply.uses):
        yield Called(at, use.id, use.name)
        yield Arguments(at, spelt(use.arguments))
    yield Ended(reply.end, reply.prompt_tokens, reply.completion_tokens)


# --- what reading bodies takes -------------------------------------------------------------------------------------


def refuse(what: str) -> NoReturn:
    """Raise Refused: `what` has no words on the other side."""
    raise Refused("untranslatable", f"{what} can't be translated for this provider")


OBJECT = msgspec.json.Decoder(dict[str, Any])


class Fields:
    """The fields of a JSON object, taken one by one; what nobody takes and isn't known to matter little is refused."""

    def __init__(self, fields: Mapping[str, Any], where: str = "") -> None:
        self._fields = dict(fields)
        self._where = where

    def take(self, name: str) -> Any:
        return self._fields.pop(name, None)

    def text(self, name: str) -> str:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            refuse(f"{self._where}{name} that is no text")
        return value or ""

    def number(self, name: str) -> float | None:
        value = self.take(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            refuse(f"{self._where}{name} that is no number")
        return cast("float | None", value)

    def count(self, name: str) -> int | None:
        value = self.number(name)
        if value is not None and value != int(value):
            refuse(f"{self._where}{name} that is no whole number")
        return None if value is None else int(value)

    def objects(self, name: str) -> list[dict[str, Any]]:
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in cast("list[Any]", value)):
            refuse(f"{self._where}{name} that is no list of objects")
        return cast("list[dict[str, Any]]", value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name)
        values = cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, str) for each in values):
            refuse(f"{self._where}{name} that are no texts")
        return tuple(values)

    def object(self, name: str) -> dict[str, Any]:
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            refuse(f"{self._where}{name} that is no object")
        return cast("dict[str, Any]", value) or {}

    def done(self, harmless: Collection[str] = (), neutral: Mapping[str, Any] | None = None) -> None:
        """Refuse what is left, but for `harmless` names, values that say nothing, and those that are `neutral`."""
        for name, value in self._fields.items():
            unsaid = value is None or value == [] or value == {} or (neutral or {}).get(name, refuse) == value
            if name not in harmless and not unsaid:
                refuse(f"`{self._where}{name}`"[:80])


def fields_of(body: bytes) -> Fields:
    """A request's body. Raises Refused for what is no JSON object: there is nothing to translate."""
    try:
        return Fields(parsed(OBJECT, body))
    except Malformed as fault:
        raise Refused("untranslatable", f"the body is no JSON object: {fault}") from None


def arguments_of(text: Any) -> dict[str, Any]:
    """A tool's arguments out of JSON text, or as they are. Raises Malformed."""
    if isinstance(text, dict):
        return cast("dict[str, Any]", text)
    try:
        return parsed(OBJECT, str(text or "{}").encode())
    except UnicodeEncodeError:
        raise Malformed("the text is not Unicode") from None


def written(body: Mapping[str, Any]) -> bytes:
    """A request's body, without what was not asked for."""
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})


def result_text(parts: Sequence[Part]) -> str:
    """What a tool said. Raises Refused for more than words."""
    if not all(isinstance(part, Text) for part in parts):
        refuse("a tool's result that is no text")
    return texts_of(Turn("user", tuple(parts)), "\n")


def spelt(value: Any) -> str:
    """A value as JSON text."""
    return msgspec.json.encode(value).decode()


def as_object(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON list."""
    return [as_object(each) for each in cast("list[Any]", value)] if isinstance(value, list) else []


def as_count(value: Any) -> int:
    """A count, or 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def texts_of(turn: Turn, between: str = "") -> str:
    """The words of a turn, put together."""
    return between.join(part.text for part in turn.parts if isinstance(part, Text))


def check_last(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Refuse a prompt that ends in the model's own words: some providers go on with them, others don't."""
    if not turns or turns[-1].role == "assistant":
        refuse("a prompt that doesn't end with the user's turn")
    return turns


def met_by_id(turns: tuple[Turn, ...], fits: re.Pattern[str]) -> tuple[Turn, ...]:
    """The turns, no two uses of tools with the same id, and each id one that `fits`: providers are particular about
    what others, or the application, have made up."""
    ids = [part.id for turn in turns for part in turn.parts if isinstance(part, ToolUse)]
    if len(set(ids)) == len(ids) and all(map(fits.fullmatch, ids)):
        return turns
    taken: set[str] = set()
    now: dict[str, str] = {}

    def met(part: Part) -> Part:
        if isinstance(part, ToolUse):
            is_fit = fits.fullmatch(part.id) and part.id not in taken
            now[part.id] = part.id if is_fit else f"call_{_digest(part.id)}_{len(taken)}"
            taken.add(now[part.id])
            return replace(part, id=now[part.id])
        # it belongs to the last use of that id
        return replace(part, id=now.get(part.id, part.id)) if isinstance(part, ToolResult) else part

    return tuple(replace(turn, parts=tuple(map(met, turn.parts))) for turn in turns)


def uses_in(turns: tuple[Turn, ...]) -> Iterator[ToolUse]:
    """The tools that a conversation has used."""
    return (part for turn in turns for part in turn.parts if isinstance(part, ToolUse))


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def known_tool(prompt: Prompt) -> str:
    """The tool that must be used, or ''."""
    return prompt.choice.removeprefix("tool:") if prompt.choice.startswith("tool:") else ""


@dataclass(slots=True)
class Cut:
    """Bytes of a stream, given back up to the last whole event; the rest is held until more of it comes."""

    ends: tuple[bytes, ...]
    held: bytes = field(default=b"")

    def take(self, piece: bytes) -> bytes:
        held = self.held + piece
        end = max((at + len(mark) for mark in self.ends if (at := held.rfind(mark)) >= 0), default=0)
        self.held = held[end:]
        if len(self.held) > EVENT_BYTES_MAX:
            raise Malformed("an event without an end")
        return held[:end]
