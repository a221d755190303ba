"""Activations of a language model at one hook, harvested once and kept on disk.

Holds the store (bf16 rows, memory-mapped, resumable, each chunk with its checksum), the filter that keeps part of one without a
copy, and the shuffled batches a training reads. Knows nothing of how SAEs are trained; imports base, text and lm. Offers
`store.harvest` and `store.ActivationStore`, `batches.ShuffledBatches`, and `activations.Activations`: three splits with the
model and tokens they came from.
"""
