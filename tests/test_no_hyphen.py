"""A tokenizer without the token "-": what is about the hyphen says so in one line, and everything else does its work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from made_up_split import NOUNS, WORDS, documents, hyphen_sae

from saelib.acts.activations import Activations, harvest_documents
from saelib.base.errors import UserError
from saelib.bench import parents
from saelib.bench.suite import BenchConfig, Origin
from saelib.lm.model import OneLayerModel, load_embedded
from saelib.report.children_page import children_page
from saelib.report.feature_page import feature_page
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig
from saelib.split.classes import find_hyphen, hyphen_mask, hyphen_token
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.kinds import best_feature_of_kind, find_kind, tokens_of_kind
from saelib.split.result import Split
from saelib.study import prompt_check, selection, study
from saelib.study.profiles import SMOKE

pytestmark = pytest.mark.slow
CONFIG = SplitConfig(least=20, tau=0.0, K=4, seeds=1, controls=False, children=ChildrenConfig(n_steps=60))
REFUSED = r'tokenizer must hold the hyphen "-" as one token; got none in saelib-mini: ask for other contexts'


@pytest.fixture(scope="module")
def model() -> OneLayerModel:
    """The embedded model's weights with a tokenizer of whole words; a hyphen is `?`, as is any sign it does not know."""
    known = ["<|bos|>", "<|eos|>", "?", *WORDS, *NOUNS, *"The plan number was read . =".split()]
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(known))}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return replace(load_embedded(), tokenizer=tokenizer, key="no-hyphen")


@pytest.fixture(scope="module")
def acts(model: OneLayerModel) -> Activations:
    return harvest_documents(model, documents())


@pytest.fixture(scope="module")
def sae(acts: Activations) -> SAE:
    """Feature 3 fires on `plan`, which stands after one of six words."""
    return hyphen_sae(acts, token="plan")


@pytest.fixture(scope="module")
def split(acts: Activations, sae: SAE) -> Split:
    return split_feature(sae, 3, acts, CONFIG)


def test_there_is_no_such_token_and_it_is_said_in_one_line(model: OneLayerModel, acts: Activations, sae: SAE) -> None:
    assert find_hyphen(model) is None and find_hyphen(load_embedded()) == load_embedded().token_id("-")
    store = acts.stores["select"]
    for call in (
        lambda: hyphen_token(model),
        lambda: hyphen_mask(store, model),
        lambda: tokens_of_kind(model, "hyphen"),
        lambda: best_feature_of_kind(store, sae, model, "hyphen"),
        lambda: prompt_check.prompt_hyphens(model),
        lambda: split_feature(sae, 3, acts, replace(CONFIG, contexts="hyphen")),
    ):
        with pytest.raises(UserError, match=REFUSED):
            call()


def test_the_study_of_the_hyphen_says_so_too(
    model: OneLayerModel, acts: Activations, sae: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "language_model", lambda profile: model)
    monkeypatch.setattr(study, "activations", lambda profile, split: acts.stores[split])
    study.joining_hyphens.cache_clear()
    for call in (study.joining_hyphens, study.joins):
        with pytest.raises(UserError, match=REFUSED):
            call(SMOKE, "test")
    with pytest.raises(UserError, match=REFUSED):
        selection.rank_marking(SMOKE, sae, "hyphen")


def test_parents_of_other_kinds_are_still_there(model: OneLayerModel, acts: Activations, sae: SAE) -> None:
    ids = {word: [model.token_id(word)] for word in ("3", "7", "=")}
    assert find_kind(model, "hyphen") == []
    assert tokens_of_kind(model, "digit") == find_kind(model, "digit") == [("digit", sorted(ids["3"] + ids["7"]))]
    assert tokens_of_kind(model, "code") == [("=", ids["="])]
    best = best_feature_of_kind(acts.stores["select"], sae, model, "digit")
    assert 0 <= best < sae.cfg.d_sae and best != 3
    with pytest.raises(UserError, match="kind of parent must be one of hyphen, digit, code; got 'word'"):
        find_kind(model, "word")
    wordless = replace(model, tokenizer=tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?")))
    wordless.__dict__["vocabulary"] = ["?"]
    with pytest.raises(UserError, match="tokenizer must hold a token of the kind digit; got none in saelib-mini"):
        tokens_of_kind(wordless, "digit")


def test_the_benchmark_takes_no_parent_of_a_kind_that_is_not_there(acts: Activations, sae: SAE) -> None:
    origin = Origin("words", "dev", "nowhere")
    assert parents._named(origin, sae, acts, "hyphen", BenchConfig()) is None  # before the origin is opened


def test_another_feature_is_split_and_shown(split: Split, acts: Activations, tmp_path: Path) -> None:
    """By the words before it, which a hyphen is none of."""
    contexts = [context for context in split.labels.contexts if context.primary]
    assert {context.kind for context in contexts} == {"previous"}
    assert {context.name for context in contexts} <= {f'after "{noun}"' for noun in NOUNS} and len(contexts) > 1
    assert np.isfinite(split.separation["rest + children"].S[2].value)
    html = children_page(split).save(tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(context.name.split('"')[1] in html for context in contexts)


def test_a_feature_s_page_is_written(sae: SAE, model: OneLayerModel, acts: Activations, tmp_path: Path) -> None:
    page = feature_page(sae, model, acts.stores["test"], 3, k=4).save(tmp_path / "feature.html")
    assert "plan" in page.read_text(encoding="utf-8")
