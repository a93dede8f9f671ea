"""What the policy files say of a small language model that the sidecar runs beside itself."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.proxy.settings.types import Count, Frozen


class Llm(Frozen, frozen=True):
    """A child process that serves one model as OpenAI's chat completions, for a tier to name by its address."""

    folder: str
    """The model's folder: genai_config.json, weights and tokenizer, as onnxruntime-genai's model builder makes it."""
    listen: Annotated[str, Meta(pattern=r"^(127\.0\.0\.1|\[::1\]|localhost):[0-9]{1,5}$")] = "127.0.0.1:8789"
    """Where it is served, on loopback: the url of the tier that asks it."""
    answer_tokens_max: Count = 512
    """The longest answer, in tokens."""
    waiting_max: Annotated[int, Meta(ge=0, le=1024)] = 4
    """Calls that may wait while one is answered; more get a 503."""
    wait_s_max: Annotated[float, Meta(gt=0, le=3600, description="seconds")] = 30.0
    """How long a call waits for its turn before it gets a 503."""
