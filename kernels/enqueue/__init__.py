"""A ring of unit keys: normalise, cast and write a batch of raw keys in one operator."""
