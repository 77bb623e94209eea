"""Budgets as they are written: `33%`, `2.5T`, `36 tokens`, `25% tokens`, `20ms@a100`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from tokenzoo.numbers import si

SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
#: No prompt is as long, no GPU as slow, no prefill as dear.
MOST = {"flops": 1e21, "tokens": 1e6, "ms": 1e7}
FORM = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)([%kMGTP]?)\s*(tokens|ms@([\w.-]+))?")
EXAMPLES = "write 33% or 2.5T (LLM FLOPs), 25% tokens or 36 tokens (a layer's mean), or 20ms@a100 (prefill there)"


@dataclass(frozen=True)
class Amount:
    """What rows may cost: of `quantity`, `value` as a share of what the unreduced model costs, or absolute."""

    text: str
    quantity: Literal["flops", "tokens", "ms"]
    value: float
    share: bool
    hardware: str = ""

    @classmethod
    def parse(cls, value: Any) -> Amount:
        """Read a budget; raises ValueError with the forms there are."""
        text = " ".join(str(value).split())
        found = FORM.fullmatch(text) if len(text) <= 64 else None
        if not found:
            raise ValueError(f"'{text[:40]}' is no budget; {EXAMPLES}")
        number, unit, what, hardware = found.groups()
        quantity: Any = "flops" if what is None else "tokens" if what == "tokens" else "ms"
        amount = float(number) / 100 if unit == "%" else float(number) * SI[unit]
        if unit == "%" and quantity == "ms":
            raise ValueError(f"'{text}' is a share of a time; give the milliseconds, as in 20ms@a100")
        most = 1.0 if unit == "%" else MOST[quantity]
        if not (math.isfinite(amount) and 0 < amount <= most):
            raise ValueError(f"'{text}' is not above 0 and at most {'100%' if unit == '%' else format(most, 'g')}")
        return cls(text, quantity, amount, unit == "%", hardware or "")

    @property
    def unit(self) -> str:
        """What is counted, in words."""
        words = {"flops": "LLM FLOPs", "tokens": "visual tokens a layer", "ms": f"ms of prefill on {self.hardware}"}
        return words[self.quantity]

    @property
    def described(self) -> str:
        """The amount with what is counted, in words: `33% of the LLM FLOPs`, `36 visual tokens a layer`."""
        if self.share:
            return f"{100 * self.value:g}% of the {self.unit}"
        return f"{si(self.value)} {self.unit}"

    def of(self, unreduced: float) -> float:
        """The amount in numbers, where the unreduced model costs `unreduced`."""
        return self.value * unreduced if self.share else self.value
