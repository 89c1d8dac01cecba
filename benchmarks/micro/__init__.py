"""One operator against its peers and its physical floor."""
