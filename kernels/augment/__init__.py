"""Differentiable augmentation: every view of a batch rendered from a table of parameters."""
