"""Measuring a sidecar over loopback: fixed exchanges, who answers them, the load, and whose CPU it took."""
