"""The control loops: they set state which the data plane reads, and are never on its path."""
