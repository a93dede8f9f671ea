"""Say yes to a write that is kept to be carried out later, as its API says yes to one that has been.

    qdrant                      acknowledged, as it says itself when nobody waits for the result
    chroma, pinecone            tell nothing of what they did but a number
    elasticsearch, opensearch   202, with the numbers by which they say themselves that there is no version yet
    milvus                      the ids that the rows bring
    weaviate                    the object, in a batch as PENDING, which is its own word for it

Only where that promises no more than is kept. What depends on what is stored then (a document that must be new, a
version that must be as it was seen), ids that the database would make up, and how many points a filter finds, nobody
can say in its stead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from understudy.indexes.writes import Change, Create, Delete, Drop, Upsert
from understudy.policies.service import Answer, Call, Request
from understudy.proxy.dialects.base import Malformed, is_encoded, json_answer, parsed


class _Code(msgspec.Struct):
    code: int = 0


_CODE = msgspec.json.Decoder(_Code)


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
    if dialect in ("elasticsearch", "opensearch"):
        return _elastic(dialect, request)
    if dialect == "milvus":
        return _milvus(request, changes)
    return _weaviate(request, changes) if dialect == "weaviate" else None


def _elastic(dialect: str, request: Request) -> Answer | None:
    from understudy.proxy.dialects.elastic_writes import ACCEPTED, promised
    from understudy.proxy.dialects.elasticsearch import PRODUCT

    told = promised(request)
    if told is None:
        return None
    return json_answer(200 if "items" in told else ACCEPTED, told, PRODUCT if dialect == "elasticsearch" else [])


def _milvus(request: Request, changes: Sequence[Change]) -> Answer | None:
    told: dict[str, Any] = {}
    write = changes[0].write
    if isinstance(write, Upsert):
        ids = [point.id for point in write.points]
        word = "insert" if request.path.rstrip(b"/").endswith(b"/insert") else "upsert"
        told = {f"{word}Count": len(ids), f"{word}Ids": ids}
    elif not isinstance(write, Delete):
        return None
    return json_answer(200, {"code": 0, "cost": 0, "data": told})


def _weaviate(request: Request, changes: Sequence[Change]) -> Answer | None:
    is_batch = request.path.rstrip(b"/").endswith(b"/batch/objects")
    if request.method == b"DELETE":
        # how many objects a filter finds stands in the answer
        return None if is_batch else Answer(204, [], b"")
    if request.method == b"PATCH":
        return Answer(204, [], b"")
    upserted = [(change.collection, change.write) for change in changes if isinstance(change.write, Upsert)]
    if len(upserted) != len(changes):
        return None
    put = [(name, point) for name, write in upserted for point in write.points]
    objects = [{"class": name, "id": str(point.id), "properties": point.payload} for name, point in put]
    if is_batch:
        return json_answer(200, [{**each, "result": {"status": "PENDING"}} for each in objects])
    return json_answer(200, objects[0])


def repeatable(dialect: str, request: Request) -> tuple[bytes, bytes]:
    """The target and path by which a write may be carried out again without harm, should a kill come between the
    database's yes and ours: an insert into Milvus, twice, is two rows of one id, and an upsert one."""
    if dialect == "milvus" and request.path.endswith(b"/entities/insert"):
        upsert = b"/entities/upsert"
        path = request.path.removesuffix(b"/entities/insert") + upsert
        return request.target.replace(b"/entities/insert", upsert, 1), path
    return request.target, request.path


def rejected_within(dialect: str, call: Call, answer: Answer) -> str:
    """Why some of a write that its whole 2xx answer says yes to will never be had, in words for people, or ''."""
    if is_encoded(answer) or not answer.body:
        return ""
    try:
        if dialect in ("elasticsearch", "opensearch") and call.request.path.rstrip(b"/").endswith(b"/_bulk"):
            from understudy.proxy.dialects.elastic_writes import items_refused

            refused = items_refused(answer.body)
            return f"the database took all of it but {refused} documents" if refused else ""
        if dialect == "milvus":
            code = parsed(_CODE, answer.body).code
            return "" if code in (0, 200) else f"the database answered with its code {code}"
        if dialect == "weaviate" and call.request.path.rstrip(b"/").endswith(b"/batch/objects"):
            from understudy.proxy.dialects.weaviate_writes import batch_errors

            failed = sum(1 for _ in batch_errors(answer.body))
            return f"the database took all of it but {failed} objects" if failed else ""
    except Malformed:
        return "the database's answer can't be read"
    return ""
