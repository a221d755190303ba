"""Replacing, by hand: what an intervention changes, who is the largest feature, when a class is replaced."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from saelib.base.errors import UserError
from saelib.report.study_figures import watched_figure
from saelib.sae.initial import init_random
from saelib.sae.sae import PARAMETERS, SAE, SAEConfig
from saelib.split.classes import CLASSES
from saelib.study import replacing, replacing_tables
from saelib.study.replacing import ARMS, Starts, Watch, children_starts, fvu, intervene
from saelib.study.replacing_tables import replaced_at

D_IN, D_NARROW, D_WIDE, PARENT = 4, 3, 6, 1


def sae_of(d_sae: int, seed: int = 0) -> SAE:
    return init_random(SAEConfig(D_IN, d_sae, "hook", "model"), torch.Generator().manual_seed(seed))


def changed(before: SAE, after: SAE) -> dict[str, list[int]]:
    """Features whose column, bias or row differs."""
    dims = {"W_enc": 0, "W_dec": 1}
    found = {}
    for name in PARAMETERS[:3]:
        differs = getattr(before, name) != getattr(after, name)
        found[name] = (differs.any(dims[name]) if name in dims else differs).nonzero()[:, 0].tolist()
    return found


@pytest.mark.parametrize(
    ("how", "enc", "dec"),
    [
        ("none", [], []),
        ("decoder", [], [1]),
        ("encoder", [1], []),
        ("both", [1], [1]),
        ("children", [1, 3, 4], [1, 3, 4]),
    ],
)
def test_an_intervention_changes_what_it_says(how: str, enc: list[int], dec: list[int]) -> None:
    warm = sae_of(D_WIDE)
    with torch.no_grad():
        warm.b_enc.fill_(0.5)
    starts = Starts(torch.ones(D_IN, 2), torch.ones(2), torch.full((2, D_IN), 0.5))
    after = intervene(warm, PARENT, how, torch.Generator().manual_seed(7), (D_NARROW, starts))
    assert changed(warm, after) == {"W_enc": enc, "b_enc": enc, "W_dec": dec}
    torch.testing.assert_close(after.W_dec.norm(dim=1), torch.ones(D_WIDE))
    if how == "children":
        assert after.W_enc[:, 4].tolist() == [1] * 4 and after.b_enc[3:].tolist() == [1, 1, 0.5]
    assert float(warm.b_enc[PARENT].detach()) == 0.5  # the warm start itself is left alone


def test_bad_interventions_are_refused() -> None:
    starts = Starts(torch.ones(D_IN, 4), torch.ones(4), torch.ones(4, D_IN))
    generator = torch.Generator()
    with pytest.raises(UserError, match="intervention must be one of"):
        intervene(sae_of(D_WIDE), PARENT, "nothing", generator)
    for place in (None, (D_NARROW, starts)):
        with pytest.raises(UserError, match="children need features to replace"):
            intervene(sae_of(D_WIDE), PARENT, "children", generator, place)


def test_children_start_where_the_rest_leaves_most_and_as_large() -> None:
    """Child 0 is largest on the first two tokens, whose y has mean (2, 0, 0, 0); child 1 on none; child 2 on the third."""
    acts = torch.tensor([[3.0, 1.0, 0.0], [5.0, 1.0, 4.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    y = torch.tensor([[2.0, 1, 0, 0], [2.0, -1, 0, 0], [0, 0, 3.0, 0], [9.0, 9, 9, 9]])
    W, b, threshold = torch.ones(D_IN, 3), torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])
    found = children_starts(acts, y, (W, b, threshold))
    torch.testing.assert_close(found.W_dec, torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]]))
    # above its threshold child 0 is 3 on the mean and should give 2; child 2 is 1 and should give 3
    torch.testing.assert_close(found.W_enc, torch.tensor([[2 / 3, 3.0]]).repeat(D_IN, 1))
    torch.testing.assert_close(found.b_enc, torch.tensor([-2 / 3, -3.0]))
    with pytest.raises(UserError, match="some child must fire"):
        children_starts(torch.zeros(4, 3), y, (W, b, threshold))


# --- what is recorded ------------------------------------------------------------------------------------------------------


def axes_sae(d_sae: int, scales: dict[int, float]) -> SAE:
    """Feature j reads axis j (modulo 4) times `scales[j]` and writes axis j; the others are silent."""
    sae = SAE(SAEConfig(D_IN, d_sae, "hook", "model"))
    with torch.no_grad():
        for j, scale in scales.items():
            sae.W_enc[j % D_IN, j] = scale
            sae.W_dec[j, j % D_IN] = 1
    return sae


@pytest.fixture
def watch() -> Watch:
    narrow = axes_sae(D_NARROW, {0: 1.0, 1: 1.0, 2: 1.0})
    # count: axis 1 twice; number: axis 1, axis 0; compound: axis 3 (which no copy reads)
    x = torch.tensor([[0, 2.0, 0, 0], [0, 2.0, 0, 0], [0, 2.0, 1.0, 0], [2.0, 0, 0, 0], [0, 0, 0, 2.0]])
    return Watch(narrow, PARENT, x, np.array([0, 0, 1, 1, 2]), price=0.1)


def test_the_watch_tells_parent_copies_and_fresh_features_apart(watch: Watch) -> None:
    row = watch(axes_sae(D_WIDE, {0: 1.0, 1: 1.0, 2: 1.0}))
    shares = {name: [row[f"{kind}_{name}"] for kind in ("parent", "copy", "fresh", "none")] for name in CLASSES}
    assert shares == {"count": [1, 0, 0, 0], "number": [0.5, 0.5, 0, 0], "compound": [0, 0, 0, 1]}
    assert row["winner_count"] == -1 and row["winner_number"] == 0 and row["winner_cosine_number"] == 0
    # only the last token, of square 4, is not rebuilt; activations add up to 2 + 2 + 3 + 2 + 0
    assert row["loss_P"] == pytest.approx(4 / 5 + 0.1 * 9 / 5)
    row = watch(axes_sae(D_WIDE, {1: 1.0, 5: 1.5, 3: 1.0}))  # feature 5 is fresh and reads what the parent reads
    assert row["fresh_count"] == 1 and row["winner_count"] == 5 and row["winner_cosine_count"] == 1
    assert row["fresh_compound"] == 1 and row["winner_compound"] == 3


def test_the_watch_compares_what_features_write_not_their_activations(watch: Watch) -> None:
    sae = axes_sae(D_WIDE, {1: 1.0, 5: 0.8})
    assert watch(sae)["parent_count"] == 1
    with torch.no_grad():
        sae.W_dec[5] *= 2
    assert watch(sae)["fresh_count"] == 1


def test_a_zeroed_parent_is_watched_but_not_decoded(watch: Watch) -> None:
    watch.zero_parent = True
    row = watch(axes_sae(D_WIDE, {0: 1.0, 1: 1.0, 2: 1.0}))
    assert row["parent_count"] == 1
    assert row["loss_P"] == pytest.approx((4 * 3 + 4) / 5 + 0.1 * 3 / 5)  # axis 1 of three tokens is lost, too


def test_the_step_of_replacing_is_the_first_from_which_on_it_holds() -> None:
    assert replaced_at([1.0, 0.4, 0.6, 0.49, 0.1]) == 3
    assert replaced_at([0.4, 0.1]) == 0
    assert replaced_at([1.0, 0.5, 0.4]) == 2
    assert math.isnan(replaced_at([1.0, 0.1, 0.5]))  # half is not less than half
    assert math.isnan(replaced_at([1.0, math.nan])) and math.isnan(replaced_at([]))


def test_fvu_by_hand_with_and_without_a_feature() -> None:
    x = torch.tensor([[1.0, 3.0, 0, 0], [3.0, 1.0, 0, 0]])  # spread: 4 x 1
    sae = axes_sae(D_WIDE, {0: 1.0, 1: 0.5})
    assert fvu(sae, x) == pytest.approx((1.5**2 + 0.5**2) / 4)
    assert fvu(sae, x, silenced=1) == pytest.approx((9 + 1) / 4)
    assert math.isnan(fvu(sae, x[:1]))


# --- tables -----------------------------------------------------------------------------------------------------------------


def history(count: list[float], number: list[float], fresh: float) -> pd.DataFrame:
    """The parent's shares after every step; `compound` is never replaced."""
    n = len(count)
    frame = pd.DataFrame({"parent_count": count, "parent_number": number, "parent_compound": [1.0] * n})
    for name in CLASSES:
        frame[f"copy_{name}"], frame[f"fresh_{name}"], frame[f"winner_cosine_{name}"] = 0.3, fresh, 0.25
    return frame


@pytest.fixture
def runs() -> pd.DataFrame:
    ends = {"S_2": 0.5, "fvu_on": 0.2, "fvu_off": 0.3}
    rows = [
        replacing_tables.run_row("warm", 0, history([1, 0.2, 0.2], [1, 1, 0.2], 0.2)) | ends,
        replacing_tables.run_row("warm", 1, history([1, 1, 0.2], [1, 1, 0.2], 0.5)) | ends | {"S_2": 0.7},
        replacing_tables.run_row("decoder", 0, history([1, 0.2, 0.2], [0.2, 0.2, 0.2], 0.5)) | ends,
        replacing_tables.run_row("decoder", 1, history([1, 0.2, 0.2], [0.2, 0.2, 0.2], 0.5)) | ends,
    ]
    return pd.DataFrame(rows)


def test_a_run_s_row(runs: pd.DataFrame) -> None:
    first, second = runs.iloc[0], runs.iloc[1]
    assert (first["steps_count"], first["steps_number"], first["first"], first["by_count"]) == (1, 2, "count", "copy")
    assert (second["first"], second["by_count"]) == ("", "fresh") and math.isnan(second["steps_compound"])


def test_the_summary_s_medians_shares_and_intervals(runs: pd.DataFrame) -> None:
    table = replacing_tables.summary_table(runs, n_steps=3).set_index(["arm", "class"])
    count = table.loc[("warm", "count")]
    assert (count["steps"], count["reached"], count["seeds"]) == (1, 2, 2)
    assert count["by_copy"] == 0.5 and count["first"] == 0.5 and count["cosine"] == 0.25 and count["watched"] == 3
    assert math.isnan(table.loc[("warm", "compound"), "by_copy"])  # replaced in no seed: nobody took over
    # against warm's 0.5 and 0.7, decoder's S_2 is 0 and 0.2 less: (t.975 + t.80) s / sqrt(2)
    assert table.loc[("decoder", "count"), "smallest"] == pytest.approx((12.7062 + 1.3764) * 0.1, abs=1e-3)
    assert count["S_2"] == pytest.approx(0.6) and count["S_2_high"] == pytest.approx(0.6 + 12.7062 * 0.1, abs=1e-3)
    assert math.isnan(table.loc[("warm", "compound"), "steps"]) and table.loc[("warm", "compound"), "reached"] == 0


def test_the_answer_is_made_of_the_table_s_numbers(runs: pd.DataFrame) -> None:
    table = replacing_tables.summary_table(runs, n_steps=3)
    text = replacing_tables.answer(table)
    assert (
        "2 seeds an arm, 3 steps watched: warm: after 1 to 2 steps on 2 of 3 classes (medians of the classes; 95% 1 to "
        in text
    )
    assert "highest with" in text and "0.600 (95% " in text and "a difference of 1.408 would have been seen" in text
    never = table.assign(steps=np.nan, reached=0, by_copy=np.nan)
    text = replacing_tables.answer(never)
    assert (
        "warm, decoder: not within these (0 of 2 seeds)" in text
        and "Who takes over: unknown: no arm is replaced." in text
    )
    assert "warm, decoder: at once. Who" in replacing_tables.answer(table.assign(steps=0.0, reached=2))


def test_the_answer_says_in_how_many_seeds_and_who_takes_over_in_each_arm(runs: pd.DataFrame) -> None:
    back = runs.assign(**{f"steps_{name}": [math.nan, math.nan, 0.0, math.nan] for name in CLASSES})
    by = {
        "by_count": ["fresh", "fresh", "copy", "fresh"],
        "by_number": ["copy", "copy", "fresh", "copy"],
        "by_compound": "copy",
    }
    text = replacing_tables.answer(replacing_tables.summary_table(back.assign(**by), n_steps=3))
    assert "warm: not within these (0 of 2 seeds); decoder: at once in 1 of 2 seeds. " in text
    assert "decoder: a copy of another narrow feature on count, compound and a fresh feature on number." in text


def test_lines_that_lie_over_each_other_can_be_told_apart() -> None:
    rows = pd.DataFrame({"step": [0, 1] * 3, "arm": ["a", "a", "b", "b", "c", "c"]})
    curves = rows.assign(
        **{f"loss_P{end}": 0.5 for end in ("", "_low", "_high")}, fvu_P=1.0, fvu_P_low=1.0, fvu_P_high=2.0
    )
    lines = watched_figure(curves).axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3
    plt.close("all")


def test_every_arm_is_an_intervention_and_has_a_name_of_its_own() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    assert {arm.intervention for arm in ARMS} == set(replacing.INTERVENTIONS)
