"""`server.tls` as it is read: its files judged with the rest, and faults that never repeat a key."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kit.certificates import Authority, openssl
from understudy.proxy.reports.explain import explain
from understudy.proxy.settings.addresses import speaks_tls, told_address
from understudy.proxy.settings.certificates import credentials, fingerprint
from understudy.proxy.settings.reading import Reading, read_folder
from understudy.proxy.settings.settings import ServerTls

ROUTE = (
    "routes: [{name: all, match: {prefix: /}, dialect: plain, tiers: [{kind: upstream, name: up, url: 'http://u'}]}]\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = Authority(tmp_path)
    made.vouches("server")
    made.vouches("other")
    return tmp_path


def read(folder: Path, tls: str, listen: str = "127.0.0.1:8787") -> Reading:
    (folder / "p.yaml").write_text(f"server:\n  listen: {listen}\n  tls: {tls}\n{ROUTE}")
    return read_folder(folder, {})


def faults(folder: Path, tls: str, listen: str = "127.0.0.1:8787") -> list[str]:
    return [str(fault).removeprefix(str(folder) + "/") for fault in read(folder, tls, listen).faults]


GOOD = "{cert_file: server.pem, key_file: server.key}"


def test_a_certificate_and_its_key_are_believed_and_known_until_when(folder: Path):
    reading = read(folder, GOOD)
    assert reading.faults == ()
    held = credentials(reading.tls)
    assert held is not None
    assert 1.9 * 86400 < held.expires_at - time.time() < 2.1 * 86400
    assert credentials(reading.tls, held) is held
    openssl(
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-signkey",
        "server.key",
        "-days",
        "20000",
        "-out",
        "server.pem",
        folder=folder,
    )
    later = credentials(reading.tls, held)
    assert later is not None
    assert later is not held
    # beyond 2049 a certificate writes its years in another way
    assert later.expires_at - time.time() > 19_999 * 86400


@pytest.mark.parametrize(
    ("tls", "told"),
    [
        ("{cert_file: server.pem, key_file: other.key}", "p.yaml:3:42: server.tls.key_file: this is not the key of"),
        ("{cert_file: server.key, key_file: server.key}", "p.yaml:3:20: server.tls.cert_file: no certificate can be"),
        ("{cert_file: server.pem}", "p.yaml:3:20: server.tls.cert_file: no key can be read"),
        ("{cert_file: server.pem, key_file: locked.key}", "p.yaml:3:42: server.tls.key_file: the key is encrypted"),
        ("{cert_file: cut.pem, key_file: server.key}", "p.yaml:3:20: server.tls.cert_file: no certificate can be"),
        ("{cert_file: none.pem, key_file: server.key}", "p.yaml:3:20: server.tls.cert_file: no such file"),
        (GOOD[:-1] + ", client_ca_file: server.key}", "p.yaml:3:70: server.tls.client_ca_file: no certificates can be"),
        (GOOD[:-1] + ", client: optional}", "p.yaml:3:62: server.tls.client: client certificates are only asked for"),
        (GOOD[:-1] + ", listen: [0.0.0.0:1]}", "p.yaml:3:63: server.tls.listen[0]: server.listen has no such address"),
        (GOOD[:-1] + ", min_version: TLSv1.1}", "p.yaml:3:67: server.tls.min_version: must be one of TLSv1.2, TLSv1.3"),
    ],
)
def test_what_cannot_be_used_is_a_fault_with_its_line_and_without_a_word_of_the_key(folder: Path, tls: str, told: str):
    openssl("ec", "-in", "server.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key", folder=folder)
    (folder / "cut.pem").write_text((folder / "server.pem").read_text()[:300] + "\n-----END CERTIFICATE-----\n")
    (fault,) = faults(folder, tls)
    assert fault.startswith(told)
    secret = "".join((folder / "server.key").read_text().splitlines()[1:-1])
    assert not any(secret[at : at + 12] in fault for at in range(len(secret) - 12))


def test_the_fingerprint_changes_with_any_of_the_files_however_they_are_replaced(folder: Path):
    tls = ServerTls(cert_file=str(folder / "link" / "server.pem"), key_file=str(folder / "link" / "server.key"))
    for name in ("one", "two"):
        (folder / name).mkdir()
        for file in ("server.pem", "server.key"):
            (folder / name / file).write_bytes((folder / file).read_bytes() + name.encode())
    (folder / "link").symlink_to("one")
    first = fingerprint(tls)
    assert fingerprint(tls) == first
    (folder / "new").symlink_to("two")
    (folder / "new").rename(folder / "link")
    second = fingerprint(tls)
    (folder / "two" / "server.key").unlink()
    assert len({"", first, second, fingerprint(tls)}) == 4
    assert fingerprint(None) == ""


def test_neighbours_are_told_a_plain_address_where_there_is_one(folder: Path):
    both = "[0.0.0.0:8443, 127.0.0.1:8787]"
    settings = read(folder, GOOD[:-1] + ', listen: ["0.0.0.0:8443"]}', both).settings
    assert settings is not None
    assert (speaks_tls(settings, "0.0.0.0:8443"), speaks_tls(settings, "127.0.0.1:8787")) == (True, False)
    assert told_address(settings) == ("127.0.0.1:8787", False)
    settings = read(folder, GOOD, "[127.0.0.1:8443, 'unix:/tmp/s']").settings
    assert settings is not None
    assert not speaks_tls(settings, "unix:/tmp/s")
    assert told_address(settings) == ("127.0.0.1:8443", True)


def test_explain_says_how_a_request_comes_in_and_nothing_of_the_key(folder: Path):
    told = explain(read(folder, GOOD), "GET", "/x")
    assert "in TLS:" in told
    assert "server.pem" in told
    assert "PRIVATE" not in told
    assert "in TLS:" not in explain(read(folder, GOOD), "GET", "/x", port=1)
