"""A fake Milvus by its REST API, version 2: rows in memory, searched and queried exactly.

    python -m tests.kit.milvus_service --port N

    POST /v2/vectordb/collections/create, list, describe, has, drop, get_stats
    POST /v2/vectordb/entities/insert, upsert, delete, query, get, search
    GET  /healthz

It is as awkward as the real one: a query's rows come in no particular order (or as `order` says), a limit counts rows
that stand there twice under one key and are told once, and so does `count(*)`; statistics know nothing of deletes; keys
of 64 bits are texts where it is told to, unless a header allows them; fields of JSON are texts, arrays come as their
column holds them; numbers of 32 bits are rounded to such; without consistency Strong the last write is not seen; every
error is a 200. Filters are comparisons of the key, and those alone.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Literal

import numpy as np
from aiohttp import web

WINDOW = 16_384
LIMIT = 100
BODY_BYTES_MAX = 64 * 1024 * 1024
METRICS = ("COSINE", "IP", "L2")
Fields = dict[str, Any]
Key = int | str
Order = Literal["mixed", "keys", "backwards"]

_TERM = re.compile(
    r"\s*id\s*(<=|>=|==|<|>|in)\s*(\[.*?\](?=\s*(?:and|$))|\"(?:[^\"\\\r\n]|\\.)*\"|-?\d+)\s*(and|$)", re.S
)
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "in": lambda key, keys: key in keys,
}


class _Told(Exception):
    """An error by its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Collection:
    """Fields by name, as describe tells of them, and rows by key: all that were ever inserted under it."""

    def __init__(
        self, fields: dict[str, Fields], metrics: dict[str, str], functions: list[Fields] | None = None
    ) -> None:
        self.fields = fields
        self.metrics = metrics
        self.functions = functions or []
        self.rows: dict[Key, list[Fields]] = {}
        self.before: dict[Key, list[Fields]] = {}
        self.inserted = 0
        self.loaded = True
        self.next_id = 450_000_000_000_000_000

    def put(self, row: Fields, *, over: bool) -> Key:
        """A row under its own key, or a new one; `over` what is there, or beside it."""
        called = row.get("id")
        if called is None:
            if not self.fields["id"].get("autoId"):
                raise _Told(1804, "fail to deal the insert data, error: missing id")
            self.next_id += 1
            called = self.next_id
        called = int(called) if self.fields["id"]["type"] == "Int64" else str(called)
        kept = {"id": called}
        for name, value in row.items():
            if name != "id" and value is not None:
                kept[name] = _kept(value, self.fields.get(name, {}).get("type", ""))
        self.rows[called] = [kept] if over else [*self.rows.get(called, ()), kept]
        self.inserted += 1
        return called

    def row(self, called: Key) -> Fields:
        """What is told of a key: the last that was inserted."""
        nothing = {name: None for name, field in self.fields.items() if field.get("nullable")}
        return {**nothing, **self.rows[called][-1]}


def quick(
    dimension: int, *, key: str = "Int64", metric: str = "COSINE", vector: str = "vector", **types: str
) -> Collection:
    """A collection as the quick way makes it, with fields of these types beside."""
    fields = {"id": {"type": key}, vector: {"type": "FloatVector", "dim": dimension}}
    return Collection(
        fields | {name: {"type": kind, "nullable": True} for name, kind in types.items()}, {vector: metric}
    )


class Rows(MutableMapping[str, Fields]):
    """A collection's rows by their keys, without these, for tests that change them past everybody."""

    def __init__(self, made: Collection) -> None:
        self._made = made

    def __getitem__(self, called: str) -> Fields:
        row = {name: value for name, value in self._made.row(called).items() if name != "id"}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}

    def __setitem__(self, called: str, row: Fields) -> None:
        self._made.put({"id": called, **row}, over=True)

    def __delitem__(self, called: str) -> None:
        del self._made.rows[called]

    def __iter__(self) -> Iterator[str]:
        return iter([str(each) for each in self._made.rows])

    def __len__(self) -> int:
        return len(self._made.rows)


class FakeMilvus:
    """Databases of collections, '' the usual one; `asked` is what was asked for, in turn, and `order` the one that
    queries answer in: by keys, from the last on, or mixed. `javascript` has integers told as texts, unless a header
    says otherwise."""

    def __init__(self, order: Order = "mixed", *, javascript: bool = False) -> None:
        self.javascript = javascript
        self.databases: dict[str, dict[str, Collection]] = {"": {}}
        self.asked: list[tuple[str, Fields]] = []
        self.order: Order = order

    @property
    def collections(self) -> dict[str, Collection]:
        """Those of the usual database."""
        return self.databases[""]

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v2/vectordb/{noun}/{verb}", self._any)
        app.router.add_get("/healthz", _healthy)
        return app

    def told(self, act: str) -> list[Fields]:
        """What was asked for by this act."""
        return [body for name, body in self.asked if name == act]

    async def _any(self, request: web.Request) -> web.Response:
        act = f"{request.match_info['noun']}/{request.match_info['verb']}"
        allowed = request.headers.get("Accept-Type-Allow-Int64", "")
        return web.json_response(self.answered(act, await request.json(), int64=allowed))

    def answered(self, act: str, body: Fields, *, int64: str = "") -> Fields:
        """What it answers; `int64` is what the header says."""
        self.asked.append((act, body))
        does = getattr(self, "_" + act.replace("/", "_"), None)
        if does is None:
            return {"code": 404, "message": "page not found"}
        try:
            data = does(body)
        except _Told as error:
            return {"code": error.code, "message": str(error)}
        return {
            "code": 0,
            "cost": 0,
            "data": data if int64 == "true" or (not int64 and not self.javascript) else _for_javascript(data),
        }

    # --- collections -----------------------------------------------------------------------------------------------

    def _named(self, body: Fields) -> Collection:
        database = body.get("dbName", "")
        if database not in self.databases:
            raise _Told(800, f"database not found, database: {database}")
        name = body.get("collectionName")
        if not name:
            raise _Told(1802, "missing required parameters, error: collectionName")
        if name not in self.databases[database]:
            raise _Told(100, f"can't find collection[database={database or 'default'}][collection={name}]")
        return self.databases[database][name]

    def _loaded(self, body: Fields) -> Collection:
        made = self._named(body)
        if not made.loaded:
            raise _Told(101, f"collection not loaded[collection={body['collectionName']}]")
        return made

    def _collections_create(self, body: Fields) -> Fields:
        if "schema" not in body:
            made = quick(body["dimension"], key=body.get("idType", "Int64"), metric=body.get("metricType", "COSINE"))
            made.fields["id"]["autoId"] = bool(body.get("autoID"))
        else:
            schema = body["schema"]
            fields = {each["fieldName"]: _field(each, schema) for each in schema["fields"]}
            metrics = {each["fieldName"]: each["metricType"] for each in body.get("indexParams", ())}
            made = Collection(fields, metrics, schema.get("functions"))
            made.loaded = bool(metrics)
        self.databases[body.get("dbName", "")][body["collectionName"]] = made
        return {}

    def _collections_list(self, body: Fields) -> list[str]:
        if body.get("dbName", "") not in self.databases:
            raise _Told(800, "database not found")
        return list(self.databases[body.get("dbName", "")])

    def _collections_has(self, body: Fields) -> Fields:
        return {"has": body["collectionName"] in self.databases[body.get("dbName", "")]}

    def _collections_drop(self, body: Fields) -> Fields:
        self.databases[body.get("dbName", "")].pop(body["collectionName"], None)
        return {}

    def _collections_get_stats(self, body: Fields) -> Fields:
        return {"rowCount": self._named(body).inserted}

    def _collections_describe(self, body: Fields) -> Fields:
        made = self._named(body)
        return {
            "collectionName": body["collectionName"],
            "autoId": bool(made.fields["id"].get("autoId")) if "id" in made.fields else False,
            "enableDynamicField": True,
            "fields": [_detail(name, field, number) for number, (name, field) in enumerate(made.fields.items(), 100)],
            "functions": [{**each, "type": 1} for each in made.functions],
            "indexes": [
                {"fieldName": name, "indexName": name, "metricType": metric} for name, metric in made.metrics.items()
            ],
            "load": "LoadStateLoaded" if made.loaded else "LoadStateNotLoad",
        }

    # --- rows ------------------------------------------------------------------------------------------------------

    def _written(self, body: Fields, *, over: bool) -> list[Key]:
        made = self._named(body)
        made.before = dict(made.rows)
        data = body["data"] if isinstance(body["data"], list) else [body["data"]]
        return [made.put(row, over=over) for row in data]

    def _entities_insert(self, body: Fields) -> Fields:
        keys = self._written(body, over=False)
        return {"insertCount": len(keys), "insertIds": keys}

    def _entities_upsert(self, body: Fields) -> Fields:
        keys = self._written(body, over=True)
        return {"upsertCount": len(keys), "upsertIds": keys}

    def _entities_delete(self, body: Fields) -> Fields:
        made = self._named(body)
        if not body.get("filter"):
            raise _Told(1802, "missing required parameters, error: filter")
        made.before = dict(made.rows)
        for called in list(filter(_passes(body["filter"]), made.rows)):
            del made.rows[called]
        return {}

    def _seen(self, made: Collection, body: Fields) -> list[Key]:
        """The keys that a read sees, as they come: each as often as it was inserted."""
        strong = body.get("consistencyLevel") == "Strong"
        rows = made.rows if strong else made.before
        keys = sorted((key for key in rows if key in made.rows), reverse=self.order == "backwards")
        if self.order == "mixed":
            keys.sort(key=lambda key: hashlib.blake2b(repr(key).encode(), digest_size=8).digest())
        return [key for key in keys for _ in made.rows[key]]

    def _entities_query(self, body: Fields) -> list[Fields]:
        made = self._loaded(body)
        limit, offset = body.get("limit", LIMIT), body.get("offset", 0)
        if not 0 <= limit + offset <= WINDOW:
            raise _Told(65535, f"invalid max query result window, (offset+limit) should be in range [1, {WINDOW}]")
        keys = list(filter(_passes(body.get("filter", "")), self._seen(made, body)))
        wanted = body.get("outputFields", ["*"])
        if wanted == ["count(*)"]:
            return [{"count(*)": len(keys)}]
        if limit == 0 and not body.get("filter"):
            raise _Told(1100, "empty expression should be used with limit")
        # what is there twice is told once, behind the limit
        some = dict.fromkeys(keys[offset : offset + limit] if limit else keys)
        return [_shown(made, made.row(key), wanted) for key in some]

    def _entities_get(self, body: Fields) -> list[Fields]:
        made = self._loaded(body)
        asked = body["id"] if isinstance(body["id"], list) else [body["id"]]
        texts = made.fields["id"]["type"] == "VarChar"
        # what stands between the quotes is whatever was asked for
        passes = _passes("id in [" + ", ".join(f'"{each}"' if texts else str(int(each)) for each in asked) + "]")
        keys = dict.fromkeys(filter(passes, self._seen(made, body)))
        return [_shown(made, made.row(key), body.get("outputFields", ["*"])) for key in keys]

    def _entities_search(self, body: Fields) -> list[Fields]:
        made = self._loaded(body)
        name = body.get("annsField") or next(iter(made.metrics))
        if name not in made.metrics:
            raise _Told(1100, f"failed to create query plan: failed to get field schema by name: fieldName({name})")
        passes = _passes(body.get("filter", ""))
        found: list[Fields] = []
        for asked in body["data"]:
            vector = np.array(asked, np.float32)
            if len(vector) != made.fields[name]["dim"]:
                raise _Told(1100, f"vector dimension mismatch, expected {made.fields[name]['dim']}")
            keys = dict.fromkeys(key for key in self._seen(made, body) if passes(key) and name in made.rows[key][-1])
            scored = [(key, _score(np.array(made.row(key)[name]), vector, made.metrics[name])) for key in keys]
            scored.sort(key=lambda each: each[1] if made.metrics[name] == "L2" else -each[1])
            wanted = [each for each in body.get("outputFields", ()) if each != "id"]
            found += [
                {"id": key, "distance": score, **_shown(made, made.row(key), wanted)}
                for key, score in scored[: body.get("limit", LIMIT)]
            ]
        return found


def _score(held: Any, asked: Any, metric: str) -> float:
    if metric == "L2":
        return float(((held - asked) ** 2).sum())
    score = float(held @ asked)
    return score if metric == "IP" else score / float(np.linalg.norm(held) * np.linalg.norm(asked))


def _passes(expression: str) -> Callable[[Key], bool]:
    """What a filter says of a key. Raises _Told for one that is no comparisons of keys, joined by `and`."""
    terms: list[tuple[Callable[[Any, Any], bool], Any]] = []
    at = 0
    while at < len(expression.rstrip()):
        match = _TERM.match(expression, at)
        if match is None:
            raise _Told(1100, f"failed to create query plan: cannot parse expression: {expression[:100]}")
        terms.append((_COMPARED[match[1]], ast.literal_eval(match[2].replace("\n", "\\n"))))
        at = match.end()
    return lambda key: all(holds(key, wanted) for holds, wanted in terms)


def _field(each: Fields, schema: Fields) -> Fields:
    dim = (each.get("elementTypeParams") or {}).get("dim")
    made: Fields = {"type": each["dataType"], "primary": bool(each.get("isPrimary")), "nullable": each.get("nullable")}
    made |= {"autoId": bool(schema.get("autoId")) and made["primary"]}
    return made | ({"dim": int(dim)} if dim else {})


def _detail(name: str, field: Fields, number: int) -> Fields:
    detail: Fields = {"id": number, "name": name, "type": field["type"], "nullable": bool(field.get("nullable"))}
    detail |= {"primaryKey": field.get("primary", name == "id"), "partitionKey": False, "description": ""}
    return detail | ({"params": [{"key": "dim", "value": str(field["dim"])}]} if "dim" in field else {})


def _kept(value: Any, kind: str) -> Any:
    """A value as a column of this type keeps it."""
    if kind == "FloatVector":
        return np.array(value, np.float32)
    if kind == "Float":
        return float(str(np.float32(value)))
    return json.dumps(value) if kind == "JSON" else value


_COLUMNS = ((bool, "BoolData"), (int, "LongData"), (float, "DoubleData"), (str, "StringData"))


def _shown(made: Collection, row: Fields, wanted: list[str]) -> Fields:
    shown: Fields = {}
    for name, value in row.items():
        if "*" not in wanted and name not in wanted:
            continue
        kind = made.fields.get(name, {}).get("type")
        if isinstance(value, np.ndarray):
            shown[name] = [float(str(number)) for number in value]
        elif kind == "Array" and value is not None:
            column = next((each for type_, each in _COLUMNS if value and isinstance(value[0], type_)), "LongData")
            shown[name] = {"Data": {column: {"data": value} if value else {}}}
        elif not any(name in each["outputFieldNames"] for each in made.functions):
            shown[name] = value
    return shown


def _for_javascript(data: Any) -> Any:
    """Integers of 64 bits as texts, in keys and rows."""
    if isinstance(data, list):
        return [_for_javascript(each) for each in data]
    if isinstance(data, dict):
        return {
            name: str(value)
            if name == "id" and type(value) is int
            else [str(each) for each in value]
            if name in ("insertIds", "upsertIds")
            else value
            for name, value in data.items()
        }
    return data


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


def main() -> None:
    """Serve until a signal comes."""
    words = argparse.ArgumentParser(description="A fake Milvus, in memory.")
    words.add_argument("--port", type=int, required=True)

    async def app() -> web.Application:
        return FakeMilvus().app()

    web.run_app(app(), host="127.0.0.1", port=words.parse_args().port, print=None, access_log=None)


if __name__ == "__main__":
    main()
