"""The proxy does: sockets, dialects, configuration, the stack, the control loops and the command line."""
