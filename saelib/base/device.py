"""The device that work is done on: chosen once, then carried by the objects (a model, an SAE, activations), never by a global."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from saelib.base.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU where torch sees one, else the processor.

    Raises:
        UserError: an unknown name, or a GPU where torch sees none.
    """
    if isinstance(name, torch.device):
        return name
    if name not in DEVICES:
        raise UserError(f"device must be one of {', '.join(DEVICES)}", repr(name), "pass one")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        got = f"none (torch {torch.__version__})"
        raise UserError("device cuda needs a GPU that torch can use", got, "pass cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def in_key(device: torch.device) -> dict[str, str]:
    """What the key of a training says of its device: nothing of the processor, on which it is the same to the bit everywhere."""
    return {} if device.type == "cpu" else {"device": device.type}


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to: before and after what is timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
