"""What a row is called: the method as it was written, with the values that it really ran with, short."""

from __future__ import annotations

from typing import Any

from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer, UnreachableError
from tokenzoo.zoo.describe import value_as_written
from tokenzoo.zoo.specification import parse

#: Retentions that tell which parameters a method's knob turns, and a depth at which each is some whole number of layers.
PROBES, DEPTH = (0.9, 0.6, 0.3), 32


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


def changed(written: str, built: Pipeline, set_to: Pipeline) -> str:
    """The parameters that were written and that setting the method changed: `R=0.75`; "" where there are none."""
    parts = zip(parse(written), built.reducers, set_to.reducers, strict=True)
    names = [(name, before, after) for part, before, after in parts for name in part.parameters]
    return ", ".join(
        f"{name}={short(before.parameters[name])}"
        for name, before, after in names
        if before.parameters[name] != after.parameters[name]
    )


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
