"""What is told of all that happens: metrics, status, the access log, traces, and explanations."""
