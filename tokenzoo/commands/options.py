"""Options that several commands share, each checked by click as it is read: one way for all of them."""

from __future__ import annotations

import click

#: What no prompt and no cluster has more of. A number beyond it is a slip, and pricing it would take hours.
IMAGES = FRAMES = click.IntRange(1, 10_000)
TOKENS = click.IntRange(0, 10_000_000)
BATCH = click.IntRange(1, 100_000)
DECODE = click.IntRange(0, 8192)
GROUP = click.IntRange(1, 1024)
SCALE = click.FloatRange(0, 1e6, min_open=True)
MILLISECONDS = click.FloatRange(0, 1e12, min_open=True)
