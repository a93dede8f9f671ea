"""Say yes to a write that is kept to be carried out later, as its API says yes to one that has been.

Only where that promises no more than is kept: Qdrant's `acknowledged` means as much, Chroma and Pinecone tell nothing
of what they did but a number. Elasticsearch, Milvus and Weaviate tell versions and ids that only they can make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from understudy.indexes.writes import Change, Create, Drop, Upsert
from understudy.policies.service import Answer, Request
from understudy.proxy.dialects.base import json_answer


def acknowledged(dialect: str, request: Request, changes: Sequence[Change]) -> Answer | None:
    """The answer to a write with these changes; None where nobody but the database can give it."""
    if not changes or any(isinstance(change.write, Create | Drop) for change in changes):
        return None
    if dialect == "qdrant":
        one = {"operation_id": 0, "status": "acknowledged"}
        is_batch = request.path.rstrip(b"/").endswith(b"/points/batch")
        result: Any = [one] * len(changes) if is_batch else one
        return json_answer(200, {"result": result, "status": "ok", "time": 0.0})
    if dialect == "chroma":
        return json_answer(201 if request.path.endswith(b"/add") else 200, {})
    if dialect == "pinecone":
        upserted = [change.write for change in changes if isinstance(change.write, Upsert)]
        return json_answer(200, {"upsertedCount": sum(len(each.points) for each in upserted)} if upserted else {})
    return None
