"""Language models behind one interface: the embedded one, gelu-1l, any Hugging Face model.

Hook points, the fast one-layer path, and the embedded weights. Knows no SAEs.
"""
