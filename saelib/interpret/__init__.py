"""What a feature does: examples, densities, logits, comparison with other features and SAEs."""
