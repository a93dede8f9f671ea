"""Read the addresses that are listened on, host:port and [v6]:port, and tell which of them are the same."""

from __future__ import annotations

import ipaddress
import re

from understudy.proxy.settings.settings import ServerTls, Settings

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
UNIX_PATH_BYTES_MAX = 107
"""What fits into the kernel's sun_path."""
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared with, never bound to


def addresses(settings: Settings) -> list[str]:
    """`server.listen` as what it always means: a list."""
    listen = settings.server.listen
    return [listen] if isinstance(listen, str) else listen


def tls_of(settings: Settings) -> ServerTls | None:
    """The TLS settings of our own port, where there are any."""
    return settings.server.tls if isinstance(settings.server.tls, ServerTls) else None


def speaks_tls(settings: Settings, address: str) -> bool:
    """Whether callers of this address of `server.listen` speak TLS."""
    tls = tls_of(settings)
    return tls is not None and not unix_path(address) and (not tls.listen or address in tls.listen)


def told_address(settings: Settings) -> tuple[str, bool]:
    """The address that neighbours on this host are told, a plain one if there is; and whether TLS is spoken there."""
    listed = [address for address in addresses(settings) if not unix_path(address)]
    plain = [address for address in listed if not speaks_tls(settings, address)]
    return (plain[0], False) if plain else (listed[0], True)


def parse_address(address: str) -> tuple[str, int]:
    """host:port or [v6]:port as (host, port), the host without brackets; ('', 0) when it is neither."""
    host, colon, digits = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
        return "", 0
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        return (inner, int(digits)) if is_ip(inner.partition("%")[0], 6) else ("", 0)
    numeric = re.fullmatch(r"[0-9.]+", host) is not None
    return (host, int(digits)) if (is_ip(host, 4) if numeric else HOST.fullmatch(host)) else ("", 0)


def unix_path(address: str) -> str:
    """The path in unix:/path; '' when the address is none of these."""
    return address[5:] if address.startswith("unix:") else ""


def path_fault(path: str) -> str:
    """What is wrong with the path of a Unix socket; '' when nothing is."""
    if path.startswith("/") and "\0" not in path and len(path.encode()) <= UNIX_PATH_BYTES_MAX:
        return ""
    return f"a socket's path is absolute, and has at most {UNIX_PATH_BYTES_MAX} bytes"


def is_ip(text: str, version: int) -> bool:
    """Whether this is an address of IP version 4 or 6."""
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this host can reach it."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def numeric(host: str) -> str:
    """The host as two addresses are compared: lower case, and localhost by its number."""
    return "127.0.0.1" if host.lower() == "localhost" else host.lower()


def clash(host: str, port: int, taken: dict[tuple[str, int], str]) -> str:
    """What has taken this address already, or ''. A wildcard address takes its port on every interface at once."""
    for (other, taken_port), key in taken.items():
        one_family = (":" in host) == (":" in other)
        if port == taken_port and (host == other or (one_family and {host, other} & WILDCARDS)):
            return key
    return ""
