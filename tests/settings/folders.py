"""Policy folders written in a line, for tests that read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from understudy.proxy.settings.reading import Reading, read_folder
from understudy.proxy.settings.settings import Route, Settings

SHIPPED = Path(__file__).parents[2] / "policies"

LOCAL_ROUTE = """
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    tiers: [{kind: local}]
"""


def policies(folder: Path, files: Mapping[str, str | bytes] | str | bytes) -> Path:
    """A folder with these files (text alone is chat.yaml), made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    named = files if isinstance(files, Mapping) else {"chat.yaml": files}
    for name, content in named.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(
    folder: Path, files: Mapping[str, str | bytes] | str | bytes, environ: Mapping[str, str] | None = None
) -> Reading:
    """What comes of a folder with these files."""
    return read_folder(policies(folder, files), environ or {})


def sound(reading: Reading) -> Settings:
    """The settings of a reading that must be without faults."""
    assert reading.settings is not None, "\n".join(map(str, reading.faults))
    return reading.settings


def route_of(settings: Settings, name: str) -> Route:
    return next(route for route in settings.routes if route.name == name)


def whys(reading: Reading) -> list[str]:
    return [fault.why for fault in reading.faults]
