"""The 2024 post reproduced, and what it left open.

Holds the run table, profiles of sizes, the choice of the parent, the trainings, the arms on many narrow SAEs and the claims: a
use of the other rooms, with presets and no machinery of its own. Knows no pages; imports all rooms before it. Offers `runs.RUNS`,
`profiles.get_profile`, `study.narrow_sae`, `selection.parent`, `trainings.train_run`, `claims`, and `texts.activations`, which
is `saelib.activations`.
"""
