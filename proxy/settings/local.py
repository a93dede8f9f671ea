"""What the policy files say of the local model and the local indexes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.llm import Llm
from understudy.proxy.settings.types import Bytes, Count, FilePath, Frozen


class Local(Frozen, frozen=True):
    """The local model and the local indexes."""

    model: str = "all-MiniLM-L6-v2"
    """The embedded default, a name that `understudy models add` gave, or a folder with an understudy-model.yaml."""
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes CUDA where there is a device."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Threads that run the model side by side."""
    queue_texts_max: Count = 512
    """Texts that may wait for the model; more are refused."""
    collections_bytes_max: Bytes = 2 * 2**30
    """Memory that the local collections may take; opening one, or a write, that needs more is refused."""
    shadow_cpu_share: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.25
    """How much of a core may embed the texts of collections whose vectors are another model's. 0: none does."""
    bridge_cpu_share: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.1
    """How much of a core may embed texts that pass, where a copy has none: a map between the two spaces is fitted to
    them, and used while it proves itself. 0: none is made."""
    llm: Llm | None = None
    """A small language model of your own, run as a child of the sidecar; a tier asks it by its `listen` address."""
    knowledge: bool | list[FilePath] = True
    """What is indexed as `knowledge` at first start: our own operating handbook, nothing, or these files."""
