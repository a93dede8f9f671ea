"""Find points by the words in them: BM25 over stemmed English, kept by tantivy.

What a user typed is never parsed as a query: it is cut into words by the same analyzer as the texts (lower case,
English stems, words beyond 40 bytes dropped), and a query is made of those words. So `title:(x OR` is three words.
Measured on 49 608 paragraphs: 0.2 ms a query, 13 MB; texts in other languages are found by whole words.

Where tantivy is not installed, SQLite's FTS5 stands in for it (`keywords_reserve`): `write_keywords` takes what there
is, and `open_keywords` what the folder was written by.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.faults import BadQuestion, CorruptIndex
from understudy.indexes.keywords_reserve import FILE, ReserveIndex, plain_words

QUERY_CHARS_MAX: Final = 20_000
# a pasted document asks for its rarest words; more of them cost time and change no ranking
QUERY_WORDS_MAX: Final = 64

_TEXT: Final = "text"
_ROW: Final = "row"
_WORD_BYTES_MAX: Final = 40
_HEAP_BYTES: Final = 64 * 2**20
_FIRST_FETCH: Final = 64


class _Analyzer(Protocol):
    def analyze(self, text: str) -> list[str]: ...


class _Result(Protocol):
    hits: list[tuple[float, object]]


class _Searcher(Protocol):
    num_docs: int

    def search(self, query: object, limit: int, count: bool) -> _Result: ...
    def doc_freq(self, field_name: str, field_value: str) -> int: ...
    def fast_field_values(self, field_name: str, doc_addresses: list[object]) -> list[int]: ...


class _Index(Protocol):
    schema: Any

    def writer(self, heap_size: int, num_threads: int) -> Any: ...
    def config_reader(self, reload_policy: str) -> None: ...
    def reload(self) -> None: ...
    def searcher(self) -> _Searcher: ...


class Keywords(Protocol):
    """What finds rows by words, whoever keeps them."""

    @property
    def count(self) -> int: ...
    def search(self, text: str, k: int, allowed: NDArray[np.bool_] | None = None) -> list[tuple[int, float]]: ...
    def count_of(self, word: str) -> int: ...


def write_keywords(texts: Iterable[str], folder: Path | None = None) -> Keywords:
    """Index `texts`, the n-th as row n, into an empty `folder` or into memory, by tantivy where it is installed."""
    return KeywordIndex.write(texts, folder) if has_tantivy() else ReserveIndex.write(texts, folder)


def open_keywords(folder: Path) -> Keywords:
    """Open what `write_keywords` left in a folder. Raises CorruptIndex, also where it took tantivy to write and that is
    no longer here: the words are in the store, and are indexed again."""
    if (folder / FILE).exists():
        return ReserveIndex.open(folder)
    if not has_tantivy():
        raise CorruptIndex(f"{folder.name}: was written by tantivy, which is not installed")
    return KeywordIndex.open(folder)


def has_tantivy() -> bool:
    """Whether tantivy can be imported."""
    try:
        return importlib.util.find_spec("tantivy") is not None
    except ValueError:
        # somebody has put None in its place among the modules, which keeps it from being imported
        return False


class KeywordIndex:
    """A keyword index that is never written again. Safe to search from any thread; tantivy lets go of the GIL."""

    def __init__(self, index: _Index) -> None:
        # the default would watch the folder from a thread of its own, for commits that never come
        index.config_reader("manual")
        index.reload()
        self._schema = index.schema
        self._searcher = index.searcher()

    @classmethod
    def write(cls, texts: Iterable[str], folder: Path | None = None) -> KeywordIndex:
        """Index `texts`, the n-th as row n, into an empty `folder`, or into memory."""
        tantivy = _tantivy()
        schema = (
            tantivy.SchemaBuilder()
            .add_text_field(_TEXT, stored=False, tokenizer_name="en_stem", index_option="freq")
            .add_unsigned_field(_ROW, stored=False, indexed=False, fast=True)
            .build()
        )
        index = tantivy.Index(schema) if folder is None else tantivy.Index(schema, path=str(folder))
        # one thread: rows stay in order, so equal scores come back by row
        writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        for row, text in enumerate(texts):
            document = tantivy.Document()
            document.add_text(_TEXT, text)
            document.add_unsigned(_ROW, row)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        return cls(index)

    @classmethod
    def open(cls, folder: Path) -> KeywordIndex:
        """Open what `write` left in a folder. Raises CorruptIndex."""
        try:
            return cls(cast("_Index", _tantivy().Index.open(str(folder))))
        except (ValueError, OSError) as error:
            raise CorruptIndex(f"{folder.name}: {error}") from error

    @property
    def count(self) -> int:
        """How many rows."""
        return self._searcher.num_docs

    def search(self, text: str, k: int, allowed: NDArray[np.bool_] | None = None) -> list[tuple[int, float]]:
        """At most k (row, BM25 score), best first; [] where no word of `text` occurs. `allowed` [n] limits the rows.

        Only the first QUERY_CHARS_MAX characters are looked at. Raises BadQuestion for a negative k.
        """
        if k < 0:
            raise BadQuestion(f"{k} results were asked for")
        words = self._words(text)
        live = self.count if allowed is None else int(np.count_nonzero(allowed))
        if not words or not min(k, live):
            return []
        query = self._query(words)
        if allowed is None:
            return self._ask(query, min(k, live))
        return self._ask_among(query, min(k, live), allowed)

    def count_of(self, word: str) -> int:
        """In how many rows a word of `words_of` occurs."""
        return self._searcher.doc_freq(_TEXT, word)

    def _ask_among(self, query: object, k: int, allowed: NDArray[np.bool_]) -> list[tuple[int, float]]:
        # tantivy cannot be handed a bitmap: ask for more until enough of them are allowed
        fetched = min(self.count, max(_FIRST_FETCH, 2 * k))
        while True:
            found = self._ask(query, fetched)
            kept = [hit for hit in found if allowed[hit[0]]]
            if len(kept) >= k or len(found) < fetched or fetched == self.count:
                return kept[:k]
            fetched = min(self.count, 8 * fetched)

    def _ask(self, query: object, k: int) -> list[tuple[int, float]]:
        hits = self._searcher.search(query, k, count=False).hits
        rows = self._searcher.fast_field_values(_ROW, [address for _, address in hits])
        return [(row, score) for row, (score, _) in zip(rows, hits, strict=True)]

    def _words(self, text: str) -> list[str]:
        words = list(dict.fromkeys(words_of(text[:QUERY_CHARS_MAX])))
        if len(words) <= QUERY_WORDS_MAX:
            return words
        known = [(self.count_of(word), word) for word in words]
        return [word for often, word in sorted(known) if often][:QUERY_WORDS_MAX]

    def _query(self, words: Sequence[str]) -> object:
        tantivy = _tantivy()
        should = tantivy.Occur.Should
        term: Callable[..., object] = tantivy.Query.term_query
        return tantivy.Query.boolean_query([(should, term(self._schema, _TEXT, word, "freq")) for word in words])


def words_of(text: str) -> list[str]:
    """The words that a text is found by, in order: as tantivy cuts and stems them, whole ones where it is not there."""
    # lone surrogates cannot cross into Rust; they are no word either
    clean = text.encode("utf-8", "replace").decode()
    return _analyzer().analyze(clean) if _stems() else plain_words(clean)


@lru_cache(maxsize=1)
def _stems() -> bool:
    return has_tantivy()


@lru_cache(maxsize=1)
def _analyzer() -> _Analyzer:
    """tantivy's `en_stem`, which it does not hand out, rebuilt from its parts."""
    tantivy = _tantivy()
    only = tantivy.Filter
    return cast(
        "_Analyzer",
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(only.remove_long(_WORD_BYTES_MAX))
        .filter(only.lowercase())
        .filter(only.stemmer("english"))
        .build(),
    )


def _tantivy() -> Any:
    # imported when first needed; its stubs leave out what is used here
    return importlib.import_module("tantivy")
