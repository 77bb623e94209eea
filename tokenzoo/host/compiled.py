"""Compiled parts of a model. Compiled code does not call the hooks inside it, so what holds one runs as it was written.

`module.forward = torch.compile(module.forward)`, and the wrapper that `torch.compile(module)` makes, leave the module's own hooks
outside; `module.compile()` takes them in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenzoo.host.family import Module


def compiled(module: Module) -> bool:
    """Whether calling this module runs code that torch.compile made."""
    return vars(module).get("_compiled_call_impl") is not None or _written(module) is not None


def uncompile_hooked(model: Module, at_end: Callable[[Callable[[], None]], object]) -> None:
    """Let every compiled part that would pass over a hook of the host run uncompiled; `at_end` is given what undoes it."""
    for module in model.modules():
        if not compiled(module):
            continue
        inside = any(_hooked(part) for part in module.modules() if part is not module)
        call, written = vars(module).get("_compiled_call_impl"), _written(module)
        if call is not None and (inside or _hooked(module)):
            _set(module, "_compiled_call_impl", None, at_end)
        if written is not None and inside:
            _set(module, "forward", written, at_end)


def _written(module: Module) -> Any:
    """The forward that was compiled; None where this one was not."""
    return getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)


def _set(module: Module, name: str, value: Any, at_end: Callable[[Callable[[], None]], object]) -> None:
    attributes: dict[str, Any] = module.__dict__
    at_end(partial(attributes.__setitem__, name, attributes[name]))
    attributes[name] = value


def _hooked(module: Module) -> bool:
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(str(getattr(hook, "__module__", "")).startswith("tokenzoo.") for hook in hooks)
