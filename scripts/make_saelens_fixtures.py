"""Write tests/data/saelens/: small SAEs saved by sae-lens itself, with the activations and reconstructions it computes.

    make test-saelens                                                 # makes the environment that has sae-lens ...
    .venv-saelens/bin/python scripts/make_saelens_fixtures.py         # ... in which this runs

They were made once and are verified in every run of the tests, with no sae-lens at hand. Run this again only to follow a
new version of the format, and look at what changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sae_lens import SAE, __version__
from sae_lens.registry import get_sae_class
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "saelens"
D_IN, D_SAE, ROWS = 16, 32, 24
HOOK = {"hook_name": "blocks.0.hook_mlp_out", "model_name": "gelu-1l"}
VARIANTS = {
    "standard": ("standard", {}),
    "standard-layer-norm": ("standard", {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False}),
    "jumprelu": ("jumprelu", {"apply_b_dec_to_input": False}),
    "jumprelu-norm-rescale": ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    "topk": ("topk", {"k": 5}),
    "topk-rescaled": ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
}


def random_sae(architecture: str, switches: dict[str, object], seed: int) -> SAE:
    """A sae-lens SAE with every parameter away from zero."""
    sae_class, config_class = get_sae_class(architecture)
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **switches))
    for name, value in {**HOOK, "model_from_pretrained_kwargs": {"center_writing_weights": True}}.items():
        sae.cfg.metadata[name] = value
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.4 if "W" in name else 0.2))
            if name == "threshold":
                parameter.abs_()
    return sae


def main() -> int:
    for seed, (name, (architecture, switches)) in enumerate(VARIANTS.items()):
        sae = random_sae(architecture, switches, seed)
        sae.save_model(FOLDER / name)
        x = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(100 + seed)) * 1.5 + 0.3
        with torch.no_grad():
            feature_acts = sae.encode(x)
            x_hat = sae.decode(feature_acts)
        save_file({"x": x, "feature_acts": feature_acts, "x_hat": x_hat}, FOLDER / name / "expected.safetensors")
        print(f"{name}: {(feature_acts > 0).float().sum(1).mean():.1f} active of {D_SAE} (sae-lens {__version__})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
