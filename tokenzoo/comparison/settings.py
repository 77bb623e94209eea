"""What to compare: the settings of `tokenzoo compare`, from the command line or a YAML file, checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenzoo.comparison.amounts import Amount
from tokenzoo.errors import FailedError, UserError
from tokenzoo.zoo.specification import split_methods

EMBEDDED = "embedded"
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
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "The options"
        if first["type"] == "missing":
            raise UserError(f"{name} is needed, such as '{name} aim,fastv'. Run 'tokenzoo list' to see them.") from None
        raise UserError(f"{name}: {_say(first)}. Run 'tokenzoo compare --help'.") from None


def read_config(path: Path, overriding: dict[str, Any]) -> Settings:
    """Settings from a YAML file, with the options of the command line before it; errors name file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read config '{path}': {getattr(error, 'strerror', None) or 'it is no text'}.") from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: {problem}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}:1: a config is a mapping such as 'methods: aim,fastv'. See docs/comparing.md.")
    try:
        return Settings.model_validate({**data, **overriding})
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        name = ".".join(location) + ": " if location else ""
        raise UserError(f"{path}:{_line(node, location)}: {name}{_say(first)}.") from None


def write_config(settings: Settings, path: Path) -> None:
    """Write the settings that differ from their defaults as YAML that `--config` reads."""
    values = settings.model_dump(exclude_defaults=True)
    try:
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise FailedError(f"Cannot write config '{path}': {error.strerror}.") from None


def _line(node: yaml.Node, location: list[str]) -> int:
    """The line (from 1) of the deepest part of `location` that the file has."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key.start_mark.line, value) for key, value in node.value if key.value == part]
        elif isinstance(node, yaml.SequenceNode):
            found = [(node.value[int(part)].start_mark.line, node.value[int(part)])]
        else:
            break
        if not found:
            break
        line, node = found[0][0] + 1, found[0][1]
    return line


def _say(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such setting; choose from {', '.join(Settings.model_fields)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:] if message[:2] != message[:2].upper() else message
