"""The one training loop, its run folder and its checkpoints."""
