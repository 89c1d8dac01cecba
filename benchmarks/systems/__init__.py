"""What surrounds an operator: start-up, the loader, a training step."""
