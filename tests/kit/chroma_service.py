"""chromadb's own server, as a process of a test's own.

`make .venv-chroma/.installed` installs it; without it a test is skipped, which in CI is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.kit.processes import REPOSITORY, Process, free_port, needs

PROGRAM = REPOSITORY / ".venv-chroma" / "bin" / "chroma"


class ChromaService(Process):
    """The real server over a folder: what it stores is there again when it is started anew."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        program = os.environ.get("CHROMA_PROGRAM") or (str(PROGRAM) if PROGRAM.exists() else needs("chroma"))
        command = [program, "run", "--host", "127.0.0.1", "--port", str(self.port), "--path", str(folder)]
        super().__init__(command, ready_port=self.port, ready_path="/api/v2/heartbeat")

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"
