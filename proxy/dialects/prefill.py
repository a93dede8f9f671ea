"""Go on with an answer that another has begun: how a provider is asked to, and what of its answer is new.

    said so far --prefilled--> a body whose last message is the model's own, its token ceiling lower by what was said
    the answer to it --Splice--> without the words that were only repeated --resumed--> events as if nobody had left

OpenAI itself can't be asked so; servers of its wire that can (vLLM, SGLang) take `continue_final_message`. A completion
is gone on with by asking for one of the prompt and what was said.
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from understudy.policies.service import Refused
from understudy.proxy.dialects.base import Malformed, parsed, parsed_or_none
from understudy.proxy.dialects.ndjson import lines
from understudy.proxy.dialects.openai_chat import DONE, data_bytes
from understudy.proxy.dialects.sse import events
from understudy.proxy.dialects.translate import OBJECT, Prompt, Signature, Telling, as_count, as_object
from understudy.proxy.dialects.translate_anthropic import AnthropicTelling
from understudy.proxy.dialects.translate_ollama import OllamaTelling
from understudy.proxy.dialects.translate_openai import OpenAITelling

ECHO_CHARS_MIN = 8
"""What is repeated of less than this may as well be new."""
TOKEN_CHARS = 4
_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_BEYOND_TEXT = re.compile(
    rb'"(?:thinking|reasoning|reasoning_content|refusal)"\s*:\s*"[^"]|"(?:audio|logprobs|tool_calls)"\s*:\s*[\[{"][^\]}]'
)


def plain_text_only(told: bytes) -> bool:
    """Whether nothing but words stands in these bytes of a stream, as far as fields beside them would show."""
    return _BEYOND_TEXT.search(told) is None


def tokens_in(text: str, words: int) -> int:
    """About how many tokens a text is that came in so many pieces; rather too many than too few."""
    return max(words, -(-len(text) // TOKEN_CHARS))


def prefilled(dialect: str, body: bytes, said: str, spent: int) -> bytes:
    """`body` in the words of `dialect`, to go on from `said`, for which `spent` tokens were used. Raises Refused."""
    try:
        fields = parsed(OBJECT, body)
    except Malformed:
        raise Refused("prefill", "the body is no JSON object") from None
    if dialect == "openai-completions":
        return _gone_on(fields, said, spent)
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise Refused("prefill", "there are no messages to go on from")
    # Anthropic takes no space at the end, and the others don't miss it
    said = said.rstrip() if dialect == "anthropic" else said
    fields["messages"] = [*messages, {"role": "assistant", "content": said}]
    if dialect == "ollama-chat":
        options = as_object(fields.get("options"))
        _lower(options, "num_predict", spent)
        if options:
            fields["options"] = options
    else:
        _lower(fields, "max_tokens", spent)
        _lower(fields, "max_completion_tokens", spent)
    if dialect == "openai-chat":
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return msgspec.json.encode(fields)


def _gone_on(fields: dict[str, Any], said: str, spent: int) -> bytes:
    """A completion is gone on with by its very nature: what was said is more of the prompt."""
    begun: Any = fields.get("prompt")
    if isinstance(begun, list) and begun:
        begun = cast("list[Any]", begun)[0]
    if not isinstance(begun, str):
        raise Refused("prefill", "there is no text to go on from")
    fields["prompt"] = begun + said
    _lower(fields, "max_tokens", spent)
    return msgspec.json.encode(fields)


def _lower(fields: dict[str, Any], name: str, spent: int) -> None:
    limit = fields.get(name)
    if isinstance(limit, int) and limit > 0:
        fields[name] = max(1, limit - spent)


class Splice:
    """Takes the words that go on from `said`, and lets through what is new of them.

    Some servers repeat the begun answer first. While what comes could be that, it is held.
    """

    __slots__ = ("_echo", "_held", "_is_first", "_said")

    def __init__(self, said: str) -> None:
        self._said = said
        self._echo = said.strip()
        self._held = ""
        self._is_first = True

    def take(self, words: str) -> str:
        """What of these words is to be told now."""
        if not self._is_first:
            return words
        self._held += words
        held = self._held.lstrip()
        if len(self._echo) >= ECHO_CHARS_MIN:
            if held.startswith(self._echo):
                self._held = held[len(self._echo) :]
                self._echo = ""
            elif self._echo.startswith(held):
                return ""
        return self.rest()

    def rest(self) -> str:
        """What is still held, once no more comes."""
        held, self._held = self._held, ""
        if not held:
            return ""
        self._is_first = False
        # one space between two words, whoever of the two has said it
        return held.lstrip(" ") if self._said.endswith((" ", "\n")) else held


def resumed(dialect: str, told: bytes, prompt: Prompt) -> Telling:
    """Who writes on behind `told`, bytes of a stream in `dialect`: with its id, its model, its open block. Raises
    Malformed where nothing can follow."""
    match dialect:
        case "openai-chat" | "azure-openai-chat":
            return _ResumedOpenAI(prompt, told)
        case "openai-completions":
            return _ResumedCompletions(prompt, told)
        case "anthropic":
            return _ResumedAnthropic(told)
        case _:
            return _ResumedOllama(told)


_NOBODY = Signature("", 0)


class _ResumedOpenAI(OpenAITelling):
    def __init__(self, prompt: Prompt, told: bytes) -> None:
        super().__init__(prompt, _NOBODY)
        chunks = (parsed_or_none(OBJECT, data) for _, data in events(told) if data.strip() != DONE)
        # what Azure says of the prompt comes first, and has no id
        first = next((chunk for chunk in chunks if chunk and chunk.get("choices")), None)
        if first is None:
            raise Malformed("nothing to go on from")
        self._head = {name: first[name] for name in _HEAD if name in first}
        if prompt.wants_usage:
            self._head["usage"] = None


class _ResumedCompletions(_ResumedOpenAI):
    def _delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "text": delta.get("content", ""), "logprobs": None, "finish_reason": reason}
        return data_bytes(self._head | {"choices": [choice]})


class _ResumedAnthropic(AnthropicTelling):
    def __init__(self, told: bytes) -> None:
        super().__init__(_NOBODY)
        has_begun = False
        for _, data in events(told):
            event = as_object(parsed_or_none(OBJECT, data))
            match event.get("type"):
                case "message_start":
                    has_begun = True
                case "content_block_start":
                    self._block, self._open = as_count(event.get("index")), "text"
                case "content_block_stop":
                    self._open = ""
                case _:
                    pass
        if not has_begun:
            raise Malformed("nothing to go on from")


class _ResumedOllama(OllamaTelling):
    def __init__(self, told: bytes) -> None:
        super().__init__(_NOBODY)
        first = next(filter(None, (parsed_or_none(OBJECT, line) for line in lines(told))), None)
        if first is None:
            raise Malformed("nothing to go on from")
        self._head = {name: first[name] for name in ("model", "created_at") if name in first}
