"""What the policy files say about the journal and what is learnt from it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.proxy.settings.types import Frozen


class Journal(Frozen, frozen=True):
    """What is kept of failures and changes, and whether anybody is warned by it."""

    enabled: bool = True
    """Keep `journal.sqlite` in the state folder. Without it, what is learnt is forgotten with the process."""
    bytes_max: Annotated[int, Meta(ge=4 * 1024 * 1024, description="bytes, 4 MiB at least")] = 50 * 1024 * 1024
    """What it may take on the disk, from the next start on; the oldest entries go first."""
    warns: bool = True
    """Tell receivers of alerts, as a warning, of a risk that has earned trust."""
