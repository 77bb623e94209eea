"""What a row is called: the method as it was written, with the values that it really ran with, short."""

from __future__ import annotations

from typing import Any

from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer, UnreachableError
from tokenzoo.zoo.describe import value_as_written
from tokenzoo.zoo.specification import parse

#: Retentions that tell which parameters a method's knob turns.
#: A depth at which every probe is some whole number of layers.
DEPTH = 32
PROBES = (0.9, 0.6, 0.3)


def label_of(written: str, built: Pipeline, set_to: Pipeline) -> str:
    """The label of `written` (built as `built`) once it was set: `fastv:R=0.832`, also where that is the default.

    Parameters are those that were written, those that setting it changed, and those that its knob turns.
    """
    parts = []
    for part, before, after in zip(parse(written), built.reducers, set_to.reducers, strict=True):
        changed = [name for name in after.parameters if after.parameters[name] != before.parameters[name]]
        names = dict.fromkeys([*part.parameters, *changed, *(_turned(before) if len(built.reducers) == 1 else ())])
        values = ",".join(f"{name}={short(after.parameters[name])}" for name in names)
        preset = f"@{part.preset}" if part.preset else ""
        parts.append(f"{part.name}{preset}{':' if values else ''}{values}")
    return "+".join(parts)


def short(value: Any) -> str:
    """A parameter's value with three digits; JSON output has it exactly."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(short, value))}]"
    return value_as_written(value)


def _turned(method: TokenReducer) -> list[str]:
    settings = []
    for retention in PROBES:
        try:
            settings.append(Pipeline((method,)).at_retention(retention, DEPTH).reducers[0].parameters)
        except UnreachableError:
            continue
    return [name for name in method.parameters if any(one[name] != settings[0][name] for one in settings)]
