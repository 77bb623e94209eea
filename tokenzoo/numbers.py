"""Numbers as short text."""

from __future__ import annotations

MISSING = "–"
DECIMAL: dict[str, float] = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


def percent(share: float | None) -> str:
    """A share as a short percentage: 25%, 6.3%."""
    if share is None:
        return MISSING
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.1f}%"


def si(amount: float) -> str:
    """A count with three digits and a decimal prefix: 3.21G."""
    return _in_units(amount, "{:.3g}{}", DECIMAL) or f"{amount:.3g}"


def flops(amount: float) -> str:
    """FLOPs with two decimals: 14.76 T."""
    return _in_units(amount, "{:.2f} {}", DECIMAL) or f"{amount:.0f}"


def binary_bytes(amount: float) -> str:
    """Bytes with a binary prefix: 1.5 MiB."""
    return _in_units(amount, "{:.1f} {}iB", {"G": 2**30, "M": 2**20, "K": 2**10}) or f"{amount:.0f} B"


def decimal_bytes(amount: float) -> str:
    """Bytes with a decimal prefix: 365.45 MB."""
    return _in_units(amount, "{:.2f} {}B", DECIMAL) or f"{amount:.0f} B"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, a dash where no time is defined."""
    return MISSING if seconds is None else f"{seconds * 1e3:.2f}"


def _in_units(amount: float, form: str, units: dict[str, float]) -> str:
    """The amount in the largest unit that it reaches, "" where it reaches none."""
    return next((form.format(amount / size, unit) for unit, size in units.items() if abs(amount) >= size), "")
