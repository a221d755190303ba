"""The sparse autoencoder and its formats, the training step and loop, and how well an SAE rebuilds what it reads."""
