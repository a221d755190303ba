"""Open an SAE, whatever it is kept as."""

from __future__ import annotations

from pathlib import Path

import torch

from saelib.sae.format import read_folder, read_study_files
from saelib.sae.hub_release import is_release, read_release
from saelib.sae.sae import SAE, SAEConfig


def load_sae(source: str | Path) -> SAE:
    """Read an SAE.

    Args:
        source: a folder written by `SAE.save` or by SAELens; `RELEASE/ID` of the hub, by sae-lens's own loader (the extra
            `saelens`); or the study's `NAME.pt` with `NAME_cfg.json` beside it.

    Weights become float32. A folder is never unpickled.

    Raises:
        UserError: none of these, an architecture that is not read, a missing, misshapen or non-finite tensor, a release that
            does not exist or cannot be reached.
    """
    path = Path(source).expanduser()
    if isinstance(source, str) and is_release(source):
        fields, tensors = read_release(source)
    elif path.suffix == ".pt" and path.with_name(f"{path.stem}_cfg.json").is_file():
        fields, tensors = read_study_files(path)
    else:
        fields, tensors = read_folder(path)
    sae = SAE(SAEConfig(**fields))
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(sae, name).copy_(tensor)
    return sae
