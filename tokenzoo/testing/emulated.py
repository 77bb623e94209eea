"""An accelerator that is not there: tensors that say they lie on it, hold CPU data, and refuse to meet CPU tensors.

PyTorch's `privateuse1` device is set up from Python and `OnDevice` is a wrapper tensor on it. Each operation is checked as a
GPU would: a CPU tensor of at least one dimension beside a device's, or tensors of two devices, is an error, but for copies.
Whatever makes the host wait for the device (a value read, a size that depends on values, a copy to the CPU) is counted by
the line of tokenzoo or of a method that asked for it. `torch.arange(n)` without a device makes a CPU tensor, as everywhere.
"""

from __future__ import annotations

import functools
import linecache
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import tokenzoo

NAME = "emulated"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}
#: Operations whose result, or its size, the host must know at once.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.bincount.default,
}
_OURS = (str(Path(tokenzoo.__file__).parent), "tokenzoo_plugins", f"{Path(tokenzoo.__file__).parents[1]}/plugins")


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of different devices."""


@dataclass
class Log:
    """What happened on the emulated devices: waits by the line that caused them."""

    waits: Counter[str] = field(default_factory=Counter)

    def note(self, what: str) -> None:
        line = _line()
        if line:
            self.waits[f"{what} at {line}"] += 1

    @property
    def count(self) -> int:
        return sum(self.waits.values())


_log = Log()


def _line() -> str:
    """The innermost line of tokenzoo or of a method on the stack, "" where there is none above the model's own code."""
    frame: FrameType | None = sys._getframe(1)  # read by hand: a traceback would read each file on the stack
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and "/torch/" not in file:
            if any(part in file for part in _OURS) and "/testing/" not in file:
                return f"{Path(file).name}:{frame.f_lineno} {linecache.getline(file, frame.f_lineno).strip()}"
            if "/transformers/models/" in file or "/transformers/generation/" in file:
                return ""  # the model's own doing
        frame = frame.f_back
    return ""


class OnDevice(torch.Tensor):
    """A tensor on emulated device number `place`; `inside` holds its values."""

    inside: torch.Tensor
    place: int

    @staticmethod
    def __new__(cls, inside: torch.Tensor, place: int = 0) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=torch.device(NAME, place),
        )
        made.inside, made.place = inside, place
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({self.place}, {self.inside!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(function, args, kwargs or {})


def _emulated(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _inside(value: Any) -> Any:
    return value.inside if isinstance(value, OnDevice) else value


def _check(function: Any, tensors: list[torch.Tensor], args: Any) -> None:
    """Raise MixedDevicesError as a GPU would; count what waits."""
    here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if not here:
        return
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if function not in COPIES:
        if len({tensor.place for tensor in here if tensor.dim()}) > 1:
            raise MixedDevicesError(f"{function}: tensors on two devices, at {_line()}")
        if elsewhere and function in INDEXING and isinstance(args[0], OnDevice) and not _values_elsewhere(args):
            _log.note("indices copied to the device")
        elif elsewhere:
            raise MixedDevicesError(f"{function}: tensors on the device and on the CPU, at {_line()}")
    by_mask = function in INDEXING and any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in args[1])
    if function in WAITS or by_mask:
        _log.note(str(function))


def _values_elsewhere(args: Any) -> bool:
    """Whether what is written by `index_put` lies on the CPU; indices may: a GPU copies them."""
    return len(args) > 2 and isinstance(args[2], torch.Tensor) and not isinstance(args[2], OnDevice) and args[2].dim() > 0


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    _check(function, tensors, args)
    here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    target = kwargs.get("device")
    leaves = target is not None and not _emulated(target)
    if leaves and here and function in COPIES:
        _log.note("copy to the CPU")
    plain = tree_map(_inside, kwargs)
    if _emulated(target):
        plain["device"] = torch.device("cpu")
    plain_args = tree_map(_inside, args)
    if function is aten.histc.default:  # an accelerator counts whole numbers too
        plain_args = (plain_args[0].float(), *plain_args[1:])
    result = function(*plain_args, **plain)
    name = function._schema.name
    if function is aten.copy_.default or (name.endswith("_") and not name.endswith("__") and isinstance(args[0], torch.Tensor)):
        if function is aten.copy_.default and not isinstance(args[0], OnDevice) and here:
            _log.note("copy to the CPU")
        return args[0]
    if not (_emulated(target) or (here and not leaves)):
        return result
    dimensional = [tensor.place for tensor in here if tensor.dim()] or [tensor.place for tensor in here]
    place = (torch.device(str(target)).index or 0) if _emulated(target) else dimensional[0]
    return tree_map(lambda value: OnDevice(value, place) if _plain(value) else value, result)


def _plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)


class _Factories(TorchDispatchMode):
    """Tensors made with `device=` land on the emulated device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        if any(isinstance(leaf, OnDevice) for leaf in leaves) or _emulated(kwargs.get("device")):
            return _run(function, args, kwargs)
        return function(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Functions that look at a tensor's device, or read its values, before anything is dispatched."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
            here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
            if here:
                _check(function, tensors, args)
                args, kwargs = tree_map(_inside, (args, kwargs))
                return OnDevice(function(*args, **kwargs), here[0].place)
        if function is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            _log.note("tolist")
            return args[0].inside.tolist()
        if function is torch.Tensor.numpy and isinstance(args[0], OnDevice):
            raise MixedDevicesError(f"numpy() of a tensor on the device, at {_line()}")
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and _emulated(kwargs.get("device")):
            data = tree_map(_inside, args[0])
            made = function(data, *args[1:], **{**kwargs, "device": "cpu"})
            return OnDevice(made, torch.device(kwargs["device"]).index or 0)
        if function in (torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.cpu):
            return _move(function, args, kwargs)
        return function(*args, **kwargs)


def _move(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`to`, `type_as` and `cpu`, between devices."""
    rest = [*args[1:], *kwargs.values()]
    like = next((value for value in rest if isinstance(value, torch.Tensor)), None)
    device: Any = next((value for value in rest if isinstance(value, (torch.device, str))), None)
    if like is not None:
        device = like.device
    if function is torch.Tensor.cpu:
        device = torch.device("cpu")
    own = args[0].device
    if device is None or torch.device(device) == own or (torch.device(device).type == own.type and own.type == "cpu"):
        return function(*args, **kwargs)
    dtype = like.dtype if like is not None else next((value for value in rest if isinstance(value, torch.dtype)), args[0].dtype)
    moved = _inside(args[0]).to(dtype, copy=True)
    if _emulated(device):
        return OnDevice(moved, torch.device(device).index or 0)
    _log.note("copy to the CPU")
    return moved


@cache
def _set_up() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    backend: Any = getattr(torch, NAME)  # random numbers are drawn on the CPU
    backend.get_rng_state = lambda device=None: torch.get_rng_state()
    backend.set_rng_state = lambda state, device=None: None


@contextmanager
def emulated_devices() -> Iterator[Log]:
    """Let `torch.device("emulated", n)` work inside the block; the log counts from here."""
    global _log
    _set_up()
    before, _log = _log, Log()
    try:
        with _Functions(), _Factories():
            yield _log
    finally:
        _log = before


def on_device(model: Any, place: int = 0, **elsewhere: int) -> Any:
    """Move a model's weights to emulated device `place`, those of named submodules to others; return the model.

    `elsewhere` maps the beginning of a submodule's name, dots written as "__", to its device. Call it inside
    `emulated_devices`; the model stays on the device.
    """
    prefixes = {name.replace("__", "."): number for name, number in elsewhere.items()}

    def of(path: str) -> int:
        found = [prefix for prefix in prefixes if path == prefix or path.startswith(f"{prefix}.")]
        return prefixes[max(found, key=len)] if found else place

    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(OnDevice(parameter.data, of(path)), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer, of(path))
    return model


def inputs_on_device(inputs: dict[str, Any], place: int = 0) -> dict[str, Any]:
    """The inputs with their tensors on the emulated device."""
    return {name: OnDevice(value.clone(), place) if _plain(value) else value for name, value in inputs.items()}


def follow(module: Any, place: int) -> None:
    """As accelerate does: the module's forward moves what it is given to its own device, after every hook."""
    forward, device = module.forward, torch.device(NAME, place)

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    @functools.wraps(forward)
    def moved(*args: Any, **kwargs: Any) -> Any:
        kept = {name: value if name == "past_key_values" else tree_map(move, value) for name, value in kwargs.items()}
        return forward(*tree_map(move, args), **kept)

    module.forward = moved
