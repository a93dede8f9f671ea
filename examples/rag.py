"""Retrieval-augmented generation in ten lines: the official SDKs, unmodified but for their base URLs."""

import os

from openai import OpenAI
from qdrant_client import QdrantClient

question = "What does the circuit breaker do when a probe fails?"
ai = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8787/v1"), api_key="unused")
db = QdrantClient(os.environ.get("QDRANT_URL", "http://127.0.0.1:8787"))
vector = ai.embeddings.create(model="all-MiniLM-L6-v2", input=question).data[0].embedding
hits = db.query_points("knowledge", query=vector, limit=3).points
context = "\n\n".join(hit.payload["text"] for hit in hits)
prompt = f"Context:\n{context}\n\nQuestion: {question}"
answer = ai.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": prompt}])
print(answer.choices[0].message.content)
