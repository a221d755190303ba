import json

import pytest
import safetensors.torch
import torch

from saelib.base.errors import UserError
from saelib.sae.format import CONFIG_FILE, WEIGHTS_FILE
from saelib.sae.initial import init_from_narrow, init_random, unit_rows
from saelib.sae.load import load_sae
from saelib.sae.sae import PARAMETERS, SAE, SAEConfig


def config(d_in=6, d_sae=10, **changes):
    known = {"hook_name": "blocks.0.hook_mlp_out", "model_name": "tiny", "center_writing_weights": True}
    return SAEConfig(d_in=d_in, d_sae=d_sae, **(known | changes))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained_looking(d_in=6, d_sae=10, seed=1):
    """An SAE whose every parameter is non-zero and whose decoder rows are a little off unit norm."""
    sae = init_random(config(d_in, d_sae), seeded(seed))
    with torch.no_grad():
        sae.b_enc.normal_(generator=seeded(2))
        sae.b_dec.normal_(generator=seeded(3))
        sae.W_dec.mul_(1.01)
    return sae


# What it computes


def test_forward_by_hand():
    sae = SAE(config(d_in=2, d_sae=3))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]]))
        sae.b_enc.copy_(torch.tensor([0.5, -1.0, 0.0]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, -1.0]))
    # x - b_dec = (2, 1); pre = (2 + 0.5, 2 - 1, -2 + 1); x_hat = (2.5, 1) + b_dec
    x_hat, feature_acts = sae(torch.tensor([[3.0, 0.0]]))
    assert feature_acts.tolist() == [[2.5, 1.0, 0.0]]
    assert x_hat.tolist() == [[3.5, 0.0]]


def test_leading_dimensions_pass_through():
    sae = trained_looking()
    x = torch.randn(2, 5, 6, generator=seeded())
    assert sae(x).feature_acts.shape == (2, 5, 10)
    torch.testing.assert_close(sae(x).x_hat[1, 3], sae(x[1, 3]).x_hat)


# How it begins


def test_random_init_is_kaiming_on_the_stored_shapes():
    cfg = config(d_in=64, d_sae=512)
    sae = init_random(cfg, seeded())
    bound = (6 / 512) ** 0.5  # fan_in is the second dimension of W_enc as stored: d_sae
    assert sae.W_enc.abs().max() <= bound
    assert sae.W_enc.abs().max() > 0.99 * bound
    assert sae.W_enc.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(512))
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


def test_random_init_depends_on_the_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (init_random(config(), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.W_enc, again.W_enc)
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_enc, other.W_enc)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("normalise", [True, False])
def test_warm_start_copies_the_narrow_sae(normalise):
    narrow = trained_looking()
    wide = init_from_narrow(narrow, config(d_sae=80), normalise, seeded())
    assert torch.equal(wide.W_enc[:, :10], narrow.W_enc)
    assert torch.equal(wide.b_enc[:10], narrow.b_enc)
    assert torch.equal(wide.b_dec, narrow.b_dec)
    assert not wide.b_enc[10:].any()
    assert wide.W_enc[:, 10:].abs().max() <= (6 / 80) ** 0.5
    norms = wide.W_dec.norm(dim=1)
    if normalise:
        torch.testing.assert_close(norms, torch.ones(80))
        torch.testing.assert_close(wide.W_dec[:10], unit_rows(narrow.W_dec))
    else:
        assert torch.equal(wide.W_dec[:10], narrow.W_dec)
        assert norms[10:].mean().item() == pytest.approx(2**0.5, rel=0.1)


def test_unit_rows_leaves_a_zero_row_alone():
    assert unit_rows(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist() == [
        [0.0, 0.0],
        [0.6000000238418579, 0.800000011920929],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 9}, r"d_sae of the wide SAE must be at least the narrow SAE's 10; got 9: widen"),
        ({"d_in": 7}, r"d_in of the wide SAE must be the narrow SAE's \(6\); got 7"),
        ({"model_name": "other"}, r"model_name .* \('tiny'\); got 'other'"),
        ({"hook_name": "blocks.0.hook_resid_post"}, r"hook_name .* got 'blocks.0.hook_resid_post'"),
        ({"center_writing_weights": False}, r"center_writing_weights .* \(True\); got False"),
    ],
)
def test_warm_start_refuses_what_does_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        init_from_narrow(trained_looking(), config(**{"d_sae": 20, **changes}), True, seeded())


@pytest.mark.parametrize("changes", [{"d_in": 0}, {"d_sae": -1}])
def test_config_wants_positive_integers(changes):
    with pytest.raises(UserError, match="must be a positive integer"):
        config(**changes)


def test_config_rejects_unknown_keys():
    with pytest.raises(TypeError, match="d_model"):
        config(d_model=3)


# How it lies on disk


def test_round_trip(tmp_path):
    sae = trained_looking()
    sae.cfg.metadata["l1_coeff"] = 3e-4
    loaded = load_sae(sae.save(tmp_path / "sae"))
    assert loaded.cfg == sae.cfg
    for name in PARAMETERS:
        assert torch.equal(getattr(loaded, name), getattr(sae, name)), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]  # nothing temporary is left


def test_folder_is_what_saelens_writes(tmp_path):
    folder = trained_looking().save(tmp_path / "sae")
    assert sorted(p.name for p in folder.iterdir()) == ["SHA256SUMS", "cfg.json", "sae_weights.safetensors"]
    cfg = json.loads((folder / CONFIG_FILE).read_text())
    metadata = cfg.pop("metadata")
    assert cfg == {
        "architecture": "standard",
        "d_in": 6,
        "d_sae": 10,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert metadata == {
        "sae_lens_version": "6.0.0",
        "hook_name": "blocks.0.hook_mlp_out",
        "model_name": "tiny",
        "center_writing_weights": True,
    }
    shapes = {k: tuple(v.shape) for k, v in safetensors.torch.load_file(folder / WEIGHTS_FILE).items()}
    assert shapes == {"W_enc": (6, 10), "b_enc": (10,), "W_dec": (10, 6), "b_dec": (6,)}


def test_transposed_storage_is_saved_in_order(tmp_path):
    sae = trained_looking()
    plain = sae.W_enc.detach().clone()
    sae.W_enc.data = sae.W_enc.data.t().contiguous().t()
    assert torch.equal(load_sae(sae.save(tmp_path / "sae")).W_enc, plain)


def test_saving_again_replaces_but_never_something_else(tmp_path):
    folder = trained_looking(seed=1).save(tmp_path / "sae")
    newer = trained_looking(seed=5)
    newer.save(folder)
    assert torch.equal(load_sae(folder).W_enc, newer.W_enc)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="must be saved to a folder of its own"):
        newer.save(folder)
    assert (folder / "thesis.tex").exists()


def test_nan_is_neither_saved_nor_loaded(tmp_path):
    sae = trained_looking()
    folder = sae.save(tmp_path / "sae")
    with torch.no_grad():
        sae.b_enc[3] = float("nan")
    with pytest.raises(UserError, match="b_enc of an SAE must be finite"):
        sae.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    tensors = {name: getattr(sae, name).detach() for name in PARAMETERS}
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match="b_enc of an SAE must be finite"):
        load_sae(folder)


def rewrite_config(folder, **changes):
    (folder / "SHA256SUMS").unlink(missing_ok=True)  # as a folder written elsewhere
    cfg = json.loads((folder / CONFIG_FILE).read_text()) | changes
    cfg = {key: value for key, value in cfg.items() if value is not ...}
    (folder / CONFIG_FILE).write_text(json.dumps(cfg))


def rewrite_weights(folder, **changes):
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    tensors = {k: v for k, v in (safetensors.torch.load_file(folder / WEIGHTS_FILE) | changes).items() if v is not None}
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))


def damage(folder):
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def pickle_instead(folder):
    torch.save({"W_enc": torch.zeros(6, 10)}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / CONFIG_FILE).unlink(), "an SAE folder must hold cfg.json; got .*sae: pass a folder"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), "an SAE folder must hold sae_weights.safetensors"),
        (lambda f: (f / CONFIG_FILE).write_text("{"), "must hold valid JSON; got .*cfg.json"),
        (lambda f: (f / CONFIG_FILE).write_text("[1]"), "must hold a JSON object"),
        (lambda f: rewrite_config(f, architecture="gated"), "architecture of an SAE must be one of .*; got 'gated'"),
        (lambda f: rewrite_config(f, d_sae=...), "d_sae of an SAE must be a positive integer; got None in .*cfg.json"),
        (lambda f: rewrite_config(f, d_sae="10"), "d_sae of an SAE must be a positive integer; got '10'"),
        (lambda f: rewrite_config(f, metadata=[1]), "metadata of an SAE must be a JSON object"),
        (lambda f: rewrite_config(f, d_sae=12), r"W_enc must have the shape \(6, 12\) .* got \(6, 10\)"),
        (lambda f: rewrite_weights(f, b_dec=None), r"must hold \[.*\]; got \['W_dec', 'W_enc', 'b_enc'\]"),
        (lambda f: rewrite_weights(f, threshold=torch.zeros(10)), r"must hold .* got .*'threshold'"),
        (damage, "weights must be an intact safetensors file; got .*sae_weights.safetensors"),
        (pickle_instead, "weights must be an intact safetensors file, not a pickle"),
    ],
)
def test_bad_folders_are_one_clear_line(tmp_path, spoil, message):
    folder = trained_looking().save(tmp_path / "sae")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "SHA256SUMS"])
def test_one_flipped_bit_anywhere_is_found(tmp_path, name):
    """Found in one clear line, wherever it is: in a number, in a name, in the weights, in the checksums themselves."""
    folder = trained_looking().save(tmp_path / "sae")
    whole = (folder / name).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        for bit in (0, 5, 7):
            spoiled = bytearray(whole)
            spoiled[position] ^= 1 << bit
            (folder / name).write_bytes(spoiled)
            with pytest.raises(UserError) as caught:
                load_sae(folder)
            assert "\n" not in str(caught.value)
    (folder / name).write_bytes(whole)
    load_sae(folder)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match=r"an SAE folder must hold cfg.json; got .*nowhere"):
        load_sae(tmp_path / "nowhere")


def test_an_sae_that_does_not_subtract_b_dec(tmp_path):
    sae = trained_looking()
    folder = sae.save(tmp_path / "sae")
    rewrite_config(folder, apply_b_dec_to_input=False)
    loaded = load_sae(folder)
    x = torch.randn(20, 6, generator=seeded())
    torch.testing.assert_close(loaded.encode(x), torch.relu(x @ sae.W_enc + sae.b_enc))
    assert loaded.cfg.to_dict()["apply_b_dec_to_input"] is False
    wide = init_from_narrow(loaded, config(d_sae=20), True, seeded())  # rewritten as one that does
    assert wide.cfg.apply_b_dec_to_input
    torch.testing.assert_close(wide.encode(x)[:, :10], loaded.encode(x), rtol=1e-4, atol=1e-4)


def test_folders_of_other_saelens_versions(tmp_path):
    folder = trained_looking().save(tmp_path / "sae")
    rewrite_config(
        folder,
        metadata={
            "sae_lens_version": "6.54.12",
            "hook_name": "blocks.1.hook_mlp_out",
            "model_name": "gpt2",
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
        },
    )
    cfg = load_sae(folder).cfg
    assert (cfg.hook_name, cfg.model_name, cfg.center_writing_weights) == ("blocks.1.hook_mlp_out", "gpt2", False)
    assert cfg.metadata["sae_lens_version"] == "6.54.12"
    rewrite_config(folder, metadata=..., architecture=..., hook_name="blocks.2.hook_mlp_out", model_name="flat")
    cfg = load_sae(folder).cfg
    assert (cfg.hook_name, cfg.model_name, cfg.center_writing_weights) == ("blocks.2.hook_mlp_out", "flat", None)


def test_half_precision_becomes_float32(tmp_path):
    sae = trained_looking()
    folder = sae.save(tmp_path / "sae")
    rewrite_weights(folder, **{name: getattr(sae, name).detach().bfloat16() for name in PARAMETERS})
    rewrite_config(folder, dtype="bfloat16")
    loaded = load_sae(folder)
    assert loaded.W_enc.dtype == torch.float32
    assert torch.equal(loaded.W_enc, sae.W_enc.bfloat16().float())
