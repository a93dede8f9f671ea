"""A small language model of one's own, in a process beside the sidecar."""
