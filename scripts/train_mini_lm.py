"""Train the embedded 1-layer GELU language model: tokenizer, text, weights, loss curve.

    python scripts/train_mini_lm.py --tokenizer      # first: train the tokenizer on the train split, into the package
    python scripts/train_mini_lm.py --sweep          # 5M tokens at each of SWEEP's learning rates: sweep.csv
    python scripts/train_mini_lm.py                  # train, or go on where it stopped; then export
    python scripts/train_mini_lm.py --export         # write the last checkpoint's weights into the package
    python scripts/write_model_card.py               # then measure the card's numbers

Reproducible: the text is pinned by hash, the order of contexts and the initial weights by `--seed`. AdamW, gradient norm
clipped to 1, bf16 autocast where the processor multiplies bf16 and fp32 elsewhere. The learning rate rises linearly for 200
steps, stays, and falls linearly to zero over the last fifth of the steps. The schedule is fixed by `--tokens`, so a resumed
run ends where an uninterrupted one does.

How long: one pass over the train text. More passes lower the loss and make the feature that the study splits less pure:
`docs/embedded_models.csv` has what was measured, and the card says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import safetensors.torch
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from saelib.base.cache import atomic_path, cache_dir, content_key, write_json
from saelib.base.checkpoints import Checkpoints
from saelib.base.memory import keep_freed_memory
from saelib.lm.mini_lm import MiniLM, MiniLMConfig
from saelib.lm.model import EMBEDDED_FOLDER
from saelib.text.corpus import build_token_store, read_corpus, split_of
from saelib.text.sources import STUDY_SOURCES
from saelib.text.tokens import TokenStore


class Trained(NamedTuple):
    """What `train` returns."""

    steps: int
    curve: list[dict[str, float]]
    seconds: float


TOKENS = 13.7e6
"""Training tokens: one pass over the train text."""
PEAK = 2e-3
"""Learning rate between its rise and its fall."""
PRODUCTS = torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32
SWEEP = (1e-3, 2e-3, 4e-3)
SWEEP_TOKENS = 5e6
DECAY_SHARE = 0.2
"""Share of the steps, at the end, over which the learning rate falls to zero."""
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
WARM_UP_STEPS = 200
BATCH_CONTEXTS = 32
CHECKPOINT_EVERY = 250
VALIDATE_EVERY = 500


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Linear warm-up, a plateau at `peak`, linear decay to zero at `n_steps`."""
    left = (n_steps - step) / (DECAY_SHARE * n_steps)
    return peak * min((step + 1) / WARM_UP_STEPS, left, 1.0)


def train_tokenizer(texts: Iterator[str], vocabulary: int, path: Path) -> None:
    """Train a byte-level BPE that cuts text as GPT-2 does, but with every digit a token of its own; saved as `tokenizer.json`.

    A space belongs to the word after it, and runs of punctuation stay together: so " -", "--" and "(-" are not the "-" that
    joins two words.
    """
    words = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=0) + "\n")


def validation_loss(model: MiniLM, contexts: np.ndarray) -> float:
    """Mean next-token loss over contexts of the select split (bf16 autocast, as in training)."""
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=PRODUCTS is torch.bfloat16):
        for begin in range(0, len(contexts), 32):
            tokens = torch.from_numpy(contexts[begin : begin + 32].astype(np.int64))
            logits = (model.residual(tokens)[:, :-1] @ model["unembed.W_U"]).float()
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
            ).item()
            count += tokens[:, 1:].numel()
    return total / count


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean next-token cross-entropy of `x @ W_U`, with logits made and differentiated a chunk of rows at a time.

    The full logit matrix (4,096 x 8,192 in fp32: 134 MB, read and written several times) would otherwise cost more
    than the matrix products themselves. Products in `PRODUCTS`, softmax in fp32.
    """

    CHUNK = 256

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W_U: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss; the gradients are computed on the way and kept for `backward`."""
        n = x.shape[0]
        x, weight = x.to(PRODUCTS), W_U.to(PRODUCTS)
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros(W_U.shape)
        total = torch.zeros(())
        for begin in range(0, n, ChunkedCrossEntropy.CHUNK):
            rows = slice(begin, begin + ChunkedCrossEntropy.CHUNK)
            probabilities = torch.softmax(x[rows] @ weight, -1, dtype=torch.float32)
            target = targets[rows, None]
            total -= probabilities.gather(1, target).clamp_min(1e-30).log().sum()
            probabilities.scatter_add_(1, target, torch.full(target.shape, -1.0))
            grad_logits = probabilities.to(PRODUCTS)
            grad_x[rows] = grad_logits @ weight.T
            if PRODUCTS is torch.float32:
                grad_w.addmm_(x[rows].T, grad_logits)
            else:
                grad_w += x[rows].T @ grad_logits
        ctx.save_for_backward(grad_x / n, grad_w / n)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Scale the kept gradients."""
        grad_x, grad_w = ctx.saved_tensors
        return grad_x.float() * grads[0], grad_w * grads[0], None


def main() -> None:
    """Make the tokenizer, sweep, train, resume or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=TOKENS, help="training tokens; fixes the schedule")
    parser.add_argument("--peak", type=float, default=PEAK, help="largest learning rate")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", action="store_true", help="only train the tokenizer")
    parser.add_argument("--sweep", action="store_true", help="only compare learning rates")
    parser.add_argument("--export", action="store_true", help="only write the last checkpoint into the package")
    args = parser.parse_args()

    keep_freed_memory()

    def first_weights() -> torch.Generator:
        return torch.Generator().manual_seed(args.seed)

    cfg, tokenizer_file = MiniLMConfig(d_model=args.d_model), EMBEDDED_FOLDER / "tokenizer.json"
    if args.tokenizer:
        texts = (text for _, text in read_corpus(STUDY_SOURCES) if split_of(text) == "train")
        train_tokenizer(texts, cfg.d_vocab, tokenizer_file)
        return
    store = build_token_store(STUDY_SOURCES, tokenizer_file, name="study")
    if args.sweep:
        losses = [
            train(store, MiniLM(cfg, first_weights()), SWEEP_TOKENS, rate, args.seed).curve[-1]["validation_loss"]
            for rate in SWEEP
        ]
        table = pd.DataFrame({"learning_rate": SWEEP, "tokens": int(SWEEP_TOKENS), "select_loss": losses}).round(4)
        with atomic_path(EMBEDDED_FOLDER / "sweep.csv") as temporary:
            table.to_csv(temporary, index=False)
        print(table.to_string(index=False))
        return
    model = MiniLM(cfg, first_weights())
    trained = train(store, model, args.tokens, args.peak, args.seed, only_load=args.export)
    export(model, store.manifest, args.peak, args.seed, trained)


def train(store: TokenStore, model: MiniLM, tokens: float, peak: float, seed: int, only_load: bool = False) -> Trained:
    """Train (or resume, or with `only_load` only bring back the last checkpoint): steps, loss curve, seconds."""
    cfg = model.cfg
    contexts = store.contexts("train")
    validation = np.array(store.contexts("select")[:512])
    n_steps = int(tokens) // (BATCH_CONTEXTS * (contexts.shape[1] - 1))
    begins = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.tensors().values())).hexdigest()
    key = content_key(
        cfg=asdict(cfg), text=store.key, seed=seed, n_steps=n_steps, peak=peak, decay=DECAY_SHARE, begins=begins
    )
    checkpoints = Checkpoints(cache_dir() / "mini_lm" / key, key, "language model")

    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    step, curve, seconds, running = restore(checkpoints, model, optimizer)
    if step:
        print(f"resumed at step {step} of {n_steps}", flush=True)
    if only_load:
        return Trained(step, curve, seconds)
    per_epoch = len(contexts) // BATCH_CONTEXTS
    print(
        f"{n_steps} steps, {per_epoch} an epoch, {store.manifest['splits']['train']['tokens']:,} train tokens",
        flush=True,
    )
    began, order, epoch_of_order = time.perf_counter() - seconds, None, -1
    while step < n_steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != epoch_of_order:
            order, epoch_of_order = np.random.default_rng([seed, epoch]).permutation(len(contexts)), epoch
        assert order is not None
        rows = np.sort(order[within * BATCH_CONTEXTS : (within + 1) * BATCH_CONTEXTS])
        batch = torch.from_numpy(contexts[rows].astype(np.int64))  # (b, t)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, peak)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=PRODUCTS is torch.bfloat16):
            residual = model.residual(batch)
        loss = ChunkedCrossEntropy.apply(
            residual[:, :-1].reshape(-1, cfg.d_model), model["unembed.W_U"], batch[:, 1:].reshape(-1)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        running += loss.item()
        if step % VALIDATE_EVERY == 0 or step == n_steps:
            row = {
                "step": step,
                "tokens": step * BATCH_CONTEXTS * (contexts.shape[1] - 1),
                "train_loss": running / (step - (curve[-1]["step"] if curve else 0)),
                "validation_loss": validation_loss(model, validation),
                "seconds": time.perf_counter() - began,
            }
            curve.append(row)
            running = 0.0
            print({k: round(v, 4) for k, v in row.items()}, flush=True)
        if step % CHECKPOINT_EVERY == 0 or step == n_steps:
            scalars = {"step": step, "curve": curve, "seconds": time.perf_counter() - began, "running": running}
            checkpoints.write(step, state_tensors(model, optimizer), scalars)
    return Trained(step, curve, time.perf_counter() - began)


def state_tensors(model: MiniLM, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and Adam's moments, which begin at zero: the memory that training changes."""
    tensors = {}
    for name, p in model.named_parameters():
        if not optimizer.state[p]:
            zeros = {moment: torch.zeros_like(p) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {**zeros, "step": torch.zeros((), dtype=torch.float32)}
        tensors[f"param.{name}"] = p.detach()
        tensors |= {f"{moment}.{name}": optimizer.state[p][moment] for moment in ("exp_avg", "exp_avg_sq", "step")}
    return tensors


def restore(
    checkpoints: Checkpoints, model: MiniLM, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]], float, float]:
    """Bring model and optimizer to the newest checkpoint; step, curve, seconds and the loss summed since the curve's end."""
    own = state_tensors(model, optimizer)
    names = ("step", "curve", "seconds", "running")
    found = checkpoints.newest(own, names)
    if found is None:
        return 0, [], 0.0, 0.0
    for name, tensor in own.items():
        tensor.copy_(found.tensors[name])
    step, curve, seconds, running = (found.scalars[name] for name in names)
    return step, curve, seconds, running


def export(model: MiniLM, manifest: dict[str, object], peak: float, seed: int, trained: Trained) -> None:
    """Half-precision weights, config, loss curve and text manifest into the package folder."""
    cfg = model.cfg
    with atomic_path(EMBEDDED_FOLDER / "model.safetensors") as temporary:
        weights = {name: tensor.half().contiguous() for name, tensor in model.tensors().items()}
        temporary.write_bytes(safetensors.torch.save(weights))
    training = {
        "seed": seed, "steps": trained.steps, "tokens": trained.steps * BATCH_CONTEXTS * (cfg.n_ctx - 1),
        "seconds": round(trained.seconds), "learning_rate": peak, "products": str(PRODUCTS).removeprefix("torch."),
        "betas": BETAS, "weight_decay": WEIGHT_DECAY, "warm_up_steps": WARM_UP_STEPS,
        "decay_share": DECAY_SHARE, "batch_contexts": BATCH_CONTEXTS, "clip": 1.0, "torch": torch.__version__,
        "text": manifest,
    }  # fmt: skip
    write_json(EMBEDDED_FOLDER / "config.json", {**asdict(cfg), "d_mlp": cfg.d_mlp, "d_head": cfg.d_head})
    write_json(EMBEDDED_FOLDER / "training.json", training)
    with atomic_path(EMBEDDED_FOLDER / "loss_curve.csv") as temporary:
        pd.DataFrame(trained.curve).round(4).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
