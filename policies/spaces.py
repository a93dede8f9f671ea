"""Keep vectors to their own space: remember what is handed out, and let no handle through to a primary.

    embed      call --> service --> answer --> noted: whose vectors, of which texts (read later, when nobody waits)
    the rest   call --> a handle in it? -- no --> service
                             +-- yes --> answered from its own space's index, or refused; the primary never sees it

While no handle is about, looking for one is a comparison.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from understudy.policies.service import Answer, Call, Request, Service


class Watch(Protocol):
    """Who knows whether handles are about. `look` says whether one is in a request, or it can't be looked into."""

    is_armed: bool

    def look(self, request: Request) -> bool: ...


def guarded(service: Service, watch: Watch, otherwise: Callable[[Call], Awaitable[Answer]]) -> Service:
    """Have `otherwise` answer the calls that have a handle in them, and `service` all others."""

    async def guarded(call: Call) -> Answer:
        if watch.is_armed and call.request.body and watch.look(call.request):
            return await otherwise(call)
        return await service(call)

    return guarded


def noted(service: Service, note: Callable[[Call, Answer], object]) -> Service:
    """Tell `note` of every embedding that `service` has answered well."""

    async def noting(call: Call) -> Answer:
        answer = await service(call)
        if answer.status == 200 and call.kind == "embed":
            note(call, answer)
        return answer

    return noting
