"""A page on one feature: how often and how strongly it fires, where, what it does to the logits, what is near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, Unpack, cast

import markupsafe
import numpy as np
import pandas as pd

from saelib.acts.store import ActivationStore
from saelib.interpret.compare import compare_features, nearest_among
from saelib.interpret.examples import SAMPLE, Found, example_frame
from saelib.interpret.features import check_features, check_match, density_frame, histogram_frame, logit_effects
from saelib.lm.model import LanguageModel
from saelib.report.charts import histogram_svg
from saelib.report.html_view import HtmlView, examples, table
from saelib.report.page import show
from saelib.sae.sae import SAE
from saelib.sae.stream import Best, Counts, Histogram, stream

QUANTILES = (0.9, 0.5, 0.1)


class Member(NamedTuple):
    """A feature of some SAE, with a name for the reader."""

    sae: SAE
    feature: int
    name: str = ""


@dataclass(frozen=True)
class FeatureSummary:
    """What a page shows of a feature; the tables are those of `saelib.interpret.features` and `saelib.interpret.compare`."""

    feature: int
    density: pd.Series
    """active, tokens, density, mean, max."""
    histogram: pd.DataFrame
    examples: pd.DataFrame
    logits: pd.DataFrame
    nearest: pd.DataFrame

    @property
    def top(self) -> pd.DataFrame:
        """The strongest examples."""
        return self.examples[self.examples["band"] == "top"]

    @property
    def lower(self) -> pd.DataFrame:
        """Examples from lower down."""
        return self.examples[self.examples["band"] != "top"]

    def record(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        tables = {name: getattr(self, name) for name in ("histogram", "logits", "nearest", "examples")}
        return {
            "feature": self.feature,
            **{str(name): value for name, value in self.density.items() if name != "feature"},
            **{name: frame.to_dict("records") for name, frame in tables.items()},
        }


class SummaryOptions(TypedDict, total=False):
    """What is shown of a feature."""

    k: int
    """Strongest examples; default 10."""
    quantiles: Sequence[float]
    """From where lower examples come; default `QUANTILES`."""
    each: int
    """How many at each; default 4."""
    nearest: int
    """Features nearest by decoder cosine, and as many that fire most with it; default 6."""
    firing: bool
    """Count firing together, which encodes all features of the SAE, the second and longer pass; default True."""


class PageOptions(SummaryOptions, total=False):
    """What is shown on a feature's page."""

    name: str
    """What you call the feature."""


def summarise(
    sae: SAE,
    model: LanguageModel,
    store: ActivationStore,
    features: int | Sequence[int] | np.ndarray,
    **options: Unpack[SummaryOptions],
) -> list[FeatureSummary]:
    """What the pages show of some features, in two passes over the store however many there are.

    Args:
        options: see `SummaryOptions`.

    Raises:
        UserError: as for `examples.highest_activating_tokens`.
    """
    k, each, nearest = options.get("k", 10), options.get("each", 4), options.get("nearest", 6)
    chosen = check_features(sae, features)
    check_match(sae, model, store)
    n = len(chosen)
    counts, histogram, top = Counts(n), Histogram(n), Best(n, max(k, each))
    drawn = Best(n, SAMPLE, by="sample")
    stream(sae, store, chosen, [counts, histogram, top, drawn])
    density, bins = density_frame(chosen, counts), histogram_frame(chosen, histogram)
    pairs = compare_features(sae, chosen, store=store if options.get("firing", True) else None)
    found = []
    for i, feature in enumerate(chosen.tolist()):
        shown = example_frame(
            sae, model, store, feature, Found(i, top, drawn, options.get("quantiles", QUANTILES), each)
        )
        found.append(
            FeatureSummary(
                feature,
                density.iloc[i],
                bins[bins["feature"] == feature].reset_index(drop=True),
                shown[(shown["band"] != "top") | (shown["rank"] <= k)].reset_index(drop=True),
                logit_effects(sae.W_dec[feature], model),
                nearest_among(pairs[pairs["feature"] == feature], nearest, same=True),
            )
        )
    return found


def feature_page(
    sae: SAE,
    model: LanguageModel,
    store: ActivationStore,
    feature: int,
    parent: Member | None = None,
    children: Sequence[Member] = (),
    **options: Unpack[PageOptions],
) -> HtmlView:
    """A page on one feature: shows itself in a notebook, `.save("feature.html")` writes it and its `.json` sibling.

    Args:
        store: activations of the text to look at, from `text_store` or the study's.
        parent, children: members of this or of other SAEs of the same site, compared with the feature.
        options: see `PageOptions`.

    Raises:
        UserError: the feature is out of range, or SAE, model and store do not belong together.
    """
    name = options.pop("name", "")
    (summary,) = summarise(sae, model, store, feature, **cast(SummaryOptions, options))
    relatives = [("parent", parent)] if parent else []
    relatives += [("child", child) for child in children]
    family = (
        pd.concat([_relation(sae, feature, kind, member, store) for kind, member in relatives]) if relatives else None
    )
    title = f"Feature {feature}" + (f": {name}" if name else "")
    return HtmlView(
        template="feature.html.j2",
        title=title,
        context={**_context(summary), "family": None if family is None else _family_table(family)},
        record={
            **summary.record(),
            "name": name,
            "family": [] if family is None else family.to_dict("records"),
            "sources": sources(sae, model, store),
        },
        kicker=f"one feature of an SAE with {sae.cfg.d_sae:,} features on {sae.cfg.hook_name or 'an unnamed site'}",
        answer=_sentence(summary),
        text=f"{title}\n{_sentence(summary)}\n{summary.top[['activation', 'token']].to_string(index=False)}",
    )


def sources(sae: SAE, model: LanguageModel, store: ActivationStore) -> dict[str, Any]:
    """Where a page's numbers come from."""
    return {
        "language_model": f"{model.name} ({model.key})",
        "activations": f"{store.n_tokens:,} tokens, {store.manifest.get('split', '')} {store.key}".strip(),
        "sae": ", ".join(
            f"{key} {show(value)}" for key, value in sae.cfg.metadata.items() if not isinstance(value, dict)
        ),
    }


def _sentence(summary: FeatureSummary) -> str:
    density = summary.density
    if not density["active"]:
        return f"It fires on none of {int(density['tokens']):,} tokens."
    tokens = summary.top["token"].str.strip().value_counts()
    often = f", most strongly on {_quoted(tokens.index[:3].tolist())}" if len(tokens) else ""
    one_in = round(1 / density["density"])
    rate = f"one token in {one_in:,}" if one_in > 1 else "nearly every token"
    return f"It fires on {rate} ({int(density['active']):,} of {int(density['tokens']):,}){often}."


def _quoted(tokens: Sequence[str]) -> str:
    return ", ".join(f"“{token}”" if token else "a blank" for token in tokens)


def _context(summary: FeatureSummary) -> dict[str, Any]:
    density, top = summary.density, summary.top
    highest = float(density["max"])
    logits = {"top": "raises", "top_logit": "by", "bottom": "lowers", "bottom_logit": "by "}
    return {
        "figures": figures(summary),
        "silent": not density["active"],
        "histogram": markupsafe.Markup(histogram_svg(summary.histogram)),
        "logits": table(_visible(summary.logits), logits),
        "top": examples(top, max_value=highest),
        "lower": examples(summary.lower, max_value=highest, bands=True) if len(summary.lower) else None,
        "nearest": table(summary.nearest, nearest_headings(summary.nearest)) if len(summary.nearest) else None,
        "firing": "jaccard" in summary.nearest,
    }


def figures(summary: FeatureSummary) -> list[tuple[str, str]]:
    """The numbers that head a page."""
    density = summary.density
    return [
        ("fires on", f"{100 * density['density']:.3g}% of tokens"),
        ("tokens it fires on", show(int(density["active"]))),
        ("largest activation", show(float(density["max"]))),
        ("mean where it fires", show(float(density["mean"]))),
    ]


def nearest_headings(frame: pd.DataFrame) -> dict[str, str]:
    """Columns of the table of near features, and what they are called on a page."""
    names = {
        "other": "feature",
        "near": "near by",
        "decoder_cosine": "decoder cosine",
        "encoder_cosine": "encoder cosine",
    }
    return names | ({"jaccard": "fires together (Jaccard)", "both": "tokens with both"} if "jaccard" in frame else {})


def _visible(logits: pd.DataFrame) -> pd.DataFrame:
    """Tokens with their leading space to be seen."""
    seen = {
        column: [token.replace(" ", "␣").replace("\n", "↵") for token in logits[column]] for column in ("top", "bottom")
    }
    return logits.assign(**seen)


def _relation(sae: SAE, feature: int, kind: str, member: Member, store: ActivationStore) -> pd.DataFrame:
    frame = compare_features(sae, feature, member.sae, member.feature, store=store)
    frame.insert(0, "relation", kind)
    frame.insert(1, "name", member.name)
    return frame


def _family_table(family: pd.DataFrame) -> dict[str, Any]:
    headings = {
        "relation": "relation", "name": "name", "other": "feature", "decoder_cosine": "decoder cosine",
        "encoder_cosine": "encoder cosine", "both": "tokens with both", "jaccard": "Jaccard",
        "given_other": "fires where that one does",
    }  # fmt: skip
    return table(family.reset_index(drop=True), headings, percent=["given_other"])
