"""Cross entropy against soft targets over many outputs, without probabilities kept in memory."""
