"""The tools in one import: `from saelib.report import tools`. docs/using.md lists them."""

from saelib.acts.activations import text_store
from saelib.interpret.compare import co_firing, compare_features, lineage, match_saes, nearest_features
from saelib.interpret.examples import highest_activating_tokens
from saelib.interpret.features import (
    activation_density,
    activation_histogram,
    logit_effects,
    prompt_activations,
    top_features,
)
from saelib.lm.model import load_embedded
from saelib.report.decoder_map import decoder_map, map_view
from saelib.report.feature_page import Member, feature_page
from saelib.report.html_view import examples
from saelib.sae.load import load_sae

__all__ = [
    "Member",
    "activation_density",
    "activation_histogram",
    "co_firing",
    "compare_features",
    "decoder_map",
    "examples",
    "feature_page",
    "highest_activating_tokens",
    "lineage",
    "load_embedded",
    "load_sae",
    "logit_effects",
    "map_view",
    "match_saes",
    "nearest_features",
    "prompt_activations",
    "text_store",
    "top_features",
]
