"""The sigmoid loss over all pairs, its logits never kept: SigLIP's work."""
