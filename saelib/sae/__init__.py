"""The sparse autoencoder: its formats on disk, how it is trained, how well it rebuilds what it reads.

Holds the training step in plain autograd, which is the definition, and the fast one that is held equal to it; the loop with its
checkpoints; one pass over a store of any size. Knows no notebooks and not why an SAE is trained; imports base, lm and acts.
Offers `sae.SAE`, `load.load_sae`, `train.train` (kept: `kept.train_once`), `evaluate.sae_quality`, `stream.stream`.
"""
