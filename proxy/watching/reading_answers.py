"""Read of an answer what can be compared with another's: the ids of points, and vectors.

Off the hot path: it parses whole bodies, which nobody does for a call that somebody waits for.
"""

from __future__ import annotations

import re
from array import array
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from understudy.policies.compare import VECTORS_MAX, Results
from understudy.policies.service import Answer, Call
from understudy.proxy.dialects.base import is_encoded

BODY_BYTES_MAX = 1024 * 1024
"""A longer answer is not parsed for a comparison: 1 MiB takes 10 ms, and other calls wait meanwhile."""


def results_of(_call: Call, answer: Answer, vectors_max: int = VECTORS_MAX) -> Results:
    """What a search or an embeddings answer of one of our dialects found, with the numbers of so many vectors.

    Raises ValueError where it can't be read.
    """
    if answer.stream is not None or is_encoded(answer) or len(answer.body) > BODY_BYTES_MAX:
        raise ValueError("the body is streamed, compressed or too long")
    try:
        body: Any = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ValueError("no JSON") from fault
    if isinstance(body, list) and body:
        # TEI's, which has nothing around its vectors
        return Results(vectors=_vectors(_bare(cast("list[Any]", body)), vectors_max))
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    fields = cast("dict[str, Any]", body)
    if "result" in fields:
        lists = _lists(fields["result"])
        return Results([_ids(each) for each in lists], scores=[_scores(each) for each in lists])
    if "ids" in fields:
        return Results(rankings=_chroma_rankings(fields["ids"]))
    if isinstance(fields.get("hits"), dict):
        found: Any = fields["hits"].get("hits")
        return Results([_ids(found, "_id")], scores=[_scores(found, "_score")])
    if "matches" in fields:
        return Results([_ids(fields["matches"])], scores=[_scores(fields["matches"])])
    return Results(vectors=_vectors(_data(fields), vectors_max))


def _data(fields: dict[str, Any]) -> Any:
    """The vectors as OpenAI writes them: Ollama's are bare, or one alone, and Cohere's stand under their type."""
    if "data" in fields:
        return fields["data"]
    if "embedding" in fields:
        return [fields]
    bare: Any = fields.get("embeddings")
    if isinstance(bare, dict):
        by_type = cast("dict[str, Any]", bare)
        bare = by_type.get("float", by_type.get("base64"))
    return _bare(cast("list[Any]", bare)) if isinstance(bare, list) else None


def _bare(vectors: list[Any]) -> list[dict[str, Any]]:
    return [{"embedding": vector} for vector in vectors]


def _lists(result: Any) -> Sequence[Any]:
    """The lists of points: a search's one, or a batch's many."""
    if isinstance(result, dict):
        return [cast("dict[str, Any]", result).get("points")]
    if isinstance(result, list):
        lists = cast("list[Any]", result)
        if lists and all(isinstance(each, list) or (isinstance(each, dict) and "points" in each) for each in lists):
            return [each["points"] if isinstance(each, dict) else each for each in lists]
        return [lists]
    return []


def _scores(points: Any, key: str = "score") -> list[float]:
    """The scores of a list of points, one for each; [] where any has none."""
    if not isinstance(points, list):
        return []
    found = [cast("dict[str, Any]", each).get(key) for each in cast("list[Any]", points) if isinstance(each, dict)]
    scores = [float(each) for each in found if isinstance(each, int | float)]
    return scores if len(scores) == len(found) else []


def _chroma_rankings(ids: Any) -> Sequence[Sequence[str]]:
    """A query's lists of ids, or a get's one."""
    if not isinstance(ids, list):
        return []
    lists = cast("list[Any]", ids)
    if lists and isinstance(lists[0], list):
        return [[str(each) for each in cast("list[Any]", found)] for found in lists if isinstance(found, list)]
    return [[str(each) for each in lists]]


def _ids(points: Any, key: str = "id") -> list[str]:
    if not isinstance(points, list):
        return []
    return [str(cast("dict[str, Any]", each).get(key)) for each in cast("list[Any]", points) if isinstance(each, dict)]


def _vectors(data: Any, vectors_max: int) -> Sequence[Sequence[float]]:
    if not isinstance(data, list):
        return []
    read: list[Sequence[float]] = []
    for number, item in enumerate(cast("list[Any]", data)):
        vector = cast("dict[str, Any]", item).get("embedding") if isinstance(item, dict) else None
        if number >= vectors_max:
            # its being there is compared, its numbers are not
            read.append(())
        elif isinstance(vector, str):
            read.append(array("f", b64decode(vector, validate=True)))
        elif isinstance(vector, list):
            read.append(cast("list[float]", vector))
    return read


def body_field(path: str) -> Callable[[Call], bytes]:
    """What reads a field of a JSON body, dots between the fields of fields: text or a number, else b"".

    A body without the field's name is not parsed.
    """
    names = path.split(".")
    there = re.compile(rb'"%b"\s*:' % re.escape(names[-1].encode()))
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def read(call: Call) -> bytes:
        body: bytes | msgspec.Raw = call.request.body
        if not there.search(call.request.body):
            return b""
        try:
            for name in names:
                body = decoder.decode(body).get(name, msgspec.Raw(b"null"))
            value: Any = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""
        return str(value).encode("utf-8", "surrogatepass") if isinstance(value, str | int | float) else b""

    return read
