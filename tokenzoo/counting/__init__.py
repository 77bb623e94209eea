"""Counting real forwards: FLOPs by fvcore and by torch's FlopCounterMode, which must agree with `tokenzoo.cost` to the digit."""

from tokenzoo.counting.counted import Counted, count
from tokenzoo.counting.counter import UncountedOperationError

__all__ = ["Counted", "UncountedOperationError", "count"]
