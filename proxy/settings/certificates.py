"""The certificate we show to callers and the ones we ask of them: read, judged, and made into an ssl context.

    files --fingerprint--> changed? --judged--> faults, as a bad policy has   (the context in force stays)
                                      +-------> Credentials                   (for handshakes from now on)

Nothing here repeats what is in a key's file.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from understudy.proxy.settings.addresses import addresses, speaks_tls, tls_of, unix_path
from understudy.proxy.settings.policy_files import read_bounded
from understudy.proxy.settings.rules import Place
from understudy.proxy.settings.settings import ServerTls, Settings
from understudy.proxy.settings.spots import Fault

PEM_BYTES_MAX = 1024 * 1024
VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class BadCredentials(Exception):
    """`key` is the setting that is to blame; the words say why, for the operator."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is in force: the context for handshakes, when the certificate ends (Unix time), and what it was made of."""

    context: ssl.SSLContext
    expires_at: float
    settings: ServerTls
    fingerprint: str


def fingerprint(tls: ServerTls | None) -> str:
    """Changes when the contents of one of the files do, however they were replaced; '' without TLS."""
    if tls is None:
        return ""
    whole = hashlib.sha256()
    for path in (tls.cert_file, tls.key_file, tls.client_ca_file):
        try:
            raw = read_bounded(Path(path), PEM_BYTES_MAX) if path else b""
        except (OSError, ValueError):
            # in the middle of being replaced: its coming will be another change
            raw = b"?"
        whole.update(b"%d %b" % (len(raw), raw))
    return whole.hexdigest()


def credentials(tls: ServerTls | None, before: Credentials | None = None) -> Credentials | None:
    """The credentials these settings name. Raises BadCredentials.

    Those from `before` go on where nothing has changed: sessions are taken up again only within one context. After a
    change nobody comes in on a session that an authority of before has vouched for.
    """
    if tls is None:
        return None
    made_of = fingerprint(tls)
    if before is not None and (before.settings, before.fingerprint) == (tls, made_of):
        return before
    expires_at = _certificate_end(tls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[tls.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_own(context, tls)
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ValueError) as error:
            raise BadCredentials("client_ca_file", f"no certificates can be read from it{_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED if tls.client == "require" else ssl.CERT_OPTIONAL
    return Credentials(context, expires_at, tls, made_of)


def _load_own(context: ssl.SSLContext, tls: ServerTls) -> None:
    asked: list[bool] = []

    def no_password() -> str:
        # without this OpenSSL would ask at the terminal, and wait
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, no_password)
    except (OSError, ValueError) as error:
        key = "key_file" if tls.key_file else "cert_file"
        if asked:
            raise BadCredentials(key, "the key is encrypted; one without a passphrase is needed") from None
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise BadCredentials(key, "this is not the key of the certificate in cert_file") from None
        if isinstance(error, ssl.SSLError) and error.reason and error.reason.startswith("EE_KEY_TOO_SMALL"):
            raise BadCredentials("cert_file", "the certificate's key is too small") from None
        raise BadCredentials(key, f"no key can be read from it{_reason(error)}") from None


def _certificate_end(tls: ServerTls) -> float:
    try:
        text = read_bounded(Path(tls.cert_file), PEM_BYTES_MAX).decode("ascii", "replace")
        begin = text.index(_BEGIN)
        der = ssl.PEM_cert_to_DER_cert(text[begin : text.index(_END, begin) + len(_END)])
        # whether OpenSSL can read it too is asked of a context that is thrown away
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        return not_after(der)
    except (OSError, ValueError, IndexError) as error:
        raise BadCredentials("cert_file", f"no certificate can be read from it{_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f" ({error.reason.lower().replace('_', ' ')})" if error.reason else ""
    return f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""


# --- a certificate's end (RFC 5280 section 4.1), which the ssl module tells only of a peer's -------------------------


def not_after(der: bytes) -> float:
    """When the certificate ends, as Unix time. Raises ValueError or IndexError where it is none."""
    certificate, _ = _element(der, 0)
    body, _ = _element(certificate, 0)
    at = 0
    # version (optional, in brackets of its own), serial number, signature, issuer
    for _ in range(4 if body[0] == 0xA0 else 3):
        _, at = _element(body, at)
    validity, _ = _element(body, at)
    _, second = _element(validity, 0)
    moment, _ = _element(validity, second)
    # two digits of the year up to 2049, four from then on
    digits = moment.decode("ascii")
    if validity[second] == 0x17:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(data: bytes, at: int) -> tuple[bytes, int]:
    """The contents of the DER element at `at`, and where the next one begins."""
    length, at = data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(data[at : at + count], "big"), at + count
    if at + length > len(data):
        raise ValueError("cut short")
    return data[at : at + length], at + length


# --- faults ----------------------------------------------------------------------------------------------------------


def faults_of_tls(settings: Settings, at: Place) -> Iterator[Fault]:
    """What is wrong with `server.tls`, its files included."""
    tls = tls_of(settings)
    if tls is None:
        return
    listed = addresses(settings)
    for n, address in enumerate(tls.listen):
        if unix_path(address):
            yield from at.fault("a Unix socket needs no TLS", f"listen[{n}]")
        elif address not in listed:
            yield from at.fault("server.listen has no such address", f"listen[{n}]")
    if tls.client == "optional" and tls.client_ca_file is None:
        yield from at.fault("client certificates are only asked for with a client_ca_file", "client")
    try:
        credentials(tls)
    except BadCredentials as bad:
        yield from at.fault(str(bad), bad.key, reads=["cert_file", "key_file", "client_ca_file"])


def context_for(address: str, settings: Settings, held: Credentials | None) -> ssl.SSLContext | None:
    """What callers of this address shake hands with; None where they speak plain HTTP."""
    return held.context if held is not None and speaks_tls(settings, address) else None
