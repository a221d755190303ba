"""Against sae-lens itself, in both directions: the same activations and reconstructions to 1e-6.

sae-lens needs transformer_lens below 4 and much else, so it lives in an environment of its own: `make test-saelens`.
What it wrote once is verified without it in tests/sae/test_sae_format.py.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saelib.base.errors import UserError
from saelib.sae.initial import init_random
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.train import train
from saelib.sae.train_config import TrainConfig
from saelib.split.children import Dictionary
from saelib.split.exported import as_jumprelu, replace_parent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it and its dependencies warn about among themselves
    sae_lens: Any = pytest.importorskip("sae_lens", reason="sae-lens is not installed: make test-saelens")
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")
D_IN, D_SAE = 16, 48
HOOK = "blocks.0.hook_mlp_out"
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")


def activations(seed: int, rows: int = 256) -> torch.Tensor:
    """Sparse non-negative sums of fixed directions, off centre and not of unit scale."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(99))
    amounts = torch.rand(rows, 24, generator=generator) * (torch.rand(rows, 24, generator=generator) < 0.15)
    return 3 * amounts @ directions + 0.5


def assert_same(ours: SAE, theirs: Any) -> None:
    for x in (activations(7), torch.randn(3, 5, D_IN, generator=torch.Generator().manual_seed(0))):
        with torch.no_grad():
            got = ours(x)
            feature_acts = theirs.encode(x)
            x_hat = theirs.decode(feature_acts)  # with the scale that it kept from encoding
        assert torch.equal(got.feature_acts > 0, feature_acts > 0)
        for mine, wanted in ((got.feature_acts, feature_acts), (got.x_hat, x_hat)):
            assert (mine - wanted).abs().max() <= 1e-6 * wanted.abs().max().clamp_min(1)


def made(architecture: str, **switches: Any) -> Any:
    sae_class, config_class = get_sae_class(architecture)
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **switches))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name == "threshold":
                parameter.abs_()
    sae.cfg.metadata["hook_name"] = HOOK
    return sae


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(
    ("architecture", "extra"),
    [("standard", {}), ("jumprelu", {}), ("topk", {"k": 6}), ("topk", {"k": 6, "rescale_acts_by_decoder_norm": True})],
)
def test_every_switch_in_both_directions(
    tmp_path: Path, architecture: str, extra: dict[str, Any], normalise: str, apply_b_dec_to_input: bool
) -> None:
    switches = {**extra, "normalize_activations": normalise, "apply_b_dec_to_input": apply_b_dec_to_input}
    theirs = made(architecture, **switches)
    theirs.save_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    assert_same(ours, theirs)
    back = sae_lens.SAE.load_from_disk(ours.save(tmp_path / "ours"))
    assert back.cfg.architecture() == architecture and back.cfg.metadata.hook_name == HOOK
    assert_same(ours, back)


@torch.no_grad()
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(
    ("architecture", "extra"),
    [("standard", {}), ("jumprelu", {}), ("topk", {"k": 6}), ("topk", {"k": 6, "rescale_acts_by_decoder_norm": True})],
)
def test_a_parent_replaced_by_children(
    tmp_path: Path, architecture: str, extra: dict[str, Any], normalise: str
) -> None:
    """What a split exports is JumpReLU to sae-lens too, whatever the parent's SAE was."""
    made(architecture, **extra, normalize_activations=normalise).save_model(tmp_path / "parent")
    x, generator = activations(7), torch.Generator().manual_seed(2)
    parent_sae = load_sae(tmp_path / "parent")
    feature = int((parent_sae.encode(x) > 0).sum(0).argmax())
    W, E = (torch.randn(shape, generator=generator) for shape in ((D_IN, 5), (5, D_IN)))
    theta, core = torch.rand(5, generator=generator), torch.randn(D_IN, generator=generator)
    ours = replace_parent(as_jumprelu(parent_sae, x), feature, Dictionary(W, torch.zeros(5), E), theta, core)
    theirs = sae_lens.SAE.load_from_disk(ours.save(tmp_path / "ours"))
    assert theirs.cfg.architecture() == "jumprelu" and theirs.cfg.d_sae == D_SAE + 5
    assert (theirs.encode(x)[:, D_SAE:] > 0).any(0).all() and (theirs.encode(x)[:, feature] > 0).any()
    assert_same(ours, theirs)


@pytest.fixture
def cached_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds some folders of a repository, as huggingface_hub lays it out, and no hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--jbloom--GPT2-Small-SAEs-Reformatted"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [("standard", {}), ("jumprelu", {}), ("topk", {"k": 6}), ("topk", {"k": 6, "rescale_acts_by_decoder_norm": True})],
)
def test_a_release_from_the_hubs_cache(cached_release: Path, architecture: str, extra: dict[str, Any]) -> None:
    theirs = made(architecture, **extra)
    theirs.save_model(cached_release / "blocks.8.hook_resid_pre")
    ours = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert_same(ours, theirs)
    assert ours.cfg.hook_name == HOOK and ours.cfg.metadata["release"] == "gpt2-small-res-jb"
    assert ours.cfg.center_writing_weights is True, "as the release says that its model was loaded"
    again = load_sae("jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    assert torch.equal(again.W_enc, ours.W_enc) and again.cfg.center_writing_weights is None


def test_a_release_as_older_versions_wrote_it(cached_release: Path) -> None:
    """The repository's own configuration is of version 3: everything at the top level."""
    theirs = made("standard")
    theirs.save_model(cached_release / "blocks.8.hook_resid_pre")
    old = {
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "mps", "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "prepend_bos": True, "context_size": 128,
    }  # fmt: skip
    (cached_release / "blocks.8.hook_resid_pre" / "cfg.json").write_text(json.dumps(old))
    ours = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert_same(ours, theirs)
    assert (ours.cfg.hook_name, ours.cfg.model_name) == ("blocks.8.hook_resid_pre", "gpt2-small")
    assert ours.cfg.center_writing_weights is True


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            "gated",
            "an SAE must be one of standard, jumprelu, topk; got 'gated' in gpt2-small-res-jb/blocks.8.hook_resid_pre",
        ),
        ("transcoder", "must rebuild the one activation that it reads; got a transcoder in gpt2-small-res-jb/blocks.8"),
    ],
)
def test_a_release_of_another_kind_is_refused(cached_release: Path, architecture: str, message: str) -> None:
    extra = {"d_out": D_IN, "apply_b_dec_to_input": False} if architecture == "transcoder" else {}
    made(architecture, **extra).save_model(cached_release / "blocks.8.hook_resid_pre")
    with pytest.raises(UserError, match=message):
        load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")


def test_a_release_that_is_half_there(cached_release: Path) -> None:
    made("standard").save_model(cached_release / "blocks.8.hook_resid_pre")
    (cached_release / "blocks.8.hook_resid_pre" / "sae_weights.safetensors").unlink()
    with pytest.raises(
        UserError, match="sae-lens must be able to load the SAE; got gpt2-small-res-jb/blocks"
    ) as caught:
        load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert "\n" not in str(caught.value)


def batches() -> Iterator[torch.Tensor]:
    seed = 100
    while True:
        yield activations(seed)
        seed += 1


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(
    ("architecture", "extra", "saved_as"),
    [
        ("standard", {"l1_coefficient": 0.05}, "standard"),
        ("jumprelu", {"l0_coefficient": 0.01}, "jumprelu"),
        ("topk", {"k": 6}, "topk"),
        ("batchtopk", {"k": 6}, "jumprelu"),
    ],
)
def test_an_sae_that_they_trained(
    tmp_path: Path, architecture: str, extra: dict[str, Any], saved_as: str, normalise: str
) -> None:
    sae_class, config_class = get_sae_training_class(architecture)
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, normalize_activations=normalise, **extra))
    sae.cfg.metadata["hook_name"] = HOOK
    cfg = SAETrainerConfig(
        total_training_samples=256 * 30,
        train_batch_size_samples=256,
        lr=3e-3,
        lr_end=3e-4,
        n_batches_for_norm_estimate=4,
    )
    SAETrainer(cfg, sae, batches()).fit()
    sae.save_inference_model(tmp_path / "theirs")
    ours, theirs = load_sae(tmp_path / "theirs"), sae_lens.SAE.load_from_disk(tmp_path / "theirs")
    assert ours.cfg.architecture == saved_as and ours.encode(activations(7)).any()
    assert_same(ours, theirs)


class Batches:
    """The activations above, as our trainer takes them."""

    batch_size, d_in, key = 256, D_IN, "made"

    def batch(self, step: int, out: torch.Tensor | None = None) -> torch.Tensor:
        return activations(100 + step)


def test_an_sae_that_we_trained(tmp_path: Path) -> None:
    cfg = SAEConfig(D_IN, D_SAE, HOOK, "saelib-mini", False, {"seed": 0})
    start = init_random(cfg, torch.Generator().manual_seed(0))
    trained = train(
        start, Batches(), TrainConfig(l1_coeff=2e-4, n_steps=30, seed=0, batch_size=256), workdir=tmp_path / "work"
    ).sae
    assert not torch.equal(trained.W_enc, start.W_enc)
    theirs = sae_lens.SAE.load_from_disk(trained.save(tmp_path / "ours"))
    assert theirs.cfg.metadata.model_name == "saelib-mini" and theirs.cfg.metadata.center_writing_weights is False
    assert_same(trained, theirs)
    theirs.save_model(tmp_path / "back")
    assert load_sae(tmp_path / "back").cfg.metadata["seed"] == 0
