"""A second device for machines that have none: numbers lie on the processor, tensors say that they are elsewhere.

`ELSEWHERE` behaves as a GPU does in all that a placement can get wrong: an operation on tensors of both devices fails (but for
single numbers, and for indices from the processor), a random generator of the processor fills nothing there, and `numpy` wants
a copy on the processor first. The numbers are those of the processor, so results can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
"""torch has no other device that needs no hardware; a tensor of torch's own meta device, which has no numbers, is refused."""
_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}
_COPYING = {_aten._to_copy.default, _aten.copy_.default}


class Misplaced(RuntimeError):
    """What a GPU would refuse."""


class Elsewhere(Tensor):
    """A tensor on `ELSEWHERE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, **options: Any) -> str:
        return f"Elsewhere({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor(numbers, device=ELSEWHERE)` with its numbers, which torch's own meta device would drop."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and options.get("device") == ELSEWHERE:
            del options["device"]
            return func(*args, **options).to(ELSEWHERE)
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):  # torch copies it by itself, but not of subclasses
            return args[0].held.tolist()
        if func is Tensor.__getitem__ and isinstance(args[0], Elsewhere):  # a list of places is numbers, too
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))
        return func(*args, **options)


class OnElsewhere(TorchDispatchMode):
    """While active, `ELSEWHERE` is a device."""

    def __enter__(self) -> OnElsewhere:
        self.from_numbers = _FromNumbers()
        self.from_numbers.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.from_numbers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is _aten._fused_sdp_choice.default:
        return 0  # attention as plain arithmetic: the fused kernels are chosen by device
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    here = [each for each in tensors if not isinstance(each, Elsewhere)]
    if any(each.device == ELSEWHERE for each in here):
        raise Misplaced(f"{func}: a tensor without numbers, made while the device was not switched on")
    asked = kwargs.get("device")
    result_there = bool(there) if asked is None else torch.device(asked) == ELSEWHERE
    _check(func, args, there, [each for each in here if each.dim() > 0])
    if result_there and kwargs.get("generator") is not None:
        raise Misplaced(f"{func}: a generator of the processor cannot fill a tensor elsewhere")
    plain = _unwrapped(kwargs)
    if asked is not None and result_there:
        plain["device"] = torch.device("cpu")
    out = func(*_unwrapped(args), **plain)
    if func._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return tree_map(lambda each: Elsewhere(each) if isinstance(each, Tensor) else each, out) if result_there else out


def _check(func: Any, args: tuple[Any, ...], there: list[Any], here: list[Tensor]) -> None:
    if not there or not here or func in _COPYING:
        return
    if func in _INDEXING and isinstance(args[0], Elsewhere):
        values = [each for each in args[2:3] if isinstance(each, Tensor)]
        if all(isinstance(each, Elsewhere) or each.dim() == 0 for each in values):
            return
    raise Misplaced(f"{func}: tensors on two devices, of shapes {[tuple(each.shape) for each in (*there, *here)]}")


def _unwrapped(tree: Any) -> Any:
    unwrap: Callable[[Any], Any] = lambda each: each.held if isinstance(each, Elsewhere) else each  # noqa: E731
    return tree_map(unwrap, tree)
