"""Who is measured: one table. A subject is a command that listens on a port and forwards to the bench's upstream.

A new one is a function from a Site to a Start, and one line in SUBJECTS; NotHere says why it is left out here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.workloads import Workload
from tests.kit.processes import REPOSITORY, free_port
from understudy.proxy.version import VERSION, how_it_runs

POLICIES = REPOSITORY / "policies"
NGINX = ("/usr/sbin/nginx", "/usr/local/sbin/nginx")
HAPROXY = ("/usr/sbin/haproxy", "/usr/local/sbin/haproxy")
ENVOY = (str(Path(sys.executable).with_name("envoy")),)
_NUMBER = re.compile(r"\d+\.\d+\.\d+[^\s/]*")


class NotHere(Exception):
    """Why a subject can't be measured on this machine."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where subjects are put up: the upstream, and a folder for each to write in.

    Without `has_local` the sidecar goes without its local tier, which takes seconds to load and is not measured.
    """

    upstream_port: int
    folder: Path
    has_local: bool = True


@dataclass(frozen=True, slots=True)
class Start:
    """How a subject is started, and where it answers 200 once it is ready."""

    command: list[str]
    port: int
    ready_port: int
    ready_path: str = "/"
    env: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of the report. A subject that is nothing but the upstream has no start."""

    name: str
    about: str
    start: Callable[[Site], Start] | None
    version: Callable[[], str] | None = None
    only: tuple[str, ...] = ()
    """The workloads it is measured under, where that isn't all that are for everybody."""

    def takes(self, workload: Workload) -> bool:
        return workload.name in self.only if self.only else workload.for_all


# --- starts --------------------------------------------------------------------------------------------------------


def _start_of_ours(module: str) -> Callable[[Site], Start]:
    def start(site: Site) -> Start:
        port = free_port()
        command = [sys.executable, "-m", module, "--port", str(port), "--upstream", str(site.upstream_port)]
        return Start(command, port, port)

    return start


def start_sidecar(policies: Path, site: Site, state: Path) -> Start:
    """The sidecar with a policy folder, and every service behind it being the bench's upstream."""
    port, admin_port = free_port(), free_port()
    listen, admin = f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}"
    command = [sys.executable, "-m", "understudy.proxy.cli", "run", "--policies", str(policies)]
    command += ["--listen", listen, "--admin", admin, "--state", str(state)]
    upstream = f"http://127.0.0.1:{site.upstream_port}"
    env = {
        "OPENAI_API_KEY": "sk-bench",
        "OPENAI_UPSTREAM_URL": upstream,
        "QDRANT_URL": upstream,
        "UNDERSTUDY_LISTEN": listen,
        "UNDERSTUDY_ADMIN": admin,
    }
    return Start(command, port, admin_port, "/readyz", env)


def understudy(site: Site) -> Start:
    """The policies as shipped, with the upstream in the provider's place."""
    policies = site.folder / "policies"
    policies.mkdir(exist_ok=True)
    for source in POLICIES.glob("*.yaml"):
        text = source.read_text(encoding="utf-8")
        if not site.has_local:
            text = text.replace("      - kind: local\n", "")
        (policies / source.name).write_text(text, encoding="utf-8")
    return start_sidecar(policies, site, site.folder / "state")


ROUTE = """\
server:
  listen: ${UNDERSTUDY_LISTEN}
  admin: ${UNDERSTUDY_ADMIN}
  access_log: false
routes:
  - name: all
    match: {prefix: /}
    %s
    tiers:
      - {kind: upstream, name: bench, url: "http://127.0.0.1:%d"}
"""


def _understudy_plain(site: Site) -> Start:
    """One route that takes everything as it is, with every policy that can be turned off turned off."""
    return _one_route(site, "plain", "dialect: plain", "retry: {attempts: 1}", "breaker: {enabled: false}")


def _understudy_cache(site: Site) -> Start:
    """One route that keeps every answer, with policies and access log as nginx has them beside it: none."""
    return _one_route(site, "cache", "dialect: openai-chat", "cache: {enabled: true, answers: always, ttl_s: 3600}")


def _one_route(site: Site, name: str, *lines: str) -> Start:
    policies = site.folder / name
    policies.mkdir(exist_ok=True)
    (policies / f"{name}.yaml").write_text(ROUTE % ("\n    ".join(lines), site.upstream_port), encoding="utf-8")
    return start_sidecar(policies, site, site.folder / f"{name}-state")


def _nginx(site: Site) -> Start:
    return _started_nginx(site, "nginx", "")


def _nginx_cache(site: Site) -> Start:
    folder = site.folder / "nginx-cache" / "cache"
    return _started_nginx(
        site,
        "nginx-cache",
        f"""\
  proxy_cache_path {folder} keys_zone=bench:10m;
  proxy_cache bench;
  proxy_cache_methods POST;
  proxy_cache_key $request_uri|$request_body;
  proxy_cache_valid 200 1h;
""",
    )


def _started_nginx(site: Site, name: str, more: str) -> Start:
    nginx = _found("nginx", *NGINX)
    port, folder = free_port(), site.folder / name
    folder.mkdir(exist_ok=True)
    places = "".join(
        f"  {place}_temp_path {folder / place};\n" for place in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # a master that is root gives its workers to nobody, who may not look into our folder
    user = "user root;" if os.geteuid() == 0 else ""
    # bodies in both directions stay in memory: left to itself, nginx writes 21 KB of request to a file
    (folder / "nginx.conf").write_text(
        f"""\
daemon off;
{user}
worker_processes 1;
pid {folder / "pid"};
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off;
{places}
  upstream bench {{ server 127.0.0.1:{site.upstream_port}; keepalive 64; keepalive_requests 1000000000; }}
  client_body_buffer_size 64k;
  proxy_buffers 16 8k;
{more}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    keepalive_requests 1000000000;
    client_max_body_size 64m;
    location / {{
      proxy_pass http://bench;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
""",
        encoding="utf-8",
    )
    return Start([nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr"], port, port)


def _haproxy(site: Site) -> Start:
    haproxy = _found("haproxy", *HAPROXY)
    port, config = free_port(), site.folder / "haproxy.cfg"
    config.write_text(
        f"""\
global
  maxconn 4096
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
  # a chunk is passed on when it comes, as all the others do
  option http-no-delay
frontend in
  bind 127.0.0.1:{port} backlog 1024
  default_backend bench
backend bench
  server bench 127.0.0.1:{site.upstream_port}
""",
        encoding="utf-8",
    )
    return Start([haproxy, "-db", "-q", "-f", str(config)], port, port)


def _envoy(site: Site) -> Start:
    envoy = _found("envoy", *ENVOY)
    port, admin_port = free_port(), free_port()
    config = site.folder / "envoy.json"
    config.write_text(json.dumps(_envoy_config(port, admin_port, site.upstream_port)), encoding="utf-8")
    command = [envoy, "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    # the script that comes with the package must not find our own `envoy` folder
    return Start(command, port, admin_port, "/ready", {"PYTHONPATH": ""})


def _envoy_config(port: int, admin_port: int, upstream_port: int) -> dict[str, object]:
    def address(at: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": at}}

    types = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "bench", "timeout": "0s"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(upstream_port)}}]}]
    cluster = {
        "name": "bench",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "bench", "endpoints": endpoints},
    }
    listener = {"name": "in", "address": address(port), "filter_chains": [{"filters": filters}]}
    return {
        "admin": {"address": address(admin_port)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


# --- versions ------------------------------------------------------------------------------------------------------


def _found(program: str, *places: str) -> str:
    """The path of `program`, looked for in `places` too. Raises NotHere."""
    for place in (program, *places):
        if found := shutil.which(place):
            return found
    raise NotHere(f"{program} is not installed")


def _said_by(program: str, argument: str, places: tuple[str, ...]) -> Callable[[], str]:
    """The version in what the program says of itself, and nothing else of that: some name their own path."""

    def version() -> str:
        done = subprocess.run([_found(program, *places), argument], capture_output=True, text=True, timeout=20)
        number = _NUMBER.search(done.stdout + done.stderr)
        return f"{program} {number[0] if number else 'unknown'}"

    return version


def _of_packages(*names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


# --- the table -----------------------------------------------------------------------------------------------------

SUBJECTS = (
    Subject("direct", "no proxy: what the latencies of the others are compared with", None),
    Subject("nginx", "one worker, keep-alive to the upstream", _nginx, _said_by("nginx", "-v", NGINX)),
    Subject("haproxy", "one thread, keep-alive to the upstream", _haproxy, _said_by("haproxy", "-v", HAPROXY)),
    Subject("envoy", "one worker, plain reverse proxy", _envoy, _said_by("envoy", "--version", ENVOY)),
    Subject(
        "relay",
        "protocol to protocol, httptools and uvloop, nothing else",
        _start_of_ours("tests.bench.relay"),
        _of_packages("httptools", "uvloop"),
    ),
    Subject(
        "understudy-plain",
        "one route that passes everything, policies and access log off",
        _understudy_plain,
    ),
    Subject(
        "understudy",
        "the policies as shipped, access log on",
        understudy,
        lambda: f"understudy {VERSION} ({how_it_runs()})",
    ),
    Subject(
        "aiohttp",
        "aiohttp server and ClientSession on uvloop",
        _start_of_ours("tests.bench.aiohttp_proxy"),
        _of_packages("aiohttp"),
    ),
    Subject("understudy-cache", "a hit in a route's cache, access log off", _understudy_cache, only=("cache-hit",)),
    Subject("nginx-cache", "a hit in nginx's proxy_cache", _nginx_cache, only=("cache-hit",)),
)
