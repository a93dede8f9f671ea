"""Bind the sockets that workers accept from: one for each worker and address, all held by the parent.

A listening socket's queue belongs to whoever has the socket, not to who accepts from it. SO_REUSEPORT spreads
connections over the sockets; as the parent holds them all, none is closed while somebody may be waiting in its queue,
whichever worker dies, is replaced, or hands over to another process. (A socket that is closed resets those who wait in
it: Linux moves them to a neighbour only with net.ipv4.tcp_migrate_req, which is off.)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from understudy.proxy.accepting import BACKLOG
from understudy.proxy.settings.addresses import parse_address
from understudy.proxy.settings.settings import Server

Places = list[list[socket.socket]]
"""Place by place, the sockets of its addresses, in the order of `server.listen`."""


def bound(address: str) -> socket.socket:
    """A socket that listens on `address`, beside others that do. Raises OSError."""
    host, port = parse_address(address)
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def another(sock: socket.socket) -> socket.socket:
    """One more socket on the very address of `sock`: the others' port where 0 was asked for. Raises OSError."""
    host, port = sock.getsockname()[:2]
    return bound(f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}")


def filled_up(places: Places, addresses: Sequence[str], count: int) -> Places:
    """`places`, and as many more as are missing to `count`. Raises OSError with the address as its filename."""
    whole = list(places)
    while len(whole) < count:
        made: list[socket.socket] = []
        for number, address in enumerate(addresses):
            try:
                made.append(another(whole[0][number]) if whole else bound(address))
            except OSError as error:
                raise OSError(error.errno, error.strerror, address) from None
        whole.append(made)
    return whole


def exclusive(address: str) -> bool:
    """Whether nobody listens on this address yet; SO_REUSEPORT alone would let us in beside a stranger of our user."""
    host, port = parse_address(address)
    if not port:
        return True
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(where)
        except OSError:
            return False
    return True


def worker_count(server: Server) -> int:
    """`server.workers` as a number: `auto` is one for each core that we may run on."""
    return len(os.sched_getaffinity(0)) if server.workers == "auto" else server.workers


def has_parent(server: Server) -> bool:
    """Whether a parent with workers is to be run; otherwise one process is everything."""
    return worker_count(server) > 1 or server.reuse_port
