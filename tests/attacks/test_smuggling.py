"""Every row of the tables, in every packeting, on routes that forward and routes that guard, first and second."""

from __future__ import annotations

import pytest

from tests.attacks import oracle
from tests.attacks.rig import UPSTREAM, Outcome, Rig, cuttings
from tests.attacks.smuggling import Row
from tests.attacks.smuggling_heads import ROWS

pytestmark = pytest.mark.virtual_clock(io_grace_s=0)

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
GOOD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(CHAT), CHAT)
)
ROUTES = ("plain", "openai-chat")


def wrongs(row: Row, outcome: Outcome, *, first: bytes = b"") -> list[str]:
    """What became of a row that should not have."""
    data = first + row.data
    meant = oracle.requests(data)
    served = ((CHAT,) if first else ()) + row.served
    # a star for OPTIONS is answered by the door
    forwarded = [said for said in meant if said.target != b"*"]
    found = oracle.faults(outcome.received, forwarded, UPSTREAM)
    if tuple(said.body for said in forwarded) != served:
        found.append(f"the oracle reads {[said.body for said in forwarded]}, the row {served}")
    bodies = [said.body for said in oracle.requests(outcome.received)]
    if sorted(bodies) != sorted(served):
        found.append(f"forwarded {bodies} for {served}")
    statuses = outcome.statuses
    if row.refused:
        if not statuses or statuses[-1] not in row.refused or len(statuses) != len(served) + 1:
            found.append(f"answered {statuses}, not {len(served)} times and then one of {set(row.refused)}")
        if not outcome.closed:
            found.append("the connection stays open")
    elif [status for status in statuses if status != 200] not in ([], [404]):
        found.append(f"answered {statuses}")
    return found


@pytest.mark.parametrize("dialect", ROUTES)
@pytest.mark.parametrize("before", [b"", GOOD], ids=["first", "second"])
async def test_no_row_is_read_twice_in_any_packeting(dialect: str, before: bytes):
    rig = Rig(dialect)
    found: list[str] = []
    for row in ROWS:
        for how, packets in cuttings(row.data).items():
            outcome = await rig.dialogue([before, *packets] if before else packets)
            found += [f"{row.name}, {how}: {wrong}" for wrong in wrongs(row, outcome, first=before)]
    assert not found, f"{len(found)}\n" + "\n".join(one[:400] for one in found[:60])


async def test_what_is_remembered_of_one_head_is_not_believed_of_another():
    rig = Rig()
    for row in [*ROWS, *reversed(ROWS), *ROWS]:
        assert not wrongs(row, await rig.dialogue([row.data])), row.name


async def test_of_all_cases_none_is_forwarded_wrongly(capsys: pytest.CaptureFixture[str]):
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    refused = served = wrong = dialogues = 0
    rig = Rig()
    for row in ROWS:
        outcomes = [await rig.dialogue(packets) for packets in cuttings(row.data).values()]
        dialogues += len(outcomes)
        refused += bool(row.refused) and all(outcome.closed for outcome in outcomes)
        served += not row.refused
        wrong += any(wrongs(row, outcome) for outcome in outcomes)
    with capsys.disabled():
        print(f"\nattacks: {len(ROWS)} cases in {dialogues} packetings: {refused} refused, {served} served as the")
        print(f"requests that they are, {wrong} forwarded wrongly")
    assert (wrong, refused + served) == (0, len(ROWS))
    assert len(ROWS) >= 400
