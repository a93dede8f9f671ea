"""Write models/probes.json: the self-test's sentences, and what the float64 reference makes of them.

Run by hand when the sentences change: `python -m tests.models.make_probes`.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from understudy.models.built import MINILM
from understudy.models.reference import Reference
from understudy.models.weights import package_folder, read_safetensors

SENTENCES = [
    "The understudy knows the part, and the show continues.",
    "How long may a retrieval service be away before its neighbours notice?",
    "Überall dieselbe Frage: 42 Züge, 3.5 km, ¿qué hora es? 東京",
]


def main() -> None:
    folder = package_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [encoding.ids for encoding in tokenizer.encode_batch(SENTENCES)]
    vectors = Reference(read_safetensors(folder / "model.safetensors"), MINILM.shape).embed(rows)
    page = {
        "about": "all-MiniLM-L6-v2 in float64 (tests/models/make_probes.py), rounded to six places",
        "sentences": SENTENCES,
        "vectors": [[round(float(value), 6) for value in vector] for vector in vectors],
    }
    target = Path(__file__).parents[2] / "models" / "probes.json"
    lines = json.dumps(page, ensure_ascii=False).replace("], [", "],\n[").replace(', "', ',\n"')
    target.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
