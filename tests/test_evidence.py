"""Evidence adds up: the same whatever the blocks, and equal to counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelib.base.errors import UserError
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.scaled import scaled_acts
from saelib.split.evidence import HeldOutEvidence, SelectEvidence, Tokens
from saelib.split.synthetic import make_case


def by_hand() -> tuple[SAE, Tokens]:
    """Two dimensions, three features: one along each axis (decoder of length 2 for the second) and one that points back."""
    sae = SAE(SAEConfig(d_in=2, d_sae=3, hook_name="h", model_name="m"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.0, -2.5]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
    x = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [2.0, 0.0]])
    tokens = Tokens(x, torch.tensor([5.0, 5.0, 0.0, 0.5]), np.array([0, 1, -1, 0]), np.array([0, 0, 1, 1]))
    return sae, tokens


def test_counts_removal_and_f1_by_hand() -> None:
    sae, tokens = by_hand()
    evidence = SelectEvidence(sae, 2, tau=1.0)
    evidence.any_tokens(tokens.x, tokens.parent)
    evidence.parent_tokens(tokens)
    assert evidence.n_parent == 2  # the third token's parent is silent, the fourth's is under tau
    assert evidence.fired.tolist() == [3, 2, 1]
    assert evidence.fired_with_parent.tolist() == [3, 1, 1]
    assert evidence.fired_on_p.tolist() == [2, 1, 1]
    assert evidence.class_hits.tolist() == [[1, 0, 1], [1, 1, 0]]
    # token 1: x = (3, 0), acts (3, 0, .5), error (.5, 0); token 2: x = (1, 1), acts (1, 1, 0), error (0, -1)
    assert evidence.removal.tolist() == pytest.approx([2 * 3 * 0.5 + 9 + 1, 2 * 1 * -2 + 4, 2 * 0.5 * -0.5 + 0.25])
    assert evidence.f1().tolist() == [pytest.approx([2 / 3, 0, 1]), pytest.approx([2 / 3, 1, 0])]


def test_a_candidate_fires_with_the_parent_often_enough_and_carries_weight() -> None:
    sae, tokens = by_hand()
    evidence = SelectEvidence(sae, 2, tau=1.0)
    evidence.any_tokens(tokens.x, tokens.parent)
    evidence.parent_tokens(tokens)
    assert evidence.candidates(0.8, 0.5).tolist() == [0]  # 1 fires half without the parent, 2 points the wrong way
    assert evidence.candidates(0.5, 0.5).tolist() == [0]  # 1's removal changes nothing: 0 is not a rise
    assert evidence.candidates(0.5, 1.1).tolist() == []
    assert evidence.children(np.array([0])) == [0, None] or evidence.children(np.array([0])) == [None, 0]
    assert evidence.children(np.array([], dtype=int)) == [None, None]


def test_children_activations_and_rivals_by_hand() -> None:
    sae, tokens = by_hand()
    held_out = HeldOutEvidence(sae, [0, 1], np.array([1]), 1.0, [2, 1])
    held_out.add(tokens)
    columns = held_out.columns()
    assert columns.child.tolist() == [[3, 0], [1, 2]]  # feature 1 is scaled by its decoder row's length
    assert columns.other.tolist() == [[0.5, 3], [2, 1]]
    assert columns.top.tolist() == [0, 1] and columns.covered.tolist() == [False, True]
    assert columns.best_fires.tolist() == [[True, False], [False, True]]
    assert columns.label.tolist() == [0, 1] and columns.document.tolist() == [0, 0]


@pytest.mark.parametrize("block", [1, 7, 500, 10_000])
def test_blocks_do_not_matter(block: int) -> None:
    case = make_case(6.0, 0, n_parent=150)
    whole, parts = SelectEvidence(case.sae, 3, case.tau), SelectEvidence(case.sae, 3, case.tau)
    whole.any_tokens(case.select.x, case.select.parent)
    whole.parent_tokens(case.select)
    held = [HeldOutEvidence(case.sae, [0, 1, None], np.array([0, 1]), case.tau, [0, 1, 2]) for _ in range(2)]
    held[0].add(case.select)
    for begin in range(0, len(case.select), block):
        part = case.select.where(np.arange(begin, min(begin + block, len(case.select))))
        parts.any_tokens(part.x, part.parent)
        parts.parent_tokens(part)
        held[1].add(part)
    for name in ("fired", "fired_with_parent", "fired_on_p", "class_hits", "class_tokens"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    assert torch.allclose(whole.removal, parts.removal, rtol=1e-4, atol=1e-3)
    for a, b in zip(vars(held[0].columns()).values(), vars(held[1].columns()).values(), strict=True):
        assert a.shape == b.shape and np.allclose(a, b, atol=1e-5)


def test_bad_activations_are_one_line() -> None:
    sae, _ = by_hand()
    with pytest.raises(UserError, match="d_in must be the activations' 3; got 2"):
        scaled_acts(sae, torch.zeros(1, 3))
    with pytest.raises(UserError, match="activations must be finite"):
        scaled_acts(sae, torch.tensor([[float("nan"), 0.0]]))


def test_permuting_keeps_the_counts_and_leaves_the_unlabelled_alone() -> None:
    tokens = make_case(6.0, 0, n_parent=300).select
    shuffled = tokens.permuted(np.random.default_rng(0))
    assert sorted(shuffled.label) == sorted(tokens.label) and (shuffled.label != tokens.label).any()
    assert np.array_equal(shuffled.label < 0, tokens.label < 0)
