"""A real Envoy for tests, on free ports, from policies written in the test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.kit.processes import Process, free_port, needs
from understudy.envoy.bootstrap import render
from understudy.envoy.cli import templates_of
from understudy.proxy.settings.reading import load

READY_S_MAX = 300.0


def envoy_program() -> str:
    """The Envoy beside this Python, or on the path; without one the test is skipped."""
    return shutil.which("envoy", path=str(Path(sys.executable).parent)) or needs("envoy")


def rendered(folder: Path, policies: str, *, environ: Mapping[str, str] | None = None, **options: str) -> str:
    """The bootstrap for one policy file."""
    folder.mkdir(exist_ok=True)
    (folder / "policies.yaml").write_text(policies)
    environ = environ or {}
    settings = load(folder, environ)
    return render(settings, templates=templates_of(folder, settings, environ), **options)


def complaints(bootstrap: str, folder: Path) -> str:
    """What Envoy has against a bootstrap; nothing when it takes it."""
    file = folder / "bootstrap.yaml"
    file.write_text(bootstrap)
    done = subprocess.run(
        [envoy_program(), "--mode", "validate", "-c", str(file), "-l", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    return "" if done.returncode == 0 and "deprecated" not in said.lower() else said


class Envoy(Process):
    """Envoy as a user starts it, with one worker; several may run side by side."""

    def __init__(
        self,
        folder: Path,
        policies: str,
        *,
        sidecar: str,
        environ: Mapping[str, str] | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.port, admin = free_port(), free_port()
        options = {"ca_file": ca_file} if ca_file else {}
        bootstrap = rendered(
            folder,
            policies,
            environ=environ,
            listen=f"127.0.0.1:{self.port}",
            admin=f"127.0.0.1:{admin}",
            sidecar=sidecar,
            **options,
        )
        file = folder / "envoy.yaml"
        file.write_text(bootstrap)
        super().__init__(
            [envoy_program(), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"],
            ready_port=admin,
            ready_path="/ready",
            ready_s_max=READY_S_MAX,
            env=environ,
        )

    @property
    def url(self) -> str:
        """What an application sets as its base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"
