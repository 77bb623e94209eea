"""The interface every method implements: `TokenReducer`, a dataclass whose fields are the method's parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from tokenzoo.errors import UserError, unknown
from tokenzoo.method.workload import Workload

if TYPE_CHECKING:
    import torch

    from tokenzoo.method.events import DecoderLayer, VisualTokens

PositionPolicy = Literal["keep", "renumber"]


class DataDependentError(Exception):
    """A schedule was asked for that depends on the picture; price the method from a recorded trace."""


class UnreachableError(UserError):
    """A budget was asked for that no setting of the method meets."""


@dataclass(frozen=True)
class Reduction:
    """What is left of a set of tokens, where tokens were merged (a plain selection is just an index tensor).

    `features` [kept, hidden]: the tokens that remain, in the order in which they go on.
    `anchors` [kept]: for each, the index of the input token it stands for; where positions are kept it takes that
    token's position, and inside the LLM also its place (there anchors must differ from each other).
    `assignment` [tokens]: for each input token, the output it went into, or -1 where it was dropped. Only pictures
    and reports read it.
    """

    features: torch.Tensor
    anchors: torch.Tensor
    assignment: torch.Tensor | None = None


@dataclass
class TokenReducer:
    """A training-free method that reduces visual tokens.

    Subclass it as a dataclass; the fields are the parameters, checked against their type hints (pydantic's rules,
    so `Annotated[int, Field(ge=1)]` bounds a value). Implement any of the hooks `before_projector`, `pre_llm` and
    `after_layer`; one that is not implemented costs nothing. The host calls them once per sample (and, before the
    LLM, once per image or video), so a method never sees batches or padding. Keep no state on `self`: what one
    hook wants to tell a later one goes into `tokens.memory` / `layer.memory`, fresh for every sample.
    """

    name: ClassVar[str] = ""
    #: Position ids after a reduction before the LLM, and after one inside it. "keep": each token keeps the position
    #: it had in the full prompt. "renumber": 0..n-1. Models with M-RoPE always keep.
    #: (Make it a property where a parameter decides.)
    entry_positions: ClassVar[PositionPolicy] = "renumber"
    layer_positions: ClassVar[PositionPolicy] = "keep"
    #: False where a schedule needs to see the picture (`schedule` then raises DataDependentError).
    fixed_schedule: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validate_parameters(self)
        self.check()

    def check(self) -> None:
        """Raise UserError where parameters contradict each other. Types and bounds were checked before."""

    def check_model(self, family: Any, architecture: Any) -> None:
        """Raise UnsupportedError, before anything runs, where this method cannot work on this model."""

    # --- what it does -------------------------------------------------------------------------------------------

    def before_projector(self, tokens: VisualTokens) -> torch.Tensor | Reduction | None:
        """Reduce the encoder features of one image or video; None leaves them alone."""

    def pre_llm(self, tokens: VisualTokens) -> torch.Tensor | Reduction | None:
        """Reduce the embeddings of one image or video as they are about to enter the LLM."""

    def after_layer(self, layer: DecoderLayer) -> torch.Tensor | Reduction | None:
        """Reduce one sample's visual tokens after decoder layer `layer.index` (before layer index + 1)."""

    def layers(self, num_layers: int) -> Sequence[int]:
        """The decoder layers after which `after_layer` is called; other layers carry no hook of this method."""
        return ()

    def encoder_layers(self, num_layers: int) -> Sequence[int]:
        """The encoder layers whose q and k `before_projector` reads, of `num_layers`; only these are recorded."""
        return ()

    # --- what it costs ------------------------------------------------------------------------------------------

    def schedule(self, workload: Workload) -> list[int]:
        """Visual tokens entering each decoder layer (length: the architecture's layers).

        Raises DataDependentError where the count depends on the picture and `workload.recorded` is None.
        """
        raise NotImplementedError

    def projector_tokens(self, workload: Workload) -> int:
        """Tokens entering the projector. Only methods that reduce before it need to say so."""
        return workload.projector_tokens

    def overhead(self, workload: Workload) -> int:
        """FLOPs of the method's own matrix products (2 per multiply-add), as its hooks execute them."""
        return 0

    def at_retention(self, retention: float) -> TokenReducer:
        """Return this method set so that it keeps about `retention` (0..1] of the visual tokens by its own knob.

        Raises UnreachableError where it has no such knob.
        """
        raise UnreachableError(f"'{self.name}' has no retention knob.")

    # --- description --------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with their values, in the order they are declared."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def implements(self, hook: str) -> bool:
        """Whether this method implements the hook `before_projector`, `pre_llm` or `after_layer`."""
        return getattr(type(self), hook) is not getattr(TokenReducer, hook)

    def replace(self, **changes: Any) -> TokenReducer:
        """Return a copy with some parameters changed, checked anew."""
        check_parameter_names(type(self), changes)
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        """The method with the parameters that differ from their defaults, as a spec: `fastv:K=3,R=0.75`."""
        changed = [
            f"{field.name}={_as_yaml(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != _default(field)
        ]
        return self.name + (":" + ",".join(changed) if changed else "")


def _as_yaml(value: Any) -> str:
    """A parameter's value as a spec writes it: numbers and words as they are, sequences as [a,b]."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def check_parameter_names(reducer_class: type[TokenReducer], parameters: dict[str, Any]) -> None:
    """Raise UserError for a parameter the method does not have."""
    known = [field.name for field in fields(reducer_class)]
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of '{reducer_class.name}'", name, known or ["none"], f"tokenzoo show {reducer_class.name}")


def validate_parameters(reducer: TokenReducer) -> None:
    """Check and convert each field by its type hint (pydantic's lax mode: "14" becomes 14 for an int)."""
    from pydantic import ValidationError

    for name, adapter in _adapters(type(reducer)).items():  # type: ignore[arg-type]
        value = getattr(reducer, name)
        try:
            checked = adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(
                f"Parameter '{name}' of '{reducer.name}' cannot be {value!r}: {problem}. Run 'tokenzoo show {reducer.name}'."
            ) from None
        object.__setattr__(reducer, name, checked)


@functools.cache
def _adapters(reducer_class: type[TokenReducer]) -> dict[str, Any]:
    """One pydantic adapter per field, made once: making them costs more than the checks."""
    from pydantic import TypeAdapter

    hints = get_type_hints(reducer_class, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(reducer_class)}
