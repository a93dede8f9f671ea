"""The words of the command line: what each does, on policies, on a sidecar that runs, or on local collections."""
