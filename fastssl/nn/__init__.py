"""Backbones and heads, imported by name."""
