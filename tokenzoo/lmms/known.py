"""What is known of the field's benchmarks before lmms-eval is imported or anything is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tokenzoo.yaml_file import parse_yaml

PREFIX = "lmms:"
FILE = Path(__file__).parent / "known.yaml"


class Known(BaseModel):
    """A benchmark: its name in printed tables, its kind and size, and the metric that papers print.

    `scale` times lmms-eval's number is what is printed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    printed: str
    kind: Literal["image", "video"]
    questions: int
    metric: str
    scale: float
    data: str
    note: str = ""


@cache
def known_benchmarks() -> dict[str, Known]:
    """The benchmarks of the seed's tables, by lmms-eval's names."""
    data = parse_yaml(FILE.read_text(encoding="utf-8"), FILE, trusted=True).data
    return {name: Known.model_validate(entry) for name, entry in data.items()}
