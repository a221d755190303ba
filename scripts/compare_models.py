"""Measure embedded models side by side: what longer training of the language model does to the feature that is split.

    python scripts/compare_models.py FOLDER ...     # docs/embedded_models.csv, about ten minutes a folder

A folder holds what `scripts/train_mini_lm.py` exports; an earlier model's comes from this repository's history. Each is read
on the study's own test documents, so losses compare a character even where tokenizers differ. For models of today's tokenizer
also: what a linear probe tells of the hyphen's three classes (its ceiling, MCC on test), and, for narrow SAEs of two widths
(each at the smallest of `COEFFICIENTS` whose L0 lies in the profile's range, on the model's own activations), how well the
best feature marks hyphens that join words (F1, purity, recall; chosen and thresholded on select, measured on test).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tokenizers
from write_model_card import losses, mean_mlp_out

from saelib.base.cache import atomic_path, read_json
from saelib.lm.model import EMBEDDED_FOLDER, OneLayerModel, load_embedded
from saelib.study import graded, selection, study
from saelib.study.profiles import get_profile

WIDTHS, COEFFICIENTS = (256, 1024), (1e-3, 2e-3, 2.8e-3)
OUT = Path(__file__).parents[1] / "docs" / "embedded_models.csv"
N_CONTEXTS = 2000


def text_of(contexts: np.ndarray) -> str:
    """The text of contexts of the embedded tokenizer, in order."""
    tokenizer = tokenizers.Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    return "".join(tokenizer.decode(row[1:].tolist()) for row in contexts)


def cut(model: OneLayerModel, text: str) -> np.ndarray:
    """The text as contexts of a model's own tokens."""
    ids, width = np.array(model.tokenizer.encode(text, add_special_tokens=False).ids), model.cfg.n_ctx - 1
    body = ids[: len(ids) // width * width].reshape(-1, width)
    return np.concatenate([np.full((len(body), 1), model.tokenizer.token_to_id("<|bos|>")), body], 1)


def row_of(folder: Path) -> dict[str, Any]:
    """Everything measured on one model."""
    profile, model, record = get_profile("mini"), load_embedded(folder), read_json(folder / "training.json")
    store = study.tokens(profile)
    select, test = (text_of(np.asarray(store.contexts(split)[:N_CONTEXTS])) for split in ("select", "test"))
    contexts = cut(model, test)
    loss = losses(model, contexts, mean_mlp_out(model, cut(model, select)))
    characters = len(test) / contexts[:, 1:].size  # a token
    out = {
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12],
        "lm_tokens": record["tokens"],
        "loss_a_token": loss["validation_loss"],
        "loss_a_character": loss["validation_loss"] / characters,
        "rise_without_mlp": loss["loss_zero_ablated"] - loss["validation_loss"],
    }
    if (folder / "tokenizer.json").read_bytes() != (EMBEDDED_FOLDER / "tokenizer.json").read_bytes():
        return out
    study.load_embedded = functools.partial(load_embedded, folder)  # type: ignore[attr-defined]
    for width in WIDTHS:
        narrow = replace(profile, d_sae_narrow=width, l1_grid=COEFFICIENTS)
        chosen = selection.parent(narrow)
        fit = selection.parent_fit(narrow, chosen)
        out |= {f"f1_{width}": fit.f1, f"purity_{width}": fit.purity, f"recall_{width}": fit.recall}
        if width == WIDTHS[0]:
            found = graded.yardstick(narrow, chosen)
            assert found is not None
            ceilings = found.ceiling_draws[0]
            out |= {f"probe_{c.name}": float(v) for c, v in zip(found.contexts, ceilings, strict=True)}
    return out


def main() -> None:
    """One process a model; then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--row", action="store_true", help="only print one folder's row, as JSON")
    args = parser.parse_args()
    if args.row:
        print(pd.Series(row_of(args.folders[0])).to_json())
        return
    rows = []
    for folder in args.folders:
        made = subprocess.run(
            [sys.executable, __file__, "--row", str(folder)], check=True, stdout=subprocess.PIPE, text=True
        )
        rows.append(pd.Series(json.loads(made.stdout.splitlines()[-1])))
        print(rows[-1].to_string(), flush=True)
    with atomic_path(OUT) as temporary:
        pd.DataFrame(rows).round(4).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
