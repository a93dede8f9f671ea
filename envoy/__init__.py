"""Envoy invites: bootstrap files and manifests that put the sidecar behind the real upstreams."""
