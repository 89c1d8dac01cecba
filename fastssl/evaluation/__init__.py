"""Readouts: each yields (metric, value)."""
