"""What to compare: the settings of `tokenzoo compare`, from the command line or a YAML file, checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenzoo.comparison.amounts import Amount
from tokenzoo.errors import FailedError, UserError, unknown
from tokenzoo.yaml_file import first_problem, read_yaml
from tokenzoo.zoo.specification import split_methods

EMBEDDED = "embedded"
CONFIGS = Path(__file__).parent / "configs"
#: Tokens of a free-form answer; the embedded models need one or two.
MAX_NEW_TOKENS = 16
#: Questions per task of a plain run: chosen so that it ends within a minute on two cores.
DEFAULT_LIMIT = 30
#: What every method may cost where nothing else was asked for: a third of the LLM's FLOPs.
DEFAULT_BUDGET = "33%"


def parse_share(value: Any) -> float:
    """`25%`, `0.25` or 0.25 as a share in (0, 1]."""
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"'{text}' is no share; write 25% or 0.25") from None
    if not 0 < share <= 1:  # nan too
        raise ValueError(f"'{text}' is not above 0 and at most 100%")
    return share


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
Written = Annotated[str, BeforeValidator(lambda value: Amount.parse(value).text)]
Share = Annotated[float, BeforeValidator(parse_share)]


class Settings(BaseModel):
    """Everything that decides what a comparison contains. Lists may be written as text with commas."""

    model_config = ConfigDict(extra="forbid")

    methods: Annotated[list[str], BeforeValidator(_as_methods)] = Field(min_length=1)
    model: Names = Field(default=[EMBEDDED], min_length=1)
    tasks: Names = Field(default=["all"], min_length=1)
    limit: int = Field(default=DEFAULT_LIMIT, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    frames: int = Field(default=8, ge=1, le=1024)
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1, le=32768)
    device: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    attention: Literal["sdpa", "eager"] | None = None
    allow_missing: bool = False
    retention: Annotated[list[Share] | None, BeforeValidator(_as_list), Field(min_length=1, max_length=32)] = None
    price: Names = []
    convention: str = "llm-viewer"
    budget: Annotated[list[Written], BeforeValidator(_as_list)] = Field(default=[DEFAULT_BUDGET], min_length=1, max_length=32)
    as_published: bool = False
    with_published: bool = False
    batch_size: int = Field(default=20, ge=1, le=4096)
    timing: bool = True
    rounds: int = Field(default=5, ge=1, le=1000)
    new_tokens: int = Field(default=8, ge=2, le=32768)

    @field_validator("price")
    @classmethod
    def _targets(cls, price: list[str]) -> list[str]:
        for target in price:
            if not re.fullmatch(r"[^@]+@[^@]+", target):
                raise ValueError(f"'{target}' is no ARCH@GPU, such as vicuna-7b@a100")
        return price

    @model_validator(mode="after")
    def _one_way(self) -> Settings:
        """Rows are set in one way: to a budget, to a retention, or not at all."""
        ways = {"budget": "budget" in self.model_fields_set, "retention": bool(self.retention), "as_published": self.as_published}
        chosen = [name for name, given in ways.items() if given]
        if len(chosen) > 1:
            raise ValueError(f"only one of {' and '.join(chosen)} can set the rows")
        return self

    @property
    def amounts(self) -> list[Amount]:
        """The budgets, read; none where rows are not set to one."""
        return [] if self.retention or self.as_published else [Amount.parse(text) for text in self.budget]


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


def shipped_configs() -> dict[str, Path]:
    """The settings of published tables that come with tokenzoo, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def read_config(path: Path, overriding: dict[str, Any]) -> Settings:
    """Settings from a YAML file, or of a shipped table by its name, with the options of the command line before it.

    Errors name file and line.
    """
    shipped = shipped_configs()
    if str(path) in shipped and not path.exists():
        path = shipped[str(path)]
    elif path.suffix == "" and not path.exists():
        raise unknown("config", str(path), shipped, "tokenzoo compare --help")
    return read_yaml(path, "config").checked(Settings, overriding)


def write_config(settings: Settings, path: Path) -> None:
    """Write the settings that differ from their defaults as YAML that `--config` reads."""
    values = settings.model_dump(exclude_defaults=True)
    try:
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise FailedError(f"Cannot write config '{path}': {error.strerror}.") from None
