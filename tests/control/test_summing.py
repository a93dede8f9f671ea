"""What several workers say, added up: nothing lost, nothing counted twice, and the worst shown first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from understudy.policies.fingerprint import State
from understudy.proxy.control.summing import Summed, families_of, kept, merged_status, summed, worst
from understudy.proxy.control.wire import Family


def families(calls: int, seconds: list[float], in_flight: int, state: str) -> list[Family]:
    registry = CollectorRegistry()
    Counter("calls", "calls", ["route"], registry=registry).labels("chat").inc(calls)
    histogram = Histogram("took_seconds", "time", buckets=(0.1, 1.0), registry=registry)
    for each in seconds:
        histogram.observe(each)
    Gauge("in_flight", "now", registry=registry).set(in_flight)
    breaker = Gauge("understudy_breaker_state", "state", ["route", "tier", "endpoint", "state"], registry=registry)
    for each in ("closed", "half-open", "open"):
        breaker.labels("chat", "model", "model", each).set(each == state)
    return families_of(registry)


def value(whole: list[Family], name: str, **labels: str) -> float:
    found = [v for _, _, _, samples in whole for n, on, v in samples if n == name and labels.items() <= on.items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_counters_histograms_and_gauges_add_up():
    whole = summed([families(3, [0.05, 0.5], 1, "closed"), families(4, [5.0], 2, "closed")])
    assert value(whole, "calls_total", route="chat") == 7
    assert value(whole, "took_seconds_bucket", le="0.1") == 1
    assert value(whole, "took_seconds_bucket", le="+Inf") == 3
    assert value(whole, "took_seconds_sum") == 5.55
    assert value(whole, "in_flight") == 3


def test_what_a_dead_worker_counted_stays_and_what_it_held_does_not():
    dead = kept(families(5, [0.5], 9, "open"))
    whole = summed([families(1, [], 2, "closed"), dead])
    assert value(whole, "calls_total") == 6
    assert value(whole, "took_seconds_count") == 1
    assert value(whole, "in_flight") == 2
    assert value(whole, "understudy_breaker_state", state="closed") == 1


def test_a_breaker_is_shown_in_the_worst_state_that_any_worker_has_it_in_and_in_that_alone():
    whole = summed([families(0, [], 0, state) for state in ("closed", "open", "half-open")])
    shown = {state: value(whole, "understudy_breaker_state", state=state) for state in ("open", "half-open", "closed")}
    assert shown == {"open": 1, "half-open": 0, "closed": 0}
    assert worst(["closed", "half-open"]) == "half-open"


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.data())
def test_a_sum_never_falls_whoever_dies_and_whenever(counts: list[int], data: st.DataObject):
    living = dict(enumerate(counts))
    retired: list[Family] = []
    before = 0.0
    for _ in range(6):
        who = data.draw(st.sampled_from(sorted(living)))
        if data.draw(st.booleans()):
            retired = summed([retired, kept(families(living[who], [], 0, "closed"))])
            living[who] = 0
        else:
            living[who] += data.draw(st.integers(0, 5))
        whole = summed([*(families(count, [], 0, "closed") for count in living.values()), retired])
        now = value(whole, "calls_total")
        assert now >= before
        before = now


def test_the_sum_is_a_sound_exposition():
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Summed(summed([families(1, [0.5], 1, "open")] * 2)))
    parsed = {each.name: each for each in text_string_to_metric_families(generate_latest(registry).decode())}
    assert parsed["calls"].type == "counter"
    assert parsed["took_seconds"].type == "histogram"
    assert parsed["calls"].samples[0].value == 2


def one_status(answers: int, state: str, *, ok: bool) -> dict[str, object]:
    breaker = {"state": state, "reason": state}
    endpoints = [
        {"name": "a", "limit": {"in_flight": answers}, "breaker": breaker},
        {"name": "b", "limit": {"in_flight": 1}, "breaker": {"state": "closed", "reason": ""}},
    ]
    tier = {"name": "model", "outcomes": {"failed": 1}, "endpoints": endpoints}
    counts = {"answers": {"primary 2xx": answers}, "unanswered": {"exhausted": answers}}
    route = {"name": "chat", "in_flight": 1, **counts, "tiers": [tier]}
    policies = {"digest": "d", "reload_ok": ok, "reloads": {"ok": 1, "bad": int(not ok)}}
    return {"policies": policies, "local": {"ready": ok, "reason": "" if ok else "warming"}, "routes": [route]}


def test_a_merged_status_adds_up_counts_and_shows_what_is_wrong_anywhere():
    whole = merged_status([one_status(2, "closed", ok=True), one_status(3, "open", ok=False)])
    route = whole["routes"][0]
    assert route["answers"] == {"primary 2xx": 5}
    assert route["unanswered"] == {"exhausted": 5}
    assert route["in_flight"] == 2
    first, second = route["tiers"][0]["endpoints"]
    assert (first["breaker"]["state"], first["limit"]) == ("open", {"in_flight": 5})
    assert (second["breaker"]["state"], second["limit"]) == ("closed", {"in_flight": 2})
    assert route["tiers"][0]["outcomes"] == {"failed": 2}
    assert not whole["policies"]["reload_ok"]
    assert whole["policies"]["reloads"] == {"ok": 2, "bad": 1}
    assert whole["local"]["reason"] == "warming"


def test_a_worker_that_is_loading_hides_nothing_of_what_the_others_do_and_is_said():
    loading, gathering, reading = (one_status(0, "closed", ok=ok) for ok in (False, True, True))
    gathering["local"]["bridges"] = {"reason": "", "waiting": 2, "passed_over": 1, "spaces": {"far 4": {"pairs": 7}}}
    reading["local"]["bridges"] = {"reason": "", "waiting": 3, "passed_over": 0, "spaces": {"far 4": {"pairs": 0}}}
    whole = {"reason": "", "waiting": 5, "passed_over": 1, "spaces": {"far 4": {"pairs": 7}}}
    assert merged_status([gathering, reading])["local"]["bridges"] == whole
    gathering["local"]["shadow_index"] = {"docs": {"embedded": 3}}
    local = merged_status([gathering, reading, loading])["local"]
    assert (local["ready"], local["reason"], local["shadow_index"]) == (False, "warming", {"docs": {"embedded": 3}})
    assert local["bridges"] == whole | {"reason": "a worker has not loaded the local model yet"}
    reading["local"]["bridges"]["reason"] = "it has not looked"
    assert merged_status([gathering, reading])["local"]["bridges"] == whole | {"reason": "it has not looked"}
    assert "bridges" not in merged_status([loading, loading])["local"]


def test_without_any_worker_the_status_still_has_its_shape():
    whole = merged_status([])
    assert (whole["routes"], whole["local"]["ready"]) == ([], False)


def test_caches_of_several_workers_add_up_and_a_route_without_one_has_none():
    def route(name: str, **more: object) -> dict[str, object]:
        return {"name": name, "in_flight": 0, "answers": {}, "unanswered": {}, "tiers": [], **more}

    def status(entries: int, found: dict[str, int]) -> dict[str, object]:
        cache = {"entries": entries, "found": found}
        policies = {"reload_ok": True, "reloads": {}}
        return {"policies": policies, "local": {"ready": True}, "routes": [route("a", cache=cache), route("b")]}

    merged = merged_status([status(3, {"hit": 1}), status(4, {"hit": 2, "miss": 5})])
    assert merged["routes"][0]["cache"] == {"entries": 7, "found": {"hit": 3, "miss": 5}}
    assert "cache" not in merged["routes"][1]


def test_what_workers_know_of_vectors_adds_up_and_a_fingerprint_is_shown_at_its_worst():
    def status(state: State, found: int, *, about: bool) -> dict[str, object]:
        spaces = {
            "handles_about": about,
            "ledger": {"entries": found},
            "vectors": {"handed": found},
            "dimensions": {"openai": 1536},
            "handles": {},
            "fingerprints": {"embeddings/openai": {"state": state, "cosine": 0.5}},
            "unavailable": {"embeddings no_model": found},
        }
        policies = {"reload_ok": True, "reloads": {}}
        return {"policies": policies, "local": {"ready": True}, "routes": [], "spaces": spaces}

    one, other = status("quarantined", 2, about=False), status("trusted", 3, about=True)
    for statuses in ([one, other], [other, one]):
        spaces = merged_status(statuses)["spaces"]
        assert spaces["fingerprints"] == {"embeddings/openai": {"state": "quarantined", "cosine": 0.5}}
        assert (spaces["handles_about"], spaces["dimensions"]) == (True, {"openai": 1536})
        assert (spaces["ledger"], spaces["vectors"]) == ({"entries": 5}, {"handed": 5})
        assert spaces["unavailable"] == {"embeddings no_model": 5}
