"""Policies: per-sample parameters are data."""
