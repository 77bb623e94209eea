"""Options that several commands share, each checked by click as it is read: one way for all of them."""

from __future__ import annotations

import math
from typing import Any

import click

from tokenzoo.models.names import DTYPES


class Finite(click.FloatRange):
    """A number in a range; "nan" is in none, and no amount is infinite."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number = float(super().convert(value, param, context))
        if not math.isfinite(number):
            self.fail(f"{value} is no amount.", param, context)
        return number


#: What no prompt and no cluster has more of. A number beyond it is a slip, and pricing it would take hours.
IMAGES = FRAMES = click.IntRange(1, 10_000)
TOKENS = click.IntRange(0, 10_000_000)
BATCH = click.IntRange(1, 100_000)
DECODE = click.IntRange(0, 8192)
GROUP = click.IntRange(1, 1024)
SCALE = Finite(0, 1e6, min_open=True)
QUESTIONS = click.IntRange(1, 1_000_000)
SEED = click.IntRange(0, 2**63 - 1)
FRAMES_SHOWN = click.IntRange(1, 1024)
ANSWER = click.IntRange(1, 32768)
DTYPE = click.Choice(DTYPES)
MILLISECONDS = Finite(0, 1e12, min_open=True)
