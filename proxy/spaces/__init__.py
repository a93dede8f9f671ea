"""Whose vectors these are: what was handed out, what is guarded, and the ways from one space to another."""
