"""Language models behind one interface: the embedded one, gelu-1l, any Hugging Face model.

Holds hook points, the fast one-layer path and the embedded weights. Knows no SAEs; imports base and text. Offers
`model.LanguageModel` (activations at one hook, logits when they are replaced), `model.load_embedded`, `hf_model.load_hf_folder`.
"""
