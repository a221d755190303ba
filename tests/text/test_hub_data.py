"""The study's data by the true reading code: parquet and arrow folders, a hub cache, resuming, splits by row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from snapshot import WORDS, digits_tokenizer, snapshot_folder, write_gelu_1l, write_tokenizer

from saelib.acts.activations import text_store
from saelib.base.errors import UserError
from saelib.lm.gelu_1l import load_gelu_folder
from saelib.lm.model import OneLayerModel
from saelib.study import selection, study, trainings
from saelib.study.profiles import get_profile
from saelib.study.runs import get_run
from saelib.text import hub_data
from saelib.text.hub_data import PRETOKENISED, interpretation_texts, pretokenised_store, split_of_row
from saelib.text.tokens import CONTEXT_LENGTH

SMALL = {"d_model": 32, "d_mlp": 128, "n_heads": 4, "d_head": 8, "n_ctx": 128, "d_vocab": 96}
ROWS = 120


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_gelu_1l(tmp_path_factory.mktemp("gelu"), SMALL)
    write_tokenizer(folder, SMALL["d_vocab"])
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> OneLayerModel:
    return load_gelu_folder(model_folder, model_folder)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Rows of 1024 tokens, a hyphen in some 3%, as the data set holds them: whatever comes first, no BOS."""
    generator = np.random.default_rng(0)
    rows = generator.integers(4, 96, (ROWS, 1024))
    rows[generator.random(rows.shape) < 0.03] = digits_tokenizer(96).token_to_id("-")
    return rows


def table(rows: np.ndarray, column: str = "tokens") -> pyarrow.Table:
    return pyarrow.table({column: pyarrow.array(list(rows), type=pyarrow.list_(pyarrow.int64()))})


def write_parquet(folder: Path, rows: np.ndarray) -> None:
    """Two shards under `data`, as on the hub."""
    (folder / "data").mkdir(parents=True)
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        pyarrow.parquet.write_table(table(part), folder / "data" / f"train-0000{i}-of-00002.parquet", row_group_size=17)


def write_arrow(folder: Path, rows: np.ndarray) -> None:
    """What `datasets` keeps in its cache and writes with save_to_disk."""
    folder.mkdir(parents=True)
    content = table(rows)
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), content.schema) as writer:
        writer.write_table(content, max_chunksize=13)


@pytest.fixture
def local(tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_parquet(tmp_path / "c4", rows)
    monkeypatch.setenv("SAELIB_C4_CODE_TOKENS", str(tmp_path / "c4"))
    return tmp_path / "c4"


WANTED = {"train": 300, "select": 40, "test": 40}


def test_rows_become_contexts_as_in_the_study(
    local: Path, rows: np.ndarray, model: OneLayerModel, empty_cache: Path
) -> None:
    store = pretokenised_store(model, WANTED)
    for split, wanted in WANTED.items():
        contexts = np.asarray(store.contexts(split))
        assert len(contexts) >= wanted and contexts.shape[1] == CONTEXT_LENGTH and (contexts[:, 0] == model.bos).all()
        numbers = [row for row in range(ROWS) if split_of_row(row) == split][: len(contexts) // 8]
        expected = rows[numbers].reshape(-1, 128)
        assert (contexts[:, 1:] == expected[:, 1:]).all(), "and each split has rows of its own, in order"
    counts = store.manifest["splits"]["train"]
    assert counts["tokens"] == counts["contexts"] * 127 and counts["hyphens"] > 0
    assert store.documents_of("train", np.array([0, 7, 8]), np.array([1, 127, 5])).tolist() == [0, 0, 1]
    assert store.folder == pretokenised_store(model, WANTED).folder


def test_arrow_and_a_hub_cache_hold_the_same(
    rows: np.ndarray, model: OneLayerModel, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arrow(tmp_path / "arrow", rows)
    monkeypatch.setenv("SAELIB_C4_CODE_TOKENS", str(tmp_path / "arrow"))
    first = pretokenised_store(model, WANTED)
    monkeypatch.delenv("SAELIB_C4_CODE_TOKENS")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_parquet(snapshot_folder(tmp_path / "home", PRETOKENISED, "datasets"), rows)
    second = pretokenised_store(model, WANTED)
    assert first.folder != second.folder
    assert (first.contexts("train") == second.contexts("train")).all()


def test_a_killed_build_goes_on_where_it_was(
    local: Path, model: OneLayerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_data, "_CHUNK_ROWS", 10)
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "a"))
    whole = pretokenised_store(model, WANTED)
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "b"))

    def stop(label: str, done: int, total: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretokenised_store(model, WANTED, progress=stop)
    (train,) = (tmp_path / "b" / "tokens").glob("*/train.bin")
    with open(train, "ab") as file:
        file.write(b"half a chunk that was not noted")
    skipped: list[int] = []
    read = hub_data.read_column

    def watched(files: list[Path], column: str, skip: int = 0) -> Any:
        skipped.append(skip)
        return read(files, column, skip)

    monkeypatch.setattr(hub_data, "read_column", watched)
    resumed = pretokenised_store(model, WANTED)
    assert skipped == [20], "what was read is not read again"
    for split in WANTED:
        for name in (f"{split}.bin", f"{split}.documents.bin"):
            assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def spoil_token(folder: Path, rows: np.ndarray) -> None:
    changed = rows.copy()
    changed[3, 5] = 50_000
    pyarrow.parquet.write_table(table(changed), folder / "data" / "train-00000-of-00002.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f, r: [p.unlink() for p in f.rglob("*.parquet")],
            "a data set's folder must hold .parquet or .arrow files",
        ),
        (
            lambda f, r: (f / "data/train-00000-of-00002.parquet").write_bytes(b"PAR1"),
            "must be intact parquet or arrow",
        ),
        (
            lambda f, r: pyarrow.parquet.write_table(table(r, "input_ids"), f / "data/train-00000-of-00002.parquet"),
            r"data file must have the column 'tokens'; got \['input_ids'\]",
        ),
        (spoil_token, r"tokens must be in \[0, d_vocab=96\); got 50000 in row 3: pass the data set of this model's"),
        (
            lambda f, r: pyarrow.parquet.write_table(table(r[:, :50]), f / "data/train-00000-of-00002.parquet"),
            "a row must hold at least 128 tokens",
        ),
        (
            lambda f, r: (f / "data/train-00001-of-00002.parquet").unlink(),
            "data must fill .*got train .*: pass more of",
        ),
    ],
)
def test_bad_data_is_one_clear_line(
    local: Path,
    rows: np.ndarray,
    model: OneLayerModel,
    empty_cache: Path,
    spoil: Callable[[Path, np.ndarray], Any],
    message: str,
) -> None:
    spoil(local, rows)
    with pytest.raises(UserError, match=message) as caught:
        pretokenised_store(model, {**WANTED, "train": 600})
    assert "\n" not in str(caught.value)


def test_no_data_at_hand_is_told_within_a_second(
    model: OneLayerModel, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    began = time.perf_counter()
    with pytest.raises(
        UserError, match=f"{PRETOKENISED} must be at hand .*SAELIB_C4_CODE_TOKENS .*HF_HOME .*connect to"
    ):
        pretokenised_store(model, WANTED)
    assert interpretation_texts(4) == []
    assert time.perf_counter() - began < 1.0


def test_interpretation_text(model: OneLayerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(WORDS) for _ in range(30)]
    (tmp_path / "20k").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "20k" / "train-00000-of-00001.parquet")
    monkeypatch.setenv("SAELIB_C4_CODE_20K", str(tmp_path / "20k"))
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "cache"))
    assert interpretation_texts(3) == texts[:3]
    store = text_store(model, interpretation_texts(30), max_contexts=3)
    assert len(store.contexts) == 3 and model.to_str_tokens(store.contexts[0, :4]) == ["<|BOS|>", *WORDS[:3]]


@pytest.mark.slow
def test_the_profile_runs_on_the_stand_ins(
    local: Path, model_folder: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files to a trained wide SAE by the profile's own path, with its sizes cut down and nothing else."""
    monkeypatch.setenv("SAELIB_GELU_1L", str(model_folder))
    profile = replace(
        get_profile("gelu-1l"), d_in=32, d_sae_narrow=32, d_sae_wide=96, train_contexts=300, select_contexts=40,
        test_contexts=40, evaluate_contexts=8, batch_size=512, narrow_steps=30, wide_steps=20, reinit_every=15, log_every=5,
        checkpoint_every=10,
    )  # fmt: skip
    narrow = study.narrow_sae(profile).sae
    assert narrow.cfg.center_writing_weights is True and narrow.cfg.model_name == "gelu-1l"
    parent = selection.parent(profile)
    trained = trainings.train_run(profile, get_run(7), parent, "context", 20)
    assert trained.sae.cfg.d_sae == 96 and trained.n_tokens == 20 * 512
    assert study.quality_of(profile, trained.sae).tokens > 0
    others = selection.parents_of_other_kinds(profile, narrow)
    assert others["kind"].tolist() == ["digit", "code"] and others["token"].iloc[0] == "digit"
    assert len({parent.feature, *others["feature"]}) == 3, "three parents, no two the same"
    with pytest.raises(UserError, match="kind of parent must be one of hyphen, digit, code; got 'verb'"):
        selection.rank_marking(profile, narrow, "verb")
    ranking = selection.rank_parents(profile, narrow)
    assert "token" not in ranking and ranking["f1"].is_monotonic_decreasing
    store = study.activations(profile, "select")
    best, hyphen = ranking.iloc[0], study.joins(profile, "select")
    fires = narrow.encode(store.rows(slice(None)))[:, int(best["feature"])].detach().numpy() > parent.tau
    hits = int((fires & hyphen).sum())
    assert parent.feature == best["feature"] and parent.tau < best["at_least"]
    assert best["precision"] * best["fires_on"] * store.n_tokens == pytest.approx(hits)
    assert best["recall"] * hyphen.sum() == pytest.approx(hits) and hits > 0
    assert best["f1"] == pytest.approx(2 / (1 / best["precision"] + 1 / best["recall"]))
    # the narrow SAE as a file: then the study's own parent and threshold are the default

    for function in (study.narrow_sae, selection.parent, study.coefficient):
        getattr(function, "cache_clear", lambda: None)()
    monkeypatch.setenv("SAELIB_NARROW_SAE", str(narrow.save(empty_cache / "given")))
    given = replace(profile, parent=5, tau=0.25)
    assert selection.parent(given)[:2] == (5, 0.25) and selection.parent(given, 3).feature == 3
    assert torch.equal(study.narrow_sae(given).sae.W_enc, narrow.W_enc)
    assert study.coefficient(given).l1_coeff == 3e-4
    with pytest.raises(UserError, match="d_in of profile gelu-1l must be the model's 32; got 512"):
        study.activations(replace(profile, d_in=512), "test")
