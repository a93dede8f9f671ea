"""Real clients over TLS and mTLS: curl, openssl, httpx and the OpenAI SDK; certificates rotated under them."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.kit.acts import answer
from tests.kit.certificates import Authority
from tests.kit.fake_upstream import Hosted, in_thread
from tests.kit.processes import Sidecar, eventually, free_port, needs
from tests.real.test_workers import admin, heir_of, metric, status

pytestmark = pytest.mark.real

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "well"}}],
}
DRAIN_S = 120
POLICIES = """
server:
  listen: [{plain}, "${{UNDERSTUDY_LISTEN}}"]
  admin: ${{UNDERSTUDY_ADMIN}}
  reload_s: 0.1
  drain_s: {drain_s}
  workers: {workers}
  limits: {{head_s: 2}}
  tls: {{cert_file: secret/tls.crt, key_file: secret/tls.key{mutual}, listen: ["${{UNDERSTUDY_LISTEN}}"]}}
routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    tiers: [{{kind: upstream, name: model, url: "{url}"}}]
"""


class Place:
    """A sidecar whose second address speaks TLS, its certificate in a folder that is swapped as Kubernetes does."""

    def __init__(self, upstream: Hosted, folder: Path, tmp_path: Path) -> None:
        self.upstream, self.folder, self.tmp_path = upstream, folder, tmp_path
        self.plain_port = free_port()
        (tmp_path / "authority").mkdir()
        self.authority = Authority(tmp_path / "authority")
        self.rotated("first")
        self.app = self.authority.vouches("app", subject="/O=Acme/CN=app")

    def rotated(self, name: str, *, broken: bool = False) -> None:
        """A new certificate behind the same link, in one step."""
        made = self.folder / f"..{name}"
        made.mkdir()
        certificate, key = self.authority.vouches(name)
        shutil.copy(certificate, made / "tls.crt")
        shutil.copy(self.authority.vouches("other")[1] if broken else key, made / "tls.key")
        (self.folder / "new").symlink_to(made.name)
        (self.folder / "new").rename(self.folder / "secret")

    def sidecar(self, *, mutual: bool = False, workers: int = 1) -> Sidecar:
        asked = f', client_ca_file: "{self.authority.file}"' if mutual else ""
        text = POLICIES.format(
            plain=f"127.0.0.1:{self.plain_port}", mutual=asked, url=self.upstream.url, workers=workers, drain_s=DRAIN_S
        )
        (self.folder / "p.yaml").write_text(text)
        return Sidecar(self.folder, self.tmp_path / "state")

    def common_name(self, sidecar: Sidecar) -> str:
        """Whom the certificate names that a new connection is shown."""
        with (
            socket.create_connection(("127.0.0.1", sidecar.port), 60) as raw,
            self.authority.trusting().wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            shown = tls.getpeercert()
            assert shown is not None
            return next(value for group in shown["subject"] for name, value in group if name == "commonName")  # pyright: ignore


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> Iterator[Place]:
    with in_thread(answer(body=COMPLETION)) as upstream:
        yield Place(upstream, folder, tmp_path)


def run(*command: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=60, check=False)


def asked(sidecar: Sidecar, http_client: httpx.Client | None = None, scheme: str = "https") -> str | None:
    """What the official SDK is answered."""
    client = OpenAI(
        base_url=f"{scheme}://localhost:{sidecar.port}/v1", api_key="unused", http_client=http_client, max_retries=0
    )
    said = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    return said.choices[0].message.content


def test_the_official_sdk_curl_and_openssl_are_answered_over_tls_and_plain_clients_beside_them(place: Place):
    curl, openssl, ca = needs("curl"), needs("openssl"), str(place.authority.file)
    with place.sidecar() as sidecar:
        with httpx.Client(verify=place.authority.trusting(), timeout=60) as http_client:
            assert asked(sidecar, http_client) == "well"
        url = f"https://localhost:{sidecar.port}/v1/chat/completions"
        got = run(curl, "-sS", "--http1.1", "--cacert", ca, "-d", '{"messages": []}', "-w", "%{ssl_verify_result}", url)
        assert got.stdout.endswith("}0"), got
        # a client that would rather speak HTTP/2 is told what we speak
        assert '"well"' in run(curl, "-sS", "--http2", "--cacert", ca, "-d", '{"messages": []}', url).stdout
        told = run(openssl, "s_client", "-connect", f"127.0.0.1:{sidecar.port}", "-CAfile", ca, "-alpn", "h2,http/1.1")
        assert "Verify return code: 0 (ok)" in told.stdout
        assert "ALPN protocol: http/1.1" in told.stdout
        old = run(openssl, "s_client", "-connect", f"127.0.0.1:{sidecar.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
        assert old.returncode != 0
        wrong = run(curl, "-sS", f"http://localhost:{sidecar.port}/v1/x")
        assert "https://" in wrong.stdout
        plain = urllib.request.Request(f"http://127.0.0.1:{place.plain_port}/v1/chat/completions", b'{"messages": []}')
        with urllib.request.urlopen(plain, timeout=30) as answered:
            assert answered.status == 200
        eventually(lambda: metric(sidecar, "understudy_tls_handshake_failures_total") == 2)
        assert metric(sidecar, "understudy_tls_certificate_expires_seconds") > time.time() + 86400
        assert status(sidecar)["tls"]["client_certificates"] == "none"
        assert "PRIVATE" not in sidecar.logs()


def test_without_its_certificate_nobody_is_served_and_with_it_the_access_log_says_who(place: Place):
    curl = needs("curl")
    with place.sidecar(mutual=True) as sidecar:
        url = f"https://localhost:{sidecar.port}/v1/chat/completions"
        trusting = (curl, "-sS", "--cacert", str(place.authority.file), "-d", '{"messages": []}', url)
        assert run(*trusting).returncode != 0
        mine = ("--cert", str(place.app[0]), "--key", str(place.app[1]))
        assert '"well"' in run(*trusting, *mine).stdout
        with httpx.Client(verify=place.authority.trusting(place.app), timeout=60) as http_client:
            assert asked(sidecar, http_client) == "well"
        assert len(place.upstream.heard) == 2
        eventually(lambda: metric(sidecar, "understudy_tls_handshake_failures_total") == 1)
        eventually(lambda: sidecar.logs().count('"client":"O=Acme,CN=app"') == 2)


def test_a_rotated_certificate_is_in_force_and_nobody_is_dropped_and_a_broken_one_is_not(place: Place):
    with place.sidecar() as sidecar:
        kept = http.client.HTTPSConnection("localhost", sidecar.port, context=place.authority.trusting(), timeout=30)

        def kept_is_answered() -> bool:
            kept.request("POST", "/v1/chat/completions", b'{"messages": []}')
            return json.load(kept.getresponse())["id"] == "c1"

        assert kept_is_answered()
        assert kept.sock is not None
        port = kept.sock.getsockname()[1]
        assert place.common_name(sidecar) == "first"
        place.rotated("second")
        eventually(lambda: place.common_name(sidecar) == "second")
        place.rotated("third", broken=True)
        eventually(lambda: metric(sidecar, "understudy_reload_ok") == 0)
        assert place.common_name(sidecar) == "second"
        (fault,) = status(sidecar)["policies"]["faults"]
        assert "server.tls.key_file: this is not the key of the certificate in cert_file" in fault
        assert "p.yaml:9:" in fault
        place.rotated("fourth")
        eventually(lambda: place.common_name(sidecar) == "fourth")
        assert metric(sidecar, "understudy_reload_ok") == 1
        # the connection is the one from the beginning
        assert kept_is_answered()
        assert kept.sock.getsockname()[1] == port
        kept.close()


def test_workers_speak_tls_and_the_next_process_takes_them_over(place: Place):
    with place.sidecar(workers=2) as sidecar, httpx.Client(verify=place.authority.trusting(), timeout=60) as client:
        assert asked(sidecar, client) == "well"
        place.rotated("second")
        eventually(lambda: all(place.common_name(sidecar) == "second" for _ in range(8)))
        with heir_of(sidecar, place.folder) as heir:
            assert sidecar.child is not None
            # the pool's idle connection is told goodbye, and nobody waits for an answer
            assert sidecar.child.wait(DRAIN_S / 2) == 0
            assert asked(heir, client) == "well"
            assert admin(heir, "/readyz")[0] == 200


def test_half_a_handshake_is_closed_in_time_while_others_are_served(place: Place):
    with place.sidecar() as sidecar:
        halves = [socket.create_connection(("127.0.0.1", sidecar.port), 60) for _ in range(50)]
        for number, half in enumerate(halves):
            half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[: number % 10])
        with httpx.Client(verify=place.authority.trusting(), timeout=60) as client:
            assert asked(sidecar, client) == "well"
        for half in halves:
            half.settimeout(60)
            try:
                while half.recv(1000):
                    pass
            except ConnectionResetError:
                pass
            half.close()
        eventually(lambda: metric(sidecar, "understudy_tls_handshake_failures_total") == 50)
        plain = socket.create_connection(("127.0.0.1", place.plain_port), 60)
        with plain, pytest.raises(ssl.SSLError):
            place.authority.trusting().wrap_socket(plain, server_hostname="localhost")
