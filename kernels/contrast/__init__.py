"""Log-denominators of a similarity matrix that never exists: what contrastive losses share."""
