"""Training steps of other libraries on a batch of ours, for `train_step.py` to time; each is imported only when it is asked for.

    pip install "saelib[peers]"                                                                             # SAELens
    pip install --no-deps dictionary-learning==0.1.0 nnsight==0.3.7 python-socketio python-engineio bidict

In a checkout, in an environment of its own: `scripts/overlay.sh .venv-peers "sae-lens==6.54.12"`, and the second line by
`.venv-peers/bin/python -m pip`.

Why `--no-deps`: `import dictionary_learning` imports nnsight, which requires torchvision and does without it here. Left alone,
pip takes the newest torchvision and replaces torch by a GPU build of its newest release. Held to the torch of `requirements.lock`
it takes a torchvision built for GPUs, which a CPU build of torch cannot load ("operator torchvision::nms does not exist");
transformers imports torchvision where it finds it, so then neither nnsight nor SAELens can be imported. The three packages after
nnsight are all that its import needs beyond what saelib has.

Weights are ours and the learning rate is zero (SAELens: 1e-12). Everything else is a library's default, at a step in the middle
of a training: full penalty, no dead features.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Literal

import torch

from saelib.sae.sae import SAE

Step = functools.partial[object]
PACKAGES = {
    "sae_lens": "pip install 'saelib[peers]'",
    "dictionary_learning": "how to install it: benchmarks/peers.py",
}
"""The packages that are imported, and where they come from."""
MATRYOSHKA = (8, 4, 2, 1)
"""A Matryoshka SAE's widths are d_sae over these."""


def installed(package: str) -> bool:
    """Whether a package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def saelens(
    sae: SAE,
    x: torch.Tensor,
    architecture: Literal["standard", "batchtopk", "matryoshka"],
    sparsity: float,
    autocast: bool = False,
) -> Step:
    """SAELens's training step, as its trainer does it. `sparsity`: the L1 coefficient, or k."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        own = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "device": x.device.type}
        if architecture == "standard":
            cfg = sae_lens.StandardTrainingSAEConfig(l1_coefficient=sparsity, **own)
            theirs = sae_lens.StandardTrainingSAE(cfg)
        elif architecture == "batchtopk":
            theirs = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=sparsity, **own))
        else:
            widths = sorted({max(1, sae.cfg.d_sae // part) for part in MATRYOSHKA})
            cfg = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(k=sparsity, matryoshka_widths=widths, **own)
            theirs = sae_lens.MatryoshkaBatchTopKTrainingSAE(cfg)
        # theirs first: a BatchTopK SAE has a running threshold besides the weights
        theirs.load_state_dict(theirs.state_dict() | {k: v.detach().clone() for k, v in sae.state_dict().items()})
        trainer_cfg = SAETrainerConfig(
            total_training_samples=10**9, train_batch_size_samples=len(x), lr=1e-12, lr_end=1e-12, autocast=autocast,
            device=x.device.type, logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        trainer = SAETrainer(trainer_cfg, theirs, iter(()))
    return functools.partial(trainer.step, x)


def dictionary_learning(
    sae: SAE, x: torch.Tensor, architecture: Literal["standard", "batchtopk"], sparsity: float
) -> Step:
    """The `update` of dictionary_learning's StandardTrainer or BatchTopKTrainer. `sparsity`: the L1 penalty a token, or k."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dictionary_learning.trainers import BatchTopKTrainer, StandardTrainer

    own = {
        "steps": 10**9, "activation_dim": sae.cfg.d_in, "dict_size": sae.cfg.d_sae, "layer": 0, "lm_name": "none", "lr": 0.0,
        "warmup_steps": 0, "device": x.device.type,
    }  # fmt: skip
    if architecture == "standard":
        trainer = StandardTrainer(l1_penalty=sparsity, sparsity_warmup_steps=None, **own)
        b_dec = trainer.ae.bias
    else:
        trainer = BatchTopKTrainer(k=round(sparsity), **own)
        b_dec = trainer.ae.b_dec
    with torch.no_grad():  # copied in place: the memory order of their matrices stays theirs
        trainer.ae.encoder.weight.copy_(sae.W_enc.T)
        trainer.ae.encoder.bias.copy_(sae.b_enc)
        trainer.ae.decoder.weight.copy_(sae.W_dec.T)
        b_dec.copy_(sae.b_dec)
    middle = 10_000  # past the 1,000 steps in which BatchTopKTrainer keeps no threshold; step 0 sets b_dec
    return functools.partial(trainer.update, middle, x)


def contestants(trained: SAE, fresh: SAE, x: torch.Tensor, l1: float, k: int) -> dict[str, Step]:
    """Steps of the libraries that are installed, by name: L1 SAEs have the weights of `trained`, BatchTopK ones of `fresh`."""
    found: dict[str, Step] = {}
    if installed("sae_lens"):
        found["SAELens fp32"] = saelens(trained, x, "standard", l1)
        found["SAELens autocast"] = saelens(trained, x, "standard", l1, autocast=True)
        found["SAELens BatchTopK"] = saelens(fresh, x, "batchtopk", k)
        found["SAELens Matryoshka"] = saelens(fresh, x, "matryoshka", k)
    if installed("dictionary_learning"):
        found["dictionary_learning"] = dictionary_learning(trained, x, "standard", l1)
        found["dictionary_learning BatchTopK"] = dictionary_learning(fresh, x, "batchtopk", k)
    return found
