"""What to compare: the settings of `tokenzoo compare`, from the command line or a YAML file, checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenzoo.errors import FailedError, UserError
from tokenzoo.yaml_file import first_problem, read_yaml
from tokenzoo.zoo.specification import split_methods

EMBEDDED = "embedded"
#: Questions per task of a plain run: chosen so that it ends within a minute on two cores.
DEFAULT_LIMIT = 30

SI = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def parse_share(value: Any) -> float:
    """`25%`, `0.25` or 0.25 as a share in (0, 1]."""
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"'{text}' is no share; write 25% or 0.25") from None
    if not 0 < share <= 1:
        raise ValueError(f"'{text}' is not above 0 and at most 100%")
    return share


def parse_amount(value: Any) -> str:
    """A share of the unreduced cost (`25%`) or an absolute amount (`300`, `2.5T`), checked, as text."""
    text = str(value).strip()
    if text.endswith("%"):
        parse_share(text)
    elif not re.fullmatch(r"\d+(\.\d*)?([eE][+-]?\d+)?[kMGTP]?", text) or absolute(text) <= 0:
        raise ValueError(f"'{text}' is no amount; write 25% (of the unreduced cost) or a number such as 300 or 2.5T")
    return text


def absolute(text: str) -> float:
    """The number of an amount without %: `2.5T` is 2.5e12."""
    return float(text[:-1]) * SI[text[-1]] if text[-1] in SI else float(text)


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


def _as_methods(value: Any) -> Any:
    try:
        return split_methods(value) if isinstance(value, str) else value
    except UserError as error:
        raise ValueError(str(error)) from None


Names = Annotated[list[str], BeforeValidator(_as_list)]
Amount = Annotated[str, BeforeValidator(parse_amount)]
Share = Annotated[float, BeforeValidator(parse_share)]


class Settings(BaseModel):
    """Everything that decides what a comparison contains. Lists may be written as text with commas."""

    model_config = ConfigDict(extra="forbid")

    methods: Annotated[list[str], BeforeValidator(_as_methods)] = Field(min_length=1)
    model: Names = Field(default=[EMBEDDED], min_length=1)
    tasks: Names = Field(default=["all"], min_length=1)
    limit: int = Field(default=DEFAULT_LIMIT, ge=1)
    seed: int = Field(default=0, ge=0)
    retention: Annotated[list[Share], BeforeValidator(_as_list)] = []
    price: Names = []
    convention: str = "llm-viewer"
    match_flops: Amount | None = None
    match_tokens: Amount | None = None
    match_prefill_ms: Amount | None = None
    with_published: bool = False
    batch_size: int = Field(default=20, ge=1)
    timing: bool = True
    rounds: int = Field(default=5, ge=1)
    new_tokens: int = Field(default=8, ge=2)

    @field_validator("price")
    @classmethod
    def _targets(cls, price: list[str]) -> list[str]:
        for target in price:
            if not re.fullmatch(r"[^@]+@[^@]+", target):
                raise ValueError(f"'{target}' is no ARCH@GPU, such as vicuna-7b@a100")
        return price

    @model_validator(mode="after")
    def _one_budget(self) -> Settings:
        budgets = [name for name in ("match_flops", "match_tokens", "match_prefill_ms") if getattr(self, name)]
        if len(budgets) > 1:
            raise ValueError(f"only one of {' and '.join(budgets)} can be matched at a time")
        if budgets and self.retention:
            raise ValueError(f"{budgets[0]} sets each method's retention, so 'retention' cannot be given as well")
        if self.match_prefill_ms and not self.price:
            raise ValueError("match_prefill_ms needs a GPU: give 'price' as ARCH@GPU")
        return self


def from_options(options: dict[str, Any]) -> Settings:
    """Settings from command line options; raises UserError in their terms."""
    try:
        return Settings.model_validate(options)
    except ValidationError as error:
        location, problem = first_problem(error)
        name = "--" + str(location[0]).replace("_", "-") if location else "The options"
        if problem == "field required":
            raise UserError(f"{name} is needed, such as '{name} aim,fastv'. Run 'tokenzoo list' to see them.") from None
        raise UserError(f"{name}: {problem}. Run 'tokenzoo compare --help'.") from None


def read_config(path: Path, overriding: dict[str, Any]) -> Settings:
    """Settings from a YAML file, with the options of the command line before it; errors name file and line."""
    return read_yaml(path, "config").checked(Settings, overriding)


def write_config(settings: Settings, path: Path) -> None:
    """Write the settings that differ from their defaults as YAML that `--config` reads."""
    values = settings.model_dump(exclude_defaults=True)
    try:
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise FailedError(f"Cannot write config '{path}': {error.strerror}.") from None
