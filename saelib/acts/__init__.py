"""Activations harvested once, kept on disk, filtered, served shuffled. Knows nothing of how SAEs are trained."""
