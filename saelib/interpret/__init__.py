"""What a feature does.

Holds examples and densities, logits, comparison with other features and SAEs, how well features detect given tokens, and what
a model loses or a circuit changes when a feature is taken out. No function here knows why it is asked; imports base, lm, acts
and sae. Offers `examples`, `features`, `compare`, `feature_f1`, `damage` and `circuits`, as tables with documented columns.
"""
