"""What a check found, in words."""

from __future__ import annotations

from dataclasses import dataclass

#: The guarantees, as they are named in every finding; 0 is what comes before them.
GUARANTEES = {
    0: "can be loaded",
    1: "really drops",
    2: "none is the model",
    3: "leaves no trace",
    4: "works with stock attention and generate",
    5: "KV lengths equal the trace",
    6: "keeps what it promises",
}


@dataclass(frozen=True)
class Finding:
    """One guarantee that does not hold, where, and what was seen."""

    guarantee: int
    where: str
    message: str

    def __str__(self) -> str:
        return f"Guarantee {self.guarantee} ({GUARANTEES[self.guarantee]}) fails on {self.where}: {self.message}"
