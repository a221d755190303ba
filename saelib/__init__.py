"""Split one feature of a sparse autoencoder into the finer features it is made of."""

__version__ = "0.1.0"
