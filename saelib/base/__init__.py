"""Errors, the cache and its locks, checksums, checkpoints, progress, provenance, compiled loops and small statistics.

Knows nothing of SAEs or text; imports no other room.
"""
