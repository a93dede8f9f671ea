"""OpenAI's older completions: `POST …/completions`, a prompt instead of messages; the rest is as in chat.

data: {"choices":[{"text":"Hel"}]}     content: the stream is primed
data: {"choices":[{"text":"","finish_reason":"stop"}]}, data: [DONE]     the end
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from understudy.policies.service import Answer, Call, HeldStream, Refused
from understudy.proxy.asks import GenerateAsk, Written
from understudy.proxy.dialects.base import json_answer, parsed
from understudy.proxy.dialects.generating import EVENT_HEADERS, pieces_of
from understudy.proxy.dialects.openai_chat import OpenAIChat, StreamOptions, data_bytes, usage_of


class _Body(msgspec.Struct):
    prompt: Any = None
    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


_BODY = msgspec.json.Decoder(_Body)


class OpenAICompletions(OpenAIChat):
    """`openai-completions`: streams and errors are chat's; what is asked and written has shapes of its own."""

    name = "openai-completions"
    idle_fields = frozenset({"user"})

    def _asked(self, call: Call) -> GenerateAsk:
        if call.kind != "generate":
            raise Refused("unsupported", "only POST asks for a completion")
        body = parsed(_BODY, call.request.body)
        if body.prompt is None:
            # OpenAI's own would begin a document of its own
            raise Refused("unsupported", "there is no prompt: nothing that passages could answer")
        prompts = cast("list[Any]", body.prompt) if isinstance(body.prompt, list) else [body.prompt]
        prompt = prompts[0] if len(prompts) == 1 else None
        if not isinstance(prompt, str):
            raise Refused("unsupported", "several prompts, or one of tokens, cannot be answered from passages")
        if (body.n or 1) > 1 or (body.best_of or 1) > 1 or body.logprobs is not None or body.echo or body.suffix:
            raise Refused("unsupported", "n, best_of, logprobs, echo and suffix cannot be answered from passages")
        return GenerateAsk(
            ({"role": "user", "content": prompt},),
            body.model,
            stream=body.stream is True,
            include_usage=body.stream_options is not None and body.stream_options.include_usage is True,
        )

    def said(self, body: bytes) -> Written | None:  # noqa: ARG002 - whatever it says
        """Nothing: a completion goes on with a text, and no other one would be the same."""
        return None

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """The same text whole, or in pieces of a sentence or a line when a stream was asked for."""
        head = {
            "id": f"cmpl-{written.id}",
            "object": "text_completion",
            "created": written.created_s,
            "model": written.model,
            "understudy": {"fallback": written.source == "extractive", "source": written.source},
        }
        if not ask.stream:
            return json_answer(200, head | {"choices": [_choice(written.text, "stop")], "usage": usage_of(written)})
        told = [data_bytes(head | {"choices": [_choice(piece)]}) for piece in pieces_of(written.text)]
        told.append(data_bytes(head | {"choices": [_choice("", "stop")]}))
        if ask.include_usage:
            told.append(data_bytes(head | {"choices": [], "usage": usage_of(written)}))
        told.append(b"data: [DONE]\n\n")
        return Answer(200, list(EVENT_HEADERS), stream=HeldStream(told))


def _choice(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
