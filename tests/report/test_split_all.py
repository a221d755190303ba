"""Every eligible feature of an SAE, split: the index, its table, and what is there already."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import saelib.report.split_all as module
from saelib.base.errors import UserError
from saelib.bench.known import World, known_activations, known_sae
from saelib.report.split_all import COLUMNS, AllRequest, split_all

WORLD = World("all", d_in=24, n_background=40, contexts=(260, 200, 200), shares=(0.3, 0.3))


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AllRequest:
    monkeypatch.setattr(module, "activations", lambda model, text, sae, device: known_activations(WORLD))
    folder = known_sae(WORLD)[0].save(tmp_path / "sae")
    return AllRequest(str(folder), str(tmp_path / "out"), K=4)


def test_every_feature_has_a_row_and_those_that_split_a_page(
    request_: AllRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = known_sae(WORLD)[1]
    index = split_all(request_, [parent, parent + 1], jobs=1)
    table = pd.read_csv(index.parent / "splits.csv")
    assert list(table.columns) == [*COLUMNS] and table["feature"].tolist() == [parent, parent + 1]
    row, other = (r for _, r in table.iterrows())
    assert (
        row["judged"] == 2
        and row["S_2"] > row["S_2_rest"]
        and row["gain"] == pytest.approx(row["S_2"] - row["S_2_rest"], abs=1e-5)
    )
    assert "some token must stand before or after" in other["reason"] and pd.isna(other["S_2"])
    text = index.read_text()
    assert f'href="feature-{parent}/index.html"' in text and "1 features were not split" in text
    children = pd.read_csv(index.parent / f"feature-{parent}" / "children.csv")
    assert row["names"].split("; ")[0] == children["name"][(children["share"] * children["name_mcc"]).idxmax()]
    assert "1 features: " in text and text.index(">names</th>") < text.index(">verdict</th>")
    record = json.loads((index.parent / f"feature-{parent}" / "split.json").read_text())
    assert record["verdict_text"] == row["verdict"]
    assert f"What is feature {parent} made of?" in (index.parent / f"feature-{parent}" / "index.html").read_text()

    monkeypatch.setattr(module, "split_feature", lambda *a: pytest.fail("made again"))
    split_all(request_, [parent, parent + 1], jobs=1)
    pd.testing.assert_frame_equal(pd.read_csv(index.parent / "splits.csv"), table)


def test_an_sae_without_an_eligible_feature_is_refused(request_: AllRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "eligible", lambda table: [])
    with pytest.raises(UserError, match=r"a feature must be on for 0\.1% to 5% of the tokens"):
        split_all(request_, jobs=1)
