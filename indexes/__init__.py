"""Know where: exact and graph search, keyword search, filters, and the snapshots they are loaded from.

    paths --chunks--> passages --build--> points --snapshot--> CURRENT -> g-000002/ --collection--> hits
                                                              (store is the truth; matrix, graph, keywords derive)

Nothing here knows about sockets, policies or models. An embedder is an argument: texts in, float32 [n, d] out.
"""

from __future__ import annotations

from pathlib import Path

_KNOWLEDGE_SUFFIXES = (".md",)


def knowledge_files() -> list[Path]:
    """The Markdown files of the knowledge base that ships with the package, sorted by name; [] if there are none."""
    folder = Path(__file__).parent / "knowledge"
    return sorted(path for path in folder.glob("*") if path.suffix in _KNOWLEDGE_SUFFIXES and path.is_file())
