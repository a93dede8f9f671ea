"""Share a tier's calls out over its endpoints: the least laden for its weight first, and another one on a retry."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.policies.service import Answer, Call, End, Failed, Refused, Service


class Peer:
    """One endpoint as the balance sees it. `outstanding` are the calls it has, streams included until they end."""

    __slots__ = ("name", "outstanding", "service", "weight")

    def __init__(self, name: str, service: Service, weight: float = 1.0) -> None:
        self.name = name
        self.service = service
        self.weight = weight
        self.outstanding = 0


def ranked(peers: Sequence[Peer], tried: Sequence[str]) -> list[Peer]:
    """The peers in the order they should be asked: those not tried yet, the least laden for their weight first."""
    return sorted(peers, key=lambda peer: (peer.name in tried, (peer.outstanding + 1) / peer.weight))


def balance(peers: Sequence[Peer]) -> Service:
    """Ask one of `peers`, or the next where one refuses; Refused when all did."""

    async def balanced(call: Call) -> Answer:
        refusal: Refused | None = None
        for peer in ranked(peers, call.tried):
            try:
                return await _ask(peer, call)
            except Refused as refused:
                refusal = refused
            except Failed as failed:
                if failed.away and any(other.name not in call.tried for other in peers):
                    # not this one again, and there is another
                    failed.again = True
                raise
        assert refusal is not None, "a tier has endpoints"
        raise refusal

    return balanced


async def _ask(peer: Peer, call: Call) -> Answer:
    call.tried.append(peer.name)
    peer.outstanding += 1
    answer: Answer | None = None
    try:
        answer = await peer.service(call)
        answer.source = peer.name
        return answer
    except Failed as failed:
        if failed.answer is not None:
            failed.answer.source = peer.name
        raise
    finally:
        if answer is None or answer.stream is None:
            peer.outstanding -= 1
        else:
            answer.stream.watch(lambda _end: _left(peer, _end))


def _left(peer: Peer, _end: End) -> None:
    peer.outstanding -= 1
