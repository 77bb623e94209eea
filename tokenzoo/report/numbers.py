"""Numbers as short text."""

from __future__ import annotations

MISSING = "–"


def percent(share: float | None) -> str:
    """A share as a short percentage: 25%, 6.3%."""
    if share is None:
        return MISSING
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.1f}%"


def si(amount: float) -> str:
    """A count with three digits and a decimal prefix: 3.21G."""
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(amount) >= factor:
            return f"{amount / factor:.3g}{prefix}"
    return f"{amount:.3g}"


def binary_bytes(amount: float) -> str:
    """Bytes with a binary prefix: 1.5 MiB."""
    for prefix, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(amount) >= factor:
            return f"{amount / factor:.1f} {prefix}"
    return f"{amount:.0f} B"
