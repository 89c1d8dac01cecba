"""NT-Xent over raw embeddings: normalise, similarities, loss and gradients in one operator."""
