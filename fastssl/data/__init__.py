"""Where batches come from; every draw is keyed by (seed, epoch, index)."""
