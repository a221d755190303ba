"""SAEs of others: folders that sae-lens wrote, the study's .pt files, and what is refused of either."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from saelib.base.errors import UserError
from saelib.cli import main
from saelib.lm.hook_point import canonical_hook, parse_hook
from saelib.sae.initial import init_from_narrow
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig, require_fits, require_trainable

WRITTEN_BY_SAELENS = Path(__file__).parents[1] / "data" / "saelens"
FOLDERS = sorted(path.name for path in WRITTEN_BY_SAELENS.iterdir())


def expected(name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(WRITTEN_BY_SAELENS / name / "expected.safetensors")


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(WRITTEN_BY_SAELENS / name, folder)
    (folder / "expected.safetensors").unlink()
    return folder


def test_there_is_a_folder_of_every_kind() -> None:
    assert {name.split("-")[0] for name in FOLDERS} == {"standard", "jumprelu", "topk"} and len(FOLDERS) == 6


@pytest.mark.parametrize("name", FOLDERS)
def test_what_saelens_wrote_gives_what_saelens_computed(name: str) -> None:
    sae, wanted = load_sae(WRITTEN_BY_SAELENS / name), expected(name)
    with torch.no_grad():
        x_hat, feature_acts = sae(wanted["x"])
        torch.testing.assert_close(feature_acts, wanted["feature_acts"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x_hat, wanted["x_hat"], rtol=1e-6, atol=1e-6)
        assert torch.equal(feature_acts > 0, wanted["feature_acts"] > 0)
        for feature in (0, 7, 31):
            torch.testing.assert_close(sae.encode_feature(wanted["x"], feature), feature_acts[:, feature])
    assert sae.cfg.hook_name == "blocks.0.hook_mlp_out" and sae.cfg.center_writing_weights is True


@pytest.mark.parametrize("name", FOLDERS)
def test_written_again_it_is_the_same_sae(name: str, tmp_path: Path) -> None:
    sae, wanted = load_sae(WRITTEN_BY_SAELENS / name), expected(name)
    again = load_sae(sae.save(tmp_path / "again"))
    assert again.cfg == sae.cfg
    with torch.no_grad():
        assert torch.equal(again(wanted["x"]).x_hat, sae(wanted["x"]).x_hat)
    theirs = json.loads((WRITTEN_BY_SAELENS / name / "cfg.json").read_text())
    ours = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert {k: v for k, v in theirs.items() if k != "metadata"} == {k: v for k, v in ours.items() if k != "metadata"}
    kept = {
        k: tuple(v.shape) for k, v in safetensors.torch.load_file(tmp_path / "again/sae_weights.safetensors").items()
    }
    weights = safetensors.torch.load_file(WRITTEN_BY_SAELENS / name / "sae_weights.safetensors")
    assert kept == {k: tuple(v.shape) for k, v in weights.items()}


def test_jumprelu_and_topk_by_hand() -> None:
    jump = SAE(SAEConfig(d_in=1, d_sae=3, hook_name="h", model_name="m", architecture="jumprelu"))
    top = SAE(SAEConfig(d_in=1, d_sae=3, hook_name="h", model_name="m", architecture="topk", k=2))
    with torch.no_grad():
        for sae in (jump, top):
            sae.W_enc.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
        jump.threshold.copy_(torch.tensor([1.0, 5.0, -9.0]))
        assert jump.encode(torch.tensor([[2.0]])).tolist() == [[2.0, 0.0, 0.0]]  # 4 <= 5 is cut; relu(-2) stays 0
        assert jump.encode(torch.tensor([[1.0]])).tolist() == [[0.0, 0.0, 0.0]]  # at the threshold is not above it
        assert top.encode(torch.tensor([[2.0]])).tolist() == [[2.0, 4.0, 0.0]]
        assert top.encode(torch.tensor([[-2.0]])).tolist() == [[0.0, 0.0, 2.0]]  # the second largest is negative


def test_an_unfinished_checkpoint_gets_its_scale(tmp_path: Path) -> None:
    folder = copied("jumprelu", tmp_path / "sae")
    raw = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(raw | {"normalize_activations": "expected_average_only_in"}))
    plain, x = load_sae(folder), expected("jumprelu")["x"]
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 4.0}')
    scaled = load_sae(folder)
    with torch.no_grad():
        torch.testing.assert_close(scaled.encode(x), plain.encode(4 * x))
        torch.testing.assert_close(scaled(x).x_hat, plain(4 * x).x_hat / 4)
    assert scaled.cfg.normalize_activations == "none"


def test_folders_of_older_versions(tmp_path: Path) -> None:
    folder = copied("topk", tmp_path / "sae")
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "standard", "d_in": 16, "d_sae": 32, "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 5}, "normalize_activations": False, "hook_point": "blocks.3.mlp.hook_out",
            }
        )
    )  # fmt: skip
    old = load_sae(folder)
    assert (old.cfg.architecture, old.cfg.k, old.cfg.hook_name) == ("topk", 5, "blocks.3.hook_mlp_out")
    folder = copied("jumprelu", tmp_path / "log")
    tensors = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    tensors["scaling_factor"] = torch.ones(32)
    (folder / "sae_weights.safetensors").write_bytes(safetensors.torch.save(tensors))
    torch.testing.assert_close(load_sae(folder).threshold, load_sae(WRITTEN_BY_SAELENS / "jumprelu").threshold)


# What is refused


def change(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def reweigh(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**safetensors.torch.load_file(folder / "sae_weights.safetensors"), **changes}
    kept = {k: v for k, v in tensors.items() if v is not None}
    (folder / "sae_weights.safetensors").write_bytes(safetensors.torch.save(kept))


def replace_by_pickle(folder: Path, name: str) -> None:
    (folder / "sae_weights.safetensors").unlink()
    torch.save({"W_enc": torch.zeros(2, 3)}, folder / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: change(f, architecture="gated"),
            "architecture of an SAE must be one of standard, jumprelu, topk; got 'g",
        ),
        (
            lambda f: change(f, activation_fn="tanh-relu"),
            "activation_fn of an SAE must be one of relu, topk; got 'tanh",
        ),
        (lambda f: change(f, normalize_activations="zscore"), "normalize_activations of an SAE must be one of none, "),
        (
            lambda f: change(f, reshape_activations="hook_z"),
            "reshape_activations of an SAE must be one of none; got 'hook",
        ),
        (lambda f: change(f, k=...), "k of an SAE must be a positive integer; got None"),
        (lambda f: change(f, k=99), r"k must be in \[1, d_sae=32\] for topk"),
        (lambda f: change(f, d_in=..., metadata=...), "d_in of an SAE must be a positive integer"),
        (lambda f: reweigh(f, W_dec=None), r"must hold \['W_dec', 'W_enc', 'b_dec', 'b_enc'\]; got \['W_enc', "),
        (lambda f: reweigh(f, W_enc=torch.zeros(32, 16)), r"W_enc must have the shape \(16, 32\) .* got \(32, 16\)"),
        (lambda f: reweigh(f, scaling_factor=torch.full((32,), 2.0)), "scaling_factor of an SAE must be 1"),
        (lambda f: (f / "activation_whitening.safetensors").touch(), "whitening must be folded into the weights"),
        (
            lambda f: replace_by_pickle(f, "sae.pt"),
            "must come as safetensors: opening a pickle can run any code; got sae.pt",
        ),
        (
            lambda f: replace_by_pickle(f, "pytorch_model.bin"),
            "opening a pickle can run any code; got pytorch_model.bin",
        ),
        (lambda f: torch.save({}, f / "sae_weights.safetensors"), "not a pickle: opening one can run any code"),
    ],
)
def test_bad_folders_are_one_clear_line(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = copied("topk", tmp_path / "sae")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)


class Opened:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    trap, weights = tmp_path / "opened", tmp_path / "sae.pt"
    weights.write_bytes(pickle.dumps({"W_enc": Opened(trap)}))
    with pytest.raises(UserError, match="an SAE must come as safetensors: opening a pickle can run any code"):
        load_sae(weights)
    (tmp_path / "sae_cfg.json").write_text("{}")  # now it looks like one of the study's
    with pytest.raises(UserError, match=r"a \.pt file must hold tensors and nothing else"):
        load_sae(weights)
    torch.save({"W_enc": Opened(trap)}, weights)
    with pytest.raises(UserError, match=r"a \.pt file must hold tensors and nothing else"):
        load_sae(weights)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("at_hand", "message"),
    [
        ({"d_in": 512}, "the SAE's d_in must be the activations' 512; got 16: pass an SAE of this model"),
        (
            {"hook_name": "blocks.1.hook_mlp_out"},
            "the SAE's hook must be .*, blocks.1.hook_mlp_out; got blocks.0.hook_m",
        ),
        (
            {"center_writing_weights": False},
            r"center_writing_weights must be that of the activations \(False\); got True",
        ),
    ],
)
def test_other_activations_are_refused(at_hand: dict[str, Any], message: str) -> None:
    cfg = load_sae(WRITTEN_BY_SAELENS / "standard").cfg
    require_fits(cfg, d_in=16, hook_name="blocks.0.hook_mlp_out", center_writing_weights=True)
    require_fits(cfg, d_in=16)
    with pytest.raises(UserError, match=message):
        require_fits(cfg, **{"d_in": 16, **at_hand})


def test_only_the_studys_kind_is_trained_or_started_from() -> None:
    for name, message in (("topk", "architecture"), ("standard-layer-norm", "normalize_activations")):
        sae = load_sae(WRITTEN_BY_SAELENS / name)
        with pytest.raises(UserError, match=f"{message} of an SAE in training must be"):
            require_trainable(sae.cfg)
        wide = SAEConfig(16, 64, "blocks.0.hook_mlp_out", "gelu-1l", True)
        with pytest.raises(UserError, match=f"{message} of a narrow SAE to start from must be one of .*start the wide"):
            init_from_narrow(sae, wide, True, torch.Generator().manual_seed(0))


def test_hook_names() -> None:
    assert canonical_hook("blocks.2.mlp.hook_out") == "blocks.2.hook_mlp_out" and canonical_hook("odd") == "odd"
    assert parse_hook("blocks.2.hook_out", 3).name == "blocks.2.hook_resid_post"
    for name, message in (
        ("blocks.3.hook_mlp_out", r"layer of a hook must be in \[0, 3\)"),
        ("blocks.0.hook_z", "one of"),
    ):
        with pytest.raises(UserError, match=message):
            parse_hook(name, 3)


# The study's own files


def study_files(folder: Path, **changes: Any) -> Path:
    """A wide SAE as the study's trainer writes it: NAME.pt and NAME_cfg.json."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "W_enc": torch.randn(16, 32, generator=generator), "W_dec": torch.randn(32, 16, generator=generator),
        "b_enc": torch.randn(32, generator=generator), "b_dec": torch.randn(16, generator=generator),
    }  # fmt: skip
    cfg = {
        "seed": 49, "batch_size": 4096, "buffer_mult": 384, "lr": 1e-4, "num_tokens": 2_000_000_000, "l1_coeff": 3e-4,
        "beta1": 0.9, "beta2": 0.99, "dict_mult": 2, "seq_len": 128, "enc_dtype": "fp32", "model_name": "gelu-1l",
        "site": "mlp_out", "layer": 0, "device": "cuda:0", "act_name": "blocks.0.hook_mlp_out", "act_size": 16,
        "dict_size": 32,
    }  # fmt: skip
    torch.save({k: v for k, v in (state | changes.pop("state", {})).items() if v is not None}, folder / "25.pt")
    (folder / "25_cfg.json").write_text(json.dumps({k: v for k, v in (cfg | changes).items() if v is not ...}))
    return folder / "25.pt"


def test_the_studys_files_load(tmp_path: Path) -> None:
    sae = load_sae(study_files(tmp_path))
    cfg = sae.cfg
    assert (cfg.d_in, cfg.d_sae, cfg.hook_name, cfg.model_name) == (16, 32, "blocks.0.hook_mlp_out", "gelu-1l")
    assert cfg.center_writing_weights is True and cfg.metadata["study"]["l1_coeff"] == 3e-4
    state = torch.load(tmp_path / "25.pt", weights_only=True)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        acts = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
        torch.testing.assert_close(sae(x).feature_acts, acts)
        torch.testing.assert_close(sae(x).x_hat, acts @ state["W_dec"] + state["b_dec"])
    assert load_sae(sae.save(tmp_path / "sae")).cfg == cfg, "and are written as a folder"


def test_the_earliest_files_name_only_d_mlp(tmp_path: Path) -> None:
    path = study_files(tmp_path, act_size=..., act_name=..., site=..., dict_size=..., d_mlp=16)
    assert load_sae(path).cfg.hook_name == "blocks.0.mlp.hook_post"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {"b_enc": None}}, r"25.pt must hold \['W_dec', 'W_enc', 'b_dec', 'b_enc'\]; got"),
        ({"state": {"W_dec": torch.zeros(16, 32)}}, r"W_dec must have the shape \(32, 16\)"),
        ({"state": {"b_dec": torch.full((16,), float("nan"))}}, "b_dec of an SAE must be finite"),
        ({"act_size": 512}, "act_size must be the weights' 16; got 512"),
        ({"dict_size": 4096}, "dict_size must be the weights' 32; got 4096"),
        ({"dict_size": ..., "dict_mult": 8}, "dict_size must be the weights' 32; got 128"),
    ],
)
def test_bad_study_files_are_one_clear_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sae(study_files(tmp_path, **changes))


def test_the_command_line_says_it_in_one_line_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import saelib.doctor

    monkeypatch.setattr(saelib.doctor, "examine", lambda *args, **kwargs: load_sae(tmp_path / "nowhere"))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        f"error: an SAE folder must hold cfg.json; got {tmp_path / 'nowhere'}: pass a folder that holds cfg.json and "
        "sae_weights.safetensors\n"
    )
