"""Send a sticky, nested share of calls to another arm: the same keys at every call, and more of them as it grows.

    key (a user, a session, a tenant) --blake2b with the salt--> a point in [0, 1)
    point < share ? the other arm : the main one

A key's point never moves, so raising the share only moves keys in, lowering it only moves them out, and the first 5 %
are among the 10 %. Another salt draws anew: two experiments don't meet the same users. `share` is a plain value that
whoever runs a release may change at any time; the next call goes by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from understudy.policies.deadline import Deadline
from understudy.policies.observe import SECONDS, Histogram
from understudy.policies.service import Answer, Call, Failed, Refused, Service

MAIN = "main"
"""What the route's own tiers are called among its arms."""

ARM_HEADER = b"x-understudy-arm"
_POINTS = 2**64

Key = Callable[[Call], bytes]
"""What of a call decides its arm; b"" where it has no such thing."""


class ArmTally:
    """What became of the calls that an arm was asked for: answers by hundreds of their status, the others by kind."""

    __slots__ = ("answers", "failed", "refused", "seconds")

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self.failed = 0
        self.refused = 0
        self.seconds = Histogram(SECONDS)


class Split:
    """The pure heart: which arm a key belongs to, and what has become of each arm's calls.

    `share` is a share of one, of all keys; 0 sends nobody, 1 everybody.
    """

    __slots__ = ("_seed", "arm", "configured", "fell_back", "forced", "share", "tallies", "unkeyed")

    def __init__(self, arm: str, share: float, salt: str) -> None:
        self.arm = arm
        self.share = self.configured = share
        # its length goes in first, so that no salt and key spell another salt's
        told = salt.encode()
        self._seed = blake2b(b"%d %b" % (len(told), told), digest_size=8)
        self.tallies = {MAIN: ArmTally(), arm: ArmTally()}
        self.unkeyed = 0
        self.forced = 0
        self.fell_back = 0

    def carry(self, old: Split) -> None:
        """Go on where `old` was before a reload: with its counts, and with a share that was set live, unless the arm or
        the configured share is another now."""
        if old.arm == self.arm and old.configured == self.configured:
            self.share = old.share
        self.tallies = {arm: old.tallies.get(arm, tally) for arm, tally in self.tallies.items()}
        self.unkeyed, self.forced, self.fell_back = old.unkeyed, old.forced, old.fell_back

    def point(self, key: bytes) -> float:
        """Where `key` stands in [0, 1): the same in every process and at every time."""
        spelt = self._seed.copy()
        spelt.update(key)
        return int.from_bytes(spelt.digest()) / _POINTS

    def arm_of(self, key: bytes) -> str:
        """The arm that `key` belongs to. A call without a key stays where it was: b"" is nobody's."""
        if not key:
            self.unkeyed += 1
            return MAIN
        return self.arm if self.point(key) < self.share else MAIN


class Manner(NamedTuple):
    """How a split treats its calls: whether the main arm answers for the other one, and whether callers may choose."""

    falls_back: bool = True
    forced_by_header: bool = False


def first_key(keys: Sequence[Key]) -> Key:
    """The first of `keys` that a call has."""

    def found(call: Call) -> bytes:
        for key in keys:
            if value := key(call):
                return value
        return b""

    return found


def header_key(name: bytes) -> Key:
    """The value of a header, its name in lower case."""
    return lambda call: call.request.header(name) or b""


def tenant_key(call: Call) -> bytes:
    """Who asks, by the credentials shown."""
    return call.tenant


def caller_key(call: Call) -> bytes:
    """The address the call came from; none on a Unix socket."""
    return call.request.hop.address


def call_key(call: Call) -> bytes:
    """The call's own id: the share is kept, and nothing is sticky unless the caller sends `x-request-id`."""
    return call.id.encode()


def split(
    arms: Mapping[str, Service],
    heart: Split,
    clocks: Deadline,
    key: Key,
    *,
    manner: Manner,
    clock: Callable[[], float],
) -> Service:
    """Send each call to its arm. `arms` has MAIN and the heart's own arm; `clocks` keeps time back for the main one.

    An arm that refuses or fails costs nobody an answer: the main arm is asked, and the trail says why. Raises what the
    arm raised where the manner forbids that, or where a write may have been carried out already.
    """
    main, other = arms[MAIN], arms[heart.arm]

    async def divided(call: Call) -> Answer:
        arm = _forced(call, heart) if manner.forced_by_header else ""
        if arm:
            heart.forced += 1
        else:
            arm = heart.arm_of(key(call))
        if arm == MAIN:
            return await _counted(main, call, MAIN, heart, clock)
        if not manner.falls_back:
            return await _counted(other, call, arm, heart, clock)
        whole = call.deadline
        # the arm must leave enough for the main one to answer in its place
        call.deadline = call.until = clocks.for_tier(clock(), whole, last=False)
        try:
            return await _counted(other, call, arm, heart, clock)
        except Failed as failed:
            if not failed.elsewhere:
                raise
        except Refused:
            pass
        finally:
            call.deadline = call.until = whole
        heart.fell_back += 1
        return await _counted(main, call, MAIN, heart, clock)

    return divided


def _forced(call: Call, heart: Split) -> str:
    """The arm that the caller asks for, if there is one of that name."""
    wanted = call.request.header(ARM_HEADER)
    named = "" if wanted is None else wanted.decode("latin-1")
    return named if named in heart.tallies else ""


async def _counted(service: Service, call: Call, arm: str, heart: Split, clock: Callable[[], float]) -> Answer:
    tally = heart.tallies[arm]
    began = clock()
    try:
        answer = await service(call)
    except Failed:
        tally.failed += 1
        raise
    except Refused:
        tally.refused += 1
        raise
    hundreds = answer.status // 100
    tally.answers[hundreds] = tally.answers.get(hundreds, 0) + 1
    tally.seconds.add(clock() - began)
    answer.add(ARM_HEADER, arm.encode())
    return answer
