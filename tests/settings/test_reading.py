"""A folder is read whole, in one environment, and what is believed is complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec import UNSET

from tests.settings.folders import LOCAL_ROUTE, policies, read, route_of, sound, whys
from understudy.proxy.settings.policy_files import FILE_BYTES_MAX, FILES_MAX
from understudy.proxy.settings.reading import BadPolicies, digest_folder, load, read_folder
from understudy.proxy.settings.settings import Limits, LocalTier, UpstreamTier, active_tiers, inactive_reason

ROUTE = "{name: %s, match: {path: /%s}, dialect: openai-chat, tiers: [{kind: local}]}"

TWO_TIERS = """
server: {limits: {body_bytes_max: 777}}
defaults:
  retry: {attempts: 4, base_s: 0.2}
  breaker: {consecutive: 9}
routes:
  - name: chat
    match: {path: /a}
    dialect: openai-chat
    retry: {attempts: 3}
    tiers:
      - kind: upstream
        name: first
        url: http://127.0.0.1:1
        when_env: [KEY]
        headers: {authorization: "Bearer ${KEY}", x-file: "file:secrets/token"}
        retry: {wait_s_max: 9}
      - kind: local
"""


# --- what is believed ----------------------------------------------------------------------------------------------


def test_defaults_lie_under_every_route_and_a_route_under_its_tiers_key_by_key(tmp_path: Path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("s3cret\r\n")
    settings = sound(read(tmp_path, TWO_TIERS, {"KEY": "k"}))
    route = route_of(settings, "chat")
    first, local = route.tiers
    assert isinstance(first, UpstreamTier)
    assert isinstance(local, LocalTier)
    assert (route.retry.attempts, route.retry.base_s, route.retry.wait_s_max) == (3, 0.2, 1.0)
    assert first.retry is not UNSET
    assert (first.retry.attempts, first.retry.base_s, first.retry.wait_s_max) == (3, 0.2, 9)
    assert first.breaker == route.breaker
    assert route.breaker.consecutive == 9
    assert first.limit == local.limit == route.limit
    assert route.body_bytes_max == 777


def test_nothing_is_left_unset_where_nothing_was_said(tmp_path: Path):
    route = sound(read(tmp_path, LOCAL_ROUTE)).routes[0]
    assert route.body_bytes_max == Limits().body_bytes_max
    assert route.tiers[0].limit is not UNSET


def test_every_value_knows_the_line_it_came_from_and_what_is_built_in_has_none(tmp_path: Path):
    policies(tmp_path / "secrets", {"token": "t"})
    origins = read(tmp_path, TWO_TIERS, {"KEY": "k"}).origins
    at = {path: (spot.line, spot.key) for path, spot in origins.items()}
    assert at["routes[0].tiers[0].retry.attempts"] == (10, "routes[0].retry.attempts")
    assert at["routes[0].tiers[0].retry.base_s"] == (4, "defaults.retry.base_s")
    assert at["routes[0].tiers[0].retry.wait_s_max"] == (17, "routes[0].tiers[0].retry.wait_s_max")
    assert at["routes[0].body_bytes_max"] == (2, "server.limits.body_bytes_max")
    assert "routes[0].limit.queue" not in at


def test_secrets_come_from_the_environment_and_from_files_and_do_not_print(tmp_path: Path):
    policies(tmp_path / "secrets", {"token": "s3cret\n"})
    settings = sound(read(tmp_path, TWO_TIERS, {"KEY": "k3y"}))
    tier = settings.routes[0].tiers[0]
    assert isinstance(tier, UpstreamTier)
    assert [value.reveal() for value in tier.headers.values()] == ["Bearer k3y", "s3cret"]
    header = tier.headers["authorization"]
    for printed in (repr(settings), str(header), f"{header}", f"{header:>30}", f"{header!r}", "%s" % header):  # noqa: UP031
        assert "k3y" not in printed
        assert "s3cret" not in printed


def test_a_tier_without_its_variables_is_kept_and_named_with_the_reason(tmp_path: Path):
    settings = sound(read(tmp_path, TWO_TIERS, {"KEY": ""}))
    route = settings.routes[0]
    assert settings.inactive == {"chat": {"first": "KEY is not set"}}
    assert [tier.name for tier in settings.active(route)] == ["local"]
    assert [tier.name for tier in active_tiers(route, {"KEY": "k"})] == ["first", "local"]
    assert inactive_reason(route.tiers[0], {}) == "KEY is not set"
    assert inactive_reason(route.tiers[1], {}) is None


def test_the_space_of_a_route_is_its_own_or_that_of_the_first_tier_that_is_there(tmp_path: Path):
    text = """
local: {model: small}
routes:
  - name: search
    match: {prefix: /collections}
    dialect: qdrant
    tiers:
      - {kind: upstream, name: a, url: "http://a", when_env: [A], space: of-a}
      - {kind: local}
"""
    without, given = sound(read(tmp_path, text)), sound(read(tmp_path, text, {"A": "1"}))
    assert without.space_of(without.routes[0]) == "small"
    assert given.space_of(given.routes[0]) == "of-a"
    own = sound(read(tmp_path, text.replace("dialect", "space: mine\n    dialect")))
    assert own.space_of(own.routes[0]) == "mine"


def test_an_optional_key_is_left_out_from_outside_by_an_empty_variable(tmp_path: Path):
    text = TWO_TIERS.replace(', x-file: "file:secrets/token"', ', x-none: "${NONE:-}"').replace(
        "when_env: [KEY]", 'tls: {ca_file: "${CA:-}"}'
    )
    tier = sound(read(tmp_path, text, {"KEY": "k"})).routes[0].tiers[0]
    assert isinstance(tier, UpstreamTier)
    assert tier.tls.ca_file is None
    assert list(tier.headers) == ["authorization"]


def test_files_that_are_named_are_seen_from_the_policy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policies(tmp_path / "policies", {"ca.pem": "", "note.md": ""})
    text = "local: {knowledge: [note.md]}\n" + LOCAL_ROUTE.replace(
        "[{kind: local}]", "[{kind: upstream, name: a, url: 'https://a', tls: {ca_file: ca.pem}}]"
    )
    monkeypatch.chdir(tmp_path)
    settings = sound(read(Path("policies"), text))
    tier = settings.routes[0].tiers[0]
    assert isinstance(tier, UpstreamTier)
    assert tier.tls.ca_file == str(Path("policies/ca.pem"))
    assert settings.local.knowledge == [str(Path("policies/note.md"))]


def test_merge_keys_and_anchors_mean_what_yaml_says(tmp_path: Path):
    text = """
routes:
  - &base
    name: a
    match: {path: /a}
    dialect: openai-chat
    retry: &retry {attempts: 4, base_s: 0.3}
    tiers: [{kind: local}]
  - <<: [{space: first}, {space: second, name: never}, *base]
    name: b
    match: {path: /b}
    retry: {<<: *retry, attempts: 1}
"""
    b = route_of(sound(read(tmp_path, text)), "b")
    assert (b.space, b.dialect, b.retry.attempts, b.retry.base_s) == ("first", "openai-chat", 1, 0.3)


def test_numbers_are_read_as_people_write_them(tmp_path: Path):
    text = 'server: {drain_s: 1e1, reload_s: 2, limits: {head_s: "${S}", headers_max: 0x10}}\n'
    server = sound(read(tmp_path, text, {"S": ".5"})).server
    assert (server.drain_s, server.reload_s, server.limits.head_s, server.limits.headers_max) == (10.0, 2.0, 0.5, 16)
    assert all(isinstance(each, float) for each in (server.drain_s, server.reload_s, server.limits.head_s))


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_a_fault_and_so_is_one_without_policies(tmp_path: Path):
    assert "no policy folder" in str(read_folder(tmp_path / "none", {}).faults[0])
    assert "no *.yaml files" in str(read(tmp_path, {"chat.json": "{}", ".hidden.yaml": "["}).faults[0])
    assert "no policy folder" in str(read_folder(tmp_path / "chat.json", {}).faults[0])
    assert "no policy folder" in str(read_folder(Path("nul\0"), {}).faults[0])


def test_only_visible_yaml_files_directly_in_the_folder_are_policies(tmp_path: Path):
    policies(tmp_path / "deeper.yaml", LOCAL_ROUTE)
    reading = read(
        tmp_path, {"a.yaml": LOCAL_ROUTE, ".b.yaml": "{", "c.txt": "{", "d.yaml~": "{", "e.yml": "# nothing"}
    )
    assert [route.name for route in sound(reading).routes] == ["chat"]


def test_a_mounted_configmap_is_read_through_its_links(tmp_path: Path):
    policies(tmp_path / "..2024_01_01", LOCAL_ROUTE)
    (tmp_path / "..data").symlink_to("..2024_01_01")
    (tmp_path / "chat.yaml").symlink_to("..data/chat.yaml")
    assert sound(read_folder(tmp_path, {})).routes


def test_routes_stand_in_the_order_of_the_files_names(tmp_path: Path):
    files = {f"{name}.yaml": f"routes: [{ROUTE % (name, name)}]" for name in "bca"}
    assert [route.name for route in sound(read(tmp_path, files)).routes] == ["a", "b", "c"]


def test_files_that_can_not_be_read_are_faults_beside_those_that_can(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    reading = read(
        tmp_path,
        {
            "latin.yaml": b"# comment\nserver: {admin: \xe4}",
            "long.yaml": "#" * (FILE_BYTES_MAX + 1),
            "bom.yaml": "﻿server: {admin: x}",
            "wide.yaml": LOCAL_ROUTE.encode("utf-16"),
        },
    )
    said = {Path(fault.file).name: (fault.line, fault.col, fault.why) for fault in reading.faults}
    assert said["pipe.yaml"] == (1, 1, "can't be read: not a regular file")
    assert said["gone.yaml"] == (1, 1, "can't be read: No such file or directory")
    assert said["latin.yaml"] == (2, 17, "not UTF-8")
    assert said["long.yaml"] == (1, 1, f"can't be read: larger than {FILE_BYTES_MAX} bytes")
    assert said["bom.yaml"] == (1, 17, "expected host:port or [v6]:port")
    assert said["wide.yaml"] == (1, 1, "not UTF-8")


def test_a_folder_of_too_many_files_is_a_fault(tmp_path: Path):
    reading = read(tmp_path, {f"{n}.yaml": "" for n in range(FILES_MAX + 1)})
    assert whys(reading) == [f"more than {FILES_MAX} policy files"]


def test_the_digest_is_over_names_and_bytes_alone(tmp_path: Path):
    first = sound(read(tmp_path / "a", {"a.yaml": LOCAL_ROUTE, "b.yaml": "# x"})).digest
    assert len(first) == 16
    assert first == sound(read(tmp_path / "b", {"a.yaml": LOCAL_ROUTE, "b.yaml": "# x"})).digest
    assert first == digest_folder(tmp_path / "a")
    assert first != sound(read(tmp_path / "c", {"a.yaml": LOCAL_ROUTE, "c.yaml": "# x"})).digest
    assert first != sound(read(tmp_path / "d", {"a.yaml": LOCAL_ROUTE, "b.yaml": "# y"})).digest
    assert digest_folder(tmp_path / "none") == digest_folder(tmp_path / "nowhere")


def test_loading_raises_every_fault_at_once(tmp_path: Path):
    policies(tmp_path, {"a.yaml": "x: 1\ny: 2", "b.yaml": "["})
    with pytest.raises(BadPolicies) as bad:
        load(tmp_path, {})
    assert len(bad.value.faults) == 3
    assert str(bad.value).count("\n") == 2
    assert load(policies(tmp_path / "sound", LOCAL_ROUTE), {}).routes


# --- files that mean harm ------------------------------------------------------------------------------------------


def test_anchors_that_multiply_are_stopped(tmp_path: Path):
    tiers = "tiers: &tiers [" + ", ".join(["{kind: local}"] * 500) + "]"
    route = "&route {name: a, match: {path: /a}, dialect: openai-chat, " + tiers + "}"
    reading = read(tmp_path, f"routes: [{route}{', *route' * 5000}]")
    assert any("anchors multiply this file" in why for why in whys(reading))
    levels = "\n".join(f"  - &m{n + 1} {{<<: [{', '.join([f'*m{n}'] * 9)}]}}" for n in range(9))
    reading = read(tmp_path, "routes:\n  - &m0 {name: a, space: b, dialect: c, colour: d}\n" + levels)
    assert any("<< brings more than" in why for why in whys(reading))


def test_a_file_that_holds_itself_is_read_to_its_end(tmp_path: Path):
    assert whys(read(tmp_path, "routes: &r [*r]")) == ["expected mapping, got list"]
    assert read(tmp_path, "server: &s {limits: *s}").faults


def test_a_file_nested_beyond_measure_is_a_fault(tmp_path: Path):
    assert whys(read(tmp_path, "[" * 100_000)) == ["nested too deeply"]
    assert read(tmp_path, "routes: " + "{a: " * 50_000).faults


def test_a_variable_can_not_make_us_open_a_file(tmp_path: Path):
    text = LOCAL_ROUTE.replace("{kind: local}", "{kind: upstream, name: a, url: 'http://a', headers: {x: '${X}'}}")
    tier = sound(read(tmp_path, text, {"X": "file:chat.yaml"})).routes[0].tiers[0]
    assert isinstance(tier, UpstreamTier)
    assert tier.headers["x"].reveal() == "file:chat.yaml"


def test_a_fault_stays_on_one_line_whatever_the_file_says(tmp_path: Path):
    reading = read(tmp_path, '"\\e[31mred\\nkey": 1\nroutes: [{dialect: "a\\nb", "\\u2028": 1}]')
    assert all("\n" not in str(fault) and str(fault).isprintable() for fault in reading.faults)
