"""What a route may say when no model can be reached."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.proxy.settings.types import FilePath, Frozen


class LastWords(Frozen, frozen=True):
    """What is said when no model can be reached: prepared answers first, then what is kept, what can be quoted, and
    last a message. Never to who asked for tools or JSON."""

    answers: list[FilePath] = []
    """Files of questions and answers, watched as policy files are: JSONL, or YAML in a folder below."""
    cosine_min: Annotated[float, Meta(ge=0.8, le=1)] | None = 0.88
    """How near a question must be to one that was foreseen, by the local model's vectors; null: by its words alone."""
    message: str = ""
    """What is said where nothing else can be; without it the local tier has its own words, and others an error."""

    @property
    def asked_for(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.answers or self.message)
