"""The cheapest prompt there is, in each API's own words, and what an answer to it must hold: one token, and a shape.

    model --> path, body of a POST --> 200 with a text or a reason to have stopped --> ''
                                       200 with another shape ---------------------> schema
                                       200 with the shape, and nothing in it ------> llm_empty

A model that thinks before it speaks has spent its token on a thought: then the reason why it stopped is the content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgspec

from understudy.proxy.dialects.vital import ANTHROPIC_VERSION, SCHEMA

EMPTY = "llm_empty"
PROMPT = "Say: ok"
ANSWER_BYTES_MAX = 1024 * 1024
AZURE_VERSION = "2024-10-21"
CHAT = b"/chat/completions"
RESPONSES_TOKENS_MIN = 16
"""OpenAI's responses take no lower bound than this."""

_MESSAGES = [{"role": "user", "content": PROMPT}]
_MODERN, _OLD = "max_completion_tokens", "max_tokens"


class Golden(NamedTuple):
    """`path` is where it is put to, from the server's root, and `ends` how such a path ends, whatever stands before it;
    `bodies` are the ways to say it, for one model each time,
    the next of which is tried where a server does not take one; `wrong` says what is missing in the answer."""

    path: Callable[[str], str]
    ends: bytes
    bodies: tuple[Callable[[str], dict[str, Any]], ...]
    wrong: Callable[[dict[str, Any]], str]
    headers: tuple[tuple[bytes, bytes], ...] = ()


def _at(path: str) -> Callable[[str], str]:
    return lambda _model: path


def _dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _said(*values: Any) -> str:
    return "" if any(isinstance(value, str) and value.strip() for value in values) else EMPTY


def _of_choices(told: dict[str, Any]) -> str:
    """OpenAI's chat, its older completions, and all who write like it."""
    choices = told.get("choices")
    if not isinstance(choices, list):
        return SCHEMA
    if not choices:
        return EMPTY
    first = _dict(_list(choices)[0])
    message = first.get("message")
    if not isinstance(message, dict) and not isinstance(first.get("text"), str):
        return SCHEMA
    said = _dict(message)
    return _said(said.get("content"), said.get("refusal"), first.get("text"), first.get("finish_reason"))


def _of_blocks(told: dict[str, Any]) -> str:
    """Anthropic's messages."""
    content = told.get("content")
    if told.get("type") != "message" or not isinstance(content, list):
        return SCHEMA
    return _said(told.get("stop_reason"), *(_dict(block).get("text") for block in _list(content)))


def _of_line(told: dict[str, Any]) -> str:
    """Ollama's chat and generate, which say that they are done and, since some version, why."""
    if not isinstance(told.get("done"), bool) or not ("message" in told or "response" in told):
        return SCHEMA
    spoken = _said(_dict(told.get("message")).get("content"), told.get("response"), told.get("done_reason"))
    counted = told.get("eval_count")
    return "" if not spoken or (told["done"] and isinstance(counted, int) and counted > 0) else EMPTY


def _of_cohere(told: dict[str, Any]) -> str:
    message = told.get("message")
    if not isinstance(message, dict):
        return SCHEMA
    texts = [_dict(block).get("text") for block in _list(_dict(message).get("content"))]
    reason = told.get("finish_reason")
    return _said(*texts, None if reason in ("ERROR", "TIMEOUT") else reason)


def _of_output(told: dict[str, Any]) -> str:
    """OpenAI's responses."""
    if not isinstance(told.get("output"), list):
        return SCHEMA
    if told.get("status") == "failed":
        return EMPTY
    texts = [
        _dict(part).get("text") for one in _list(told["output"]) for part in _list(_dict(_dict(one)).get("content"))
    ]
    return _said(*texts, _dict(told.get("incomplete_details")).get("reason"))


def _as(fields: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    return lambda model: {"model": model, **fields}


def _chat(limit: str) -> Callable[[str], dict[str, Any]]:
    return _as({"messages": _MESSAGES, limit: 1, "stream": False})


def _azure_path(model: str) -> str:
    return f"/openai/deployments/{model}/chat/completions?api-version={AZURE_VERSION}"


def _deployed(limit: str) -> Callable[[str], dict[str, Any]]:
    return lambda _model: {"messages": _MESSAGES, limit: 1, "stream": False}


GOLDENS: Mapping[str, Golden] = MappingProxyType(
    {
        "openai-chat": Golden(_at("/v1/chat/completions"), CHAT, (_chat(_OLD), _chat(_MODERN)), _of_choices),
        "azure-openai-chat": Golden(
            _azure_path,
            CHAT,
            (_deployed(_OLD), _deployed(_MODERN)),
            _of_choices,
        ),
        "openai-completions": Golden(
            _at("/v1/completions"),
            b"/completions",
            (_as({"prompt": PROMPT, "max_tokens": 1, "stream": False}),),
            _of_choices,
        ),
        "openai-responses": Golden(
            _at("/v1/responses"),
            b"/responses",
            (_as({"input": PROMPT, "max_output_tokens": RESPONSES_TOKENS_MIN, "store": False}),),
            _of_output,
        ),
        "anthropic": Golden(
            _at("/v1/messages"),
            b"/messages",
            (_as({"max_tokens": 1, "messages": _MESSAGES}),),
            _of_blocks,
            (ANTHROPIC_VERSION,),
        ),
        "ollama-chat": Golden(
            _at("/api/chat"),
            b"/api/chat",
            (_as({"messages": _MESSAGES, "stream": False, "options": {"num_predict": 1}}),),
            _of_line,
        ),
        "cohere-chat": Golden(
            _at("/v2/chat"),
            b"/v2/chat",
            (_as({"messages": _MESSAGES, "max_tokens": 1, "stream": False}),),
            _of_cohere,
        ),
    }
)
"""By dialect: every one whose calls are of kind `generate`."""


def what_is_missing(golden: Golden, body: bytes) -> str:
    """Why the body of a 200 is no answer to the prompt, in a word, or ''."""
    if len(body) > ANSWER_BYTES_MAX:
        return SCHEMA
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return SCHEMA
    return golden.wrong(cast("dict[str, Any]", told)) if isinstance(told, dict) else SCHEMA
