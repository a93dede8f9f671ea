"""What applications put into prompts is found again: a table of the shapes that frameworks and people write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from understudy.models.prompts import PASSAGES_MAX, Passage, passages_in_prompt, question_in_prompt

TOWER = (
    "The Eiffel Tower was completed in 1889 for the World's Fair. It is 330 metres tall, including its antennas, and "
    "remained the tallest structure in the world until 1930, when the Chrysler Building in New York was finished."
)
BRIDGE = (
    "The Golden Gate Bridge opened in 1937. Its main span measures 1,280 metres, and its "
    "colour is called International "
    "Orange; the architect Irving Morrow chose it so that ships would see the bridge in the fog of the bay."
)
ASKED = "How tall is the Eiffel Tower?"


@dataclass
class Shape:
    """A prompt, and what must be found in it: each passage's source and text, and the question."""

    name: str
    messages: list[dict[str, Any]]
    passages: list[tuple[str, str]] = field(default_factory=list)
    question: str = ASKED


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


BOTH = [("passage 1", TOWER), ("passage 2", BRIDGE)]

SHAPES = [
    Shape(
        "LangChain, stuff chain",
        [
            user(
                "Use the following pieces of context to answer the question at the end. If you don't know "
                "the answer, just "
                "say that you don't know, don't try to make up an answer.\n\n"
                f"{TOWER}\n\n{BRIDGE}\n\nQuestion: {ASKED}\nHelpful Answer:"
            )
        ],
        BOTH,
    ),
    Shape(
        "LangChain, chat: instruction and context in the system message",
        [
            system(
                "Use the following pieces of context to answer the user's question. \nIf you don't know "
                "the answer, just say "
                f"that you don't know, don't try to make up an answer.\n----------------\n{TOWER}\n\n{BRIDGE}"
            ),
            user(ASKED),
        ],
        BOTH,
    ),
    Shape(
        "an announcement with the context right below it",
        [system(f"Answer with the help of the documents below.\n{TOWER}\n{BRIDGE}"), user(ASKED)],
        BOTH,
    ),
    Shape(
        "labels before each content",
        [user(f"Context:\nSource: a.md\nContent: {TOWER}\nSource: b.md\nContent: {BRIDGE}\n\nQuestion: {ASKED}")],
        [("a.md", TOWER), ("b.md", BRIDGE)],
    ),
    Shape(
        "LangChain hub, rag-prompt",
        [
            user(
                "You are an assistant for question-answering tasks. Use the following pieces of retrieved "
                "context to answer "
                "the question. If you don't know the answer, just say that you don't know. Use three "
                "sentences maximum and "
                f"keep the answer concise.\nQuestion: {ASKED} \nContext: {TOWER}\n\n{BRIDGE} \nAnswer:"
            )
        ],
        BOTH,
    ),
    Shape(
        "LangChain, create_retrieval_chain",
        [
            system(
                "You are an assistant for question-answering tasks. Use the following pieces of retrieved "
                "context to answer "
                "the question. If you don't know the answer, say that you don't know. Use three sentences "
                "maximum and keep "
                f"the answer concise.\n\n{TOWER}\n\n{BRIDGE}"
            ),
            user(ASKED),
        ],
        BOTH,
    ),
    Shape(
        "LangChain, qa with sources",
        [
            user(
                "Given the following extracted parts of a long document and a question, create a final answer with "
                'references ("SOURCES").\n\n'
                f"QUESTION: {ASKED}\n=========\nContent: {TOWER}\nSource: 28-pl\nContent: {BRIDGE}\nSource: 30-pl\n"
                "=========\nFINAL ANSWER:"
            )
        ],
        [("28-pl", TOWER), ("30-pl", BRIDGE)],
    ),
    Shape(
        "LlamaIndex, text_qa",
        [
            user(
                f"Context information is below.\n---------------------\n{TOWER}\n\n{BRIDGE}\n---------------------\n"
                "Given the context information and not prior knowledge, answer the query.\n"
                f"Query: {ASKED}\nAnswer: "
            )
        ],
        BOTH,
    ),
    Shape(
        "LlamaIndex, chat with file labels",
        [
            system("You are an expert Q&A system that is trusted around the world."),
            user(
                "Context information is below.\n---------------------\n"
                f"page_label: 4\nfile_path: /data/paris.pdf\n\n{TOWER}\n\npage_label: 9\nfile_path: "
                f"/data/bay.pdf\n\n{BRIDGE}\n"
                "---------------------\nGiven the context information and not prior knowledge, answer the query.\n"
                f"Query: {ASKED}\nAnswer: "
            ),
        ],
        [("/data/paris.pdf", TOWER), ("/data/bay.pdf", BRIDGE)],
    ),
    Shape(
        "LlamaIndex, citation query engine",
        [
            user(
                "Please provide an answer based solely on the provided sources. When referencing "
                "information from a source, "
                "cite the appropriate source(s) using their corresponding numbers. For example:\nSource "
                "1:\nThe sky is red in "
                "the evening and blue in the morning.\nNow it's your turn. Below are several numbered sources of "
                f"information:\n------\nSource 1:\n{TOWER}\nSource 2:\n{BRIDGE}\n------\nQuery: {ASKED}\nAnswer: "
            )
        ],
        [
            ("Source 1", "The sky is red in the evening and blue in the morning."),
            ("Source 1", TOWER),
            ("Source 2", BRIDGE),
        ],
    ),
    Shape(
        "Haystack",
        [
            user(
                "Given the following information, answer the question.\n\nContext:\n\n"
                f"    {TOWER}\n\n    {BRIDGE}\n\n\nQuestion: {ASKED}\nAnswer:"
            )
        ],
        BOTH,
    ),
    Shape(
        "OpenAI cookbook: triple quotes",
        [
            system("You answer questions about buildings."),
            user(
                "Use the below articles on buildings to answer the subsequent question. If the answer "
                "cannot be found in the "
                f'articles, write "I could not find an answer."\n\nWikipedia article section:\n"""\n{TOWER}\n"""\n\n'
                f'Wikipedia article section:\n"""\n{BRIDGE}\n"""\n\nQuestion: {ASKED}'
            ),
        ],
        BOTH,
    ),
    Shape(
        "numbered with brackets",
        [system(f"Answer using only these sources and cite them.\n\n[1] {TOWER}\n[2] {BRIDGE}"), user(ASKED)],
        [("[1]", TOWER), ("[2]", BRIDGE)],
    ),
    Shape(
        "Azure: file names in brackets",
        [user(f"{ASKED}\n\nSources:\n[paris.pdf#page=4]: {TOWER}\n[bay.pdf#page=9]: {BRIDGE}")],
        [("paris.pdf#page=4", TOWER), ("bay.pdf#page=9", BRIDGE)],
    ),
    Shape(
        "numbered documents with titles, Lost in the Middle",
        [
            user(
                "Write a high-quality answer for the given question using only the provided search results.\n\n"
                f"Document [1](Title: Paris) {TOWER}\nDocument [2](Title: The Bay) {BRIDGE}\n\nQuestion: "
                f"{ASKED}\nAnswer:"
            )
        ],
        [("Paris", TOWER), ("The Bay", BRIDGE)],
    ),
    Shape(
        "Markdown headings",
        [user(f"# Role\nYou are a helpful guide.\n\n# Context\n\n{TOWER}\n\n{BRIDGE}\n\n# Question\n\n{ASKED}\n")],
        BOTH,
    ),
    Shape(
        "bold heads",
        [user(f"**Context:**\n{TOWER}\n\n**Question:** {ASKED}")],
        [("passage 1", TOWER)],
    ),
    Shape(
        "context tag",
        [
            user(
                f"<context>\n{TOWER}\n\n{BRIDGE}\n</context>\n\nAnswer the question using the context above.\n\n{ASKED}"
            )
        ],
        BOTH,
    ),
    Shape(
        "Anthropic's documents",
        [
            user(
                "<documents>\n"
                '<document index="1">\n<source>paris.txt</source>\n<document_content>\n'
                f"{TOWER}\n</document_content>\n</document>\n"
                '<document index="2">\n<source>bay.txt</source>\n<document_content>\n'
                f"{BRIDGE}\n</document_content>\n</document>\n</documents>\n\n{ASKED}"
            )
        ],
        [("paris.txt", TOWER), ("bay.txt", BRIDGE)],
    ),
    Shape(
        "documents with attributes in the system message",
        [
            system(
                f'You know:\n<document id="12" title="Paris">{TOWER}</document>\n'
                f'<document id="13">{BRIDGE}</document>\n'
                "Be brief."
            ),
            user(ASKED),
        ],
        [("Paris", TOWER), ("document 13", BRIDGE)],
    ),
    Shape(
        "question in a tag",
        [user(f"<context>{TOWER}</context>\n<question>\n{ASKED}\n</question>\nThink step by step.")],
        [("passage 1", TOWER)],
    ),
    Shape("a long paragraph, then a short question", [user(f"{TOWER}\n\n{ASKED}")], [("passage 1", TOWER)]),
    Shape("a short question, then long paragraphs", [user(f"{ASKED}\n\n{TOWER}\n\n{BRIDGE}")], BOTH),
    Shape("all on one line", [user(f"Context: {TOWER} Question: {ASKED} Answer:")], [("passage 1", TOWER)]),
    Shape("context, then a bare question", [user(f"Context:\n{TOWER}\n\n{BRIDGE}\n\n{ASKED}")], BOTH),
    Shape(
        "context head in capitals",
        [user(f"CONTEXT:\n{TOWER}\n\nQUESTION:\n{ASKED}\n\nANSWER:")],
        [("passage 1", TOWER)],
    ),
    Shape(
        "rules between passages",
        [system(f"Relevant documents:\n\n{TOWER}\n---\n{BRIDGE}"), user(ASKED)],
        BOTH,
    ),
    Shape(
        "instructions after the context",
        [
            user(
                f"Retrieved context:\n{TOWER}\n\nInstructions:\n- Answer in one sentence.\n- Cite the source.\n\n"
                f"User question: {ASKED}"
            )
        ],
        [("passage 1", TOWER)],
    ),
    Shape(
        "content parts",
        [
            system([{"type": "text", "text": f"Context:\n{TOWER}"}]),
            user([{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
        ],
        [("passage 1", TOWER)],
    ),
    Shape(
        "content parts: the context in one, the question in another",
        [user([{"type": "text", "text": f"Context:\n{TOWER}"}, {"type": "text", "text": ASKED}])],
        [("passage 1", TOWER)],
    ),
    Shape(
        "a tool's result",
        [
            user(ASKED),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "search"}}]},
            {"role": "tool", "tool_call_id": "1", "content": f"Source: paris.md\n{TOWER}"},
        ],
        [("paris.md", TOWER)],
    ),
    Shape(
        "a later turn: the context of the last question counts",
        [
            user(f"Context:\n{BRIDGE}\n\nQuestion: When did the bridge open?"),
            {"role": "assistant", "content": "In 1937."},
            user(f"Context:\n{TOWER}\n\nQuestion: {ASKED}"),
        ],
        [("passage 1", TOWER)],
    ),
    Shape(
        "a later turn without context of its own",
        [
            user(f"Context:\n{TOWER}\n\nQuestion: When was it built?"),
            {"role": "assistant", "content": "In 1889."},
            user(ASKED),
        ],
        [("passage 1", TOWER)],
    ),
    Shape(
        "a developer message",
        [{"role": "developer", "content": f"Context:\n{TOWER}"}, user(ASKED)],
        [("passage 1", TOWER)],
    ),
    Shape("no context at all", [system("You are a helpful assistant."), user(ASKED)]),
    Shape(
        "a question in several sentences",
        [user("I am in Paris. How tall is the tower?")],
        [],
        "I am in Paris. How tall is the tower?",
    ),
    Shape("an order, not a question", [user("Write a poem about the sea.")], [], "Write a poem about the sea."),
    Shape(
        "Chinese",
        [user("上下文信息如下。\n<context>埃菲尔铁塔于1889年建成。它高330米。</context>\n\n埃菲尔铁塔有多高？")],
        [("passage 1", "埃菲尔铁塔于1889年建成。它高330米。")],
        "埃菲尔铁塔有多高？",
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_passages_and_question_are_found_in(shape: Shape) -> None:
    found = passages_in_prompt(shape.messages)
    assert [passage.source for passage in found] == [source for source, _ in shape.passages], found
    for passage, (_, text) in zip(found, shape.passages, strict=True):
        assert " ".join(passage.text.split()).startswith(text)
        assert len(passage.text) < len(text) + 60
    assert question_in_prompt(shape.messages) == shape.question


def test_what_a_system_message_says_to_the_model_is_never_taken_for_a_passage() -> None:
    secret = "You are Hal. Never reveal that the discount code is MOON. " * 10
    messages = [system(f"{secret}\n\nBe brief.\n\n{secret}"), user(ASKED)]
    assert passages_in_prompt(messages) == []


def test_nor_is_what_the_assistant_said_before() -> None:
    messages = [user(ASKED), {"role": "assistant", "content": f"Context:\n{TOWER}"}, user("And the bridge?")]
    assert passages_in_prompt(messages) == []
    assert question_in_prompt(messages) == "And the bridge?"


def test_a_passage_that_stands_there_twice_is_given_once() -> None:
    messages = [system(f"Context:\n{TOWER}"), user(f"Context:\n{TOWER}\n\nQuestion: {ASKED}")]
    assert passages_in_prompt(messages) == [Passage("passage 1", TOWER)]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [None, 3, {"type": "text"}, {"text": None}]}],
        [{"role": None, "content": "x"}],
        [user("<context>"), user("</context><document></document>```")],
        [user("Question:\nAnswer:")],
        [user("Context:\n\n\n")],
        [system("[1]\n[2]\n[]")],
    ],
)
def test_odd_messages_give_nothing_and_no_error(messages: list[dict[str, Any]]) -> None:
    assert passages_in_prompt(messages) == []
    assert isinstance(question_in_prompt(messages), str)


def test_passages_are_bounded_in_number_and_a_huge_prompt_is_read_in_time() -> None:
    many = "\n".join(f"[{number}] Passage number {number} says something." for number in range(1000))
    assert len(passages_in_prompt([system(many), user(ASKED)])) == PASSAGES_MAX
    # Shapes on which a careless pattern would backtrack for minutes.
    for bad in ("<context " * 40_000, "`" * 300_000, "a " * 200_000, "[" * 300_000, "\n" * 300_000, "- " * 100_000):
        passages_in_prompt([user(bad)])
        question_in_prompt([user(bad)])
