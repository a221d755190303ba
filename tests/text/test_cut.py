"""One writer of token stores: the same documents give the same contexts, whatever the tokenizer adds to a text by itself."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from saelib.acts.activations import stores_of_text
from saelib.base.cache import file_sha256
from saelib.lm.model import EMBEDDED_FOLDER, load_embedded
from saelib.text import corpus
from saelib.text.cut import cut, tokenised, write_split
from saelib.text.sources import Source
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore

BOS, EOS = "<|bos|>", "<|eos|>"


@pytest.fixture
def adding() -> tokenizers.Tokenizer:
    """The embedded tokenizer, told to put BOS and EOS around every text, to cut texts short and to fill them up."""
    tokenizer = tokenizers.Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    ids = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ids)
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(length=20)
    assert tokenizer.encode("a").ids[0] == tokenizer.token_to_id(BOS)
    return tokenizer


def test_by_hand() -> None:
    """Documents of 100, 0 and 200 tokens: a stream of 303, two contexts, 49 dropped."""
    contexts = cut([[5] * 100, [], [6] * 200], bos=0, eos=1, vocabulary=10)
    assert contexts.tokens.shape == (2, CONTEXT_LENGTH) and contexts.tokens.dtype == np.uint16
    assert (contexts.starts.tolist(), contexts.n_stream) == ([0, 101, 102], 303)
    assert contexts.tokens[0].tolist() == [0] + [5] * 100 + [1, 1] + [6] * 25
    assert contexts.tokens[1].tolist() == [0] + [6] * 127


def test_a_wide_vocabulary_takes_four_bytes_and_nothing_gives_no_context(tmp_path: Path) -> None:
    assert cut([[70_000] * 127], 0, 1, 70_001).tokens[0, 1] == 70_000
    contexts = cut([], 0, 1, 10)
    assert write_split(tmp_path, "train", contexts) == {"documents": 0, "contexts": 0, "tokens": 0}


def test_nothing_is_put_in_or_left_out(adding: tokenizers.Tokenizer) -> None:
    documents = [f"{i} long-standing rules of a well-known kind, and of others" * (i % 4) for i in range(700)]
    got = list(tokenised(adding, documents))
    plain = tokenizers.Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    assert got == [plain.encode(document, add_special_tokens=False).ids for document in documents]
    assert adding.truncation is not None and adding.padding is not None  # the caller's is as it was


@pytest.mark.slow
def test_study_text_and_own_text_are_cut_alike(adding: tokenizers.Tokenizer, empty_cache: Path, tmp_path: Path) -> None:
    documents = [f"Speech {i}: " + f"a well-known rule, {i} of it, and two-thirds more. " * 12 for i in range(60)]
    study = built(adding, documents, empty_cache, tmp_path)
    model = dataclasses.replace(load_embedded(), tokenizer=adding, key="adding")
    for split in corpus.SPLITS:
        own = [text.strip() for text in documents if corpus.split_of(text.strip()) == split]
        random.Random(split).shuffle(own)
        store, text = stores_of_text(model, own)
        assert np.array_equal(text.contexts("text"), study.contexts(split)) and len(store.contexts) > 0
        places = np.arange(len(store.contexts)), np.full(len(store.contexts), 90)
        assert np.array_equal(text.documents_of("text", *places), study.documents_of(split, *places))
    assert study.manifest["sources"][0]["hyphens"] > 0


def test_a_tokenizer_without_a_hyphen_has_no_hyphens(empty_cache: Path, tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({BOS: 0, EOS: 1, "a": 2, "?": 3}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    store = built(tokenizer, [f"a {i} well-known " * 40 for i in range(80)], empty_cache, tmp_path)
    assert store.manifest["splits"]["train"]["hyphens"] == store.manifest["sources"][0]["hyphens"] == 0
    assert store.manifest["splits"]["train"]["contexts"] > 0


def built(tokenizer: tokenizers.Tokenizer, documents: list[str], cache: Path, folder: Path) -> TokenStore:
    """The study's token store of some documents."""
    archive = cache / "archives" / "made-1.0-py3-none-any.whl"
    archive.parent.mkdir()
    archive.write_bytes(b"made")
    tokenizer.save(str(folder / "tokenizer.json"))
    source = Source("made", "1.0", archive.name, file_sha256(archive), 0.1, "prose", "speeches", "made up", "MIT")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "documents", lambda source, path: iter(documents))
        return corpus.build_token_store([source], folder / "tokenizer.json", name="made")
