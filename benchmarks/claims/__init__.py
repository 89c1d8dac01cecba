"""The papers' claims at the scale of two cores: ``python -m benchmarks.claims NAME``."""
