"""What is kept depends on the code that made it: an edit to the arithmetic changes its key, an edit to a chart does not."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saelib.base import code_version as module
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.sae.initial import init_random
from saelib.sae.kept import sae_key, training_folder, weights_hash
from saelib.sae.sae import SAEConfig
from saelib.sae.train import TRAINING_CODE, train
from saelib.sae.train_config import TrainConfig
from saelib.study import children_rows, outcome, study
from saelib.study.profiles import SMOKE


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Changes a module in a copy of the package, as a process that begins after the change sees it."""
    copy = tmp_path / "1" / "saelib"
    shutil.copytree(module.PACKAGE, copy, ignore=shutil.ignore_patterns("models", "__pycache__"))
    monkeypatch.setattr(module, "PACKAGE", copy)

    def change(name: str, old: str, new: str) -> None:
        path = copy.joinpath(*name.split(".")).with_suffix(".py")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        module._version.cache_clear()

    return change


def test_editing_the_step_changes_where_trainings_are_kept_and_editing_a_chart_does_not(
    edit: Callable[[str, str, str], None],
) -> None:
    before = training_folder("run-01", "key")
    assert training_folder("run-01", "key") == before
    edit("report.charts", "import", "import math\nimport")
    assert training_folder("run-01", "key") == before
    edit("sae.step", '"""One training step', '"""Reworded: one training step')
    edit("sae.step", "\nimport", "\n# a remark\nimport")
    assert training_folder("run-01", "key") == before
    edit("sae.dense_step", "squares += error.square().sum()", "squares += 2 * error.square().sum()")
    assert training_folder("run-01", "key") != before


@pytest.mark.parametrize("name", TRAINING_CODE)
def test_every_module_that_trains_counts(edit: Callable[[str, str, str], None], name: str) -> None:
    before = training_folder("run-01", "key")
    edit(name, "from __future__ import annotations", "from __future__ import annotations\n\n_OTHER = 2")
    assert training_folder("run-01", "key") != before


def test_an_old_checkpoint_is_not_continued_by_a_changed_step(
    edit: Callable[[str, str, str], None], tmp_path: Path
) -> None:
    class Batches:
        batch_size, d_in = 8, 4

        def batch(self, step: int, out: torch.Tensor | None = None) -> torch.Tensor:
            return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))

    sae = init_random(SAEConfig(4, 6, "h", "m"), torch.Generator().manual_seed(0))
    cfg = TrainConfig(l1_coeff=1e-3, n_steps=3, batch_size=8, reinit_every=0)
    train(sae, Batches(), cfg, workdir=tmp_path / "run")
    edit("sae.dense_step", "squares += error.square().sum()", "squares += 2 * error.square().sum()")
    with pytest.raises(UserError, match="a checkpoint must belong to this run"):
        train(sae, Batches(), cfg, workdir=tmp_path / "run")


def test_a_quality_is_kept_by_the_code_that_measured_it(
    edit: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store:
        key = "made"

    keys: list[str] = []
    quality = dict.fromkeys(study.Quality._fields, 0.0) | {"tokens": 1}
    monkeypatch.setattr(study, "activations", lambda profile, split: Store())
    monkeypatch.setattr(study, "kept_json", lambda kind, key, compute: keys.append(key) or quality)
    sae = init_random(SAEConfig(4, 6, "h", "m"), torch.Generator().manual_seed(0))

    def key() -> str:
        study.quality_of(SMOKE, sae)
        return keys[-1]

    first = key()
    edit("report.charts", "import", "import math\nimport")
    assert key() == first
    edit("sae.evaluate", "(feature_acts > 0).sum()", "(feature_acts > 1).sum()")
    assert key() != first


def test_weights_of_another_kind_are_another_sae() -> None:
    first = init_random(SAEConfig(4, 6, "h", "m"), torch.Generator().manual_seed(0))
    relabelled = init_random(SAEConfig(4, 6, "h", "m", metadata={"seed": 1}), torch.Generator().manual_seed(0))
    topk = init_random(SAEConfig(4, 6, "h", "m", architecture="topk", k=2), torch.Generator().manual_seed(0))
    assert weights_hash(first) == weights_hash(topk)
    assert sae_key(first) == sae_key(relabelled) != sae_key(topk)


def test_the_lists_hold_all_that_computes() -> None:
    """Every module that the training code imports is in its list, or only checks, stores or tells."""
    told = {"acts.store", "sae.divergence", "sae.format", "sae.hub_release", "sae.stream", "text.tokens", "lm.model"}
    told |= {f"base.{name}" for name in ("cache", "checkpoints", "code_version", "errors", "memory", "progress")}
    for name in TRAINING_CODE:
        path = module.PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saelib"):
                found = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
                names = {one.removeprefix("saelib.") for one in found}
                assert names & (set(TRAINING_CODE) | told), (name, names)
    for names in (study.QUALITY_CODE, outcome.OUTCOME_CODE, children_rows.CHILDREN_CODE):
        assert len(code_version(*names)) == 16
