"""Certificates for tests, made by openssl: an authority, and whom it vouches for."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
LOOPBACK = "IP:127.0.0.1,DNS:localhost"


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


class Authority:
    """A CA of one's own in `folder`: NAME.pem is what to trust."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self.name = name
        self.file = folder / f"{name}.pem"
        openssl(
            *(
                "req",
                *_KEY,
                "-x509",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
                "-keyout",
                f"{name}.key",
                "-out",
                self.file.name,
            ),
            folder=folder,
        )

    def vouches(self, name: str, *, subject: str = "", names: str = LOOPBACK, days: int = 2) -> tuple[Path, Path]:
        """A certificate and its key: NAME.pem, NAME.key."""
        requested = ("-subj", subject or f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("req", *_KEY, *requested, folder=self.folder)
        (self.folder / f"{name}.names").write_text(
            f"subjectAltName={names}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        signed = ("-CA", self.file.name, "-CAkey", f"{self.name}.key", "-CAcreateserial", "-days", str(days))
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", *signed, "-extfile", f"{name}.names", "-out", f"{name}.pem"),
            folder=self.folder,
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def trusting(self, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority, and shows a certificate of its own."""
        context = ssl.create_default_context(cafile=str(self.file))
        if shown is not None:
            context.load_cert_chain(*shown)
        return context
