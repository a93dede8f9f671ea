"""Caches over the pure heart in `policies.cache`: keys, values, replay, the second level, and snapshots."""
