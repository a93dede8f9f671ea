"""Policies decide: pure hearts that are told the time, and thin shells that apply them to a service."""
