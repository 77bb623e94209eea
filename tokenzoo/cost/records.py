"""Records of the registry (architectures, hardware): pydantic models whose mistakes are told in one line."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tokenzoo.errors import UserError, unknown
from tokenzoo.yaml_file import first_problem

#: A width, a number of heads, a vocabulary: at least one, and nothing that no model will have.
Size = Annotated[int, Field(strict=True, ge=1, le=10**8)]
#: A depth. Every layer is priced by itself.
Depth = Annotated[int, Field(strict=True, ge=1, le=10**4)]
#: Tokens, pixels, or a size that may be missing.
Count = Annotated[int, Field(strict=True, ge=0, le=10**8)]
#: How many views one image or video may have.
MOST_VIEWS = 10**4
Counts = Annotated[tuple[Count, ...], Field(max_length=MOST_VIEWS)]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


#: FLOP/s, bytes/s or bytes. YAML reads 312e12 as text, which is a number here.
Rate = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1e30, allow_inf_nan=False)]


class Record(BaseModel):
    """Something that a registry describes: all its keys are known, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Kind = TypeVar("Kind", bound=Record)


def read_record(kind: type[Kind], entry: dict[str, Any], what: str, command: str) -> Kind:
    """The entry as a record of this kind; raises UserError that begins with `what` and, for a wrong key, names `command`."""
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        location, problem = first_problem(error)
        where, first = ".".join(map(str, location)), error.errors()[0]
        if first["type"] == "missing":
            raise UserError(f"{what} lacks {where}.") from None
        if first["type"] == "extra_forbidden":
            raise unknown(f"key of {what}", where, _keys(kind, location[:-1]), command) from None
        value = repr(first["input"])
        shown = f", not {value if len(value) <= 40 else value[:40] + '…'}"
        raise UserError(f"{what}{f': {where}' if where else ''}: {problem}{shown if where else ''}.") from None


def _keys(kind: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that stand at `location` of a record."""
    for part in location:
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        inner = [part for part in _parts(fields[str(part)].annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        kind = inner[0]
    return [".".join(map(str, (*location, field.alias or name))) for name, field in kind.model_fields.items()]


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return getattr(annotation, "__args__", (annotation,))
