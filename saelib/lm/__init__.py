"""Language models behind one interface: the embedded one, gelu-1l, any Hugging Face model; hook points; the fast one-layer path; the embedded weights."""
