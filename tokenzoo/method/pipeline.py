"""One or more methods run in order (`prumerge+vtw`), priced as one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenzoo.errors import UserError
from tokenzoo.method import accounting
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import UnreachableError
from tokenzoo.method.workload import Architecture, EncoderCut, Workload


@dataclass(frozen=True)
class Pipeline:
    """Methods in the order in which they run, usually one. Before the LLM each sees what the ones before it left."""

    reducers: tuple[TokenReducer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "reducers", tuple(self.reducers))
        if not self.reducers:
            raise UserError("A pipeline needs at least one method. Run 'tokenzoo list'.")

    def __str__(self) -> str:
        """The specification that builds this pipeline again: `prumerge+vtw:K=12`."""
        return "+".join(str(reducer) for reducer in self.reducers)

    @property
    def name(self) -> str:
        """The methods' names alone: `prumerge+vtw`."""
        return "+".join(reducer.name for reducer in self.reducers)

    @property
    def fixed_schedule(self) -> bool:
        """Whether the token counts are known without seeing the picture."""
        return accounting.is_fixed(self.reducers)

    @property
    def picture_scale(self) -> float:
        """What each side of a picture or frame is multiplied by before the model's processor sees it."""
        return math.prod(reducer.picture_scale for reducer in self.reducers)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers after which any of the methods acts."""
        return tuple(sorted({layer for reducer in self.reducers for layer in reducer.layers(num_layers)}))

    def check_model(self, architecture: Architecture) -> None:
        """Raise UnsupportedError, before anything runs, where one of the methods cannot work on this model."""
        for reducer in self.reducers:
            reducer.check_model(architecture)

    def schedule(self, workload: Workload) -> list[int]:
        """Visual tokens entering each decoder layer; raises DataDependentError where the picture decides and none is recorded."""
        return accounting.schedule(self.reducers, workload)

    def mlp_schedule(self, workload: Workload) -> list[int]:
        """Visual tokens that each decoder layer's MLP sees."""
        return accounting.mlp_schedule(self.reducers, workload)

    def cache_schedule(self, workload: Workload) -> list[int]:
        """Visual tokens in each layer's KV cache after the prompt; raises DataDependentError as `schedule` does."""
        return accounting.cache_schedule(self.reducers, workload)

    def read_schedule(self, workload: Workload) -> list[int]:
        """Visual tokens that each layer reads in a decoding step; raises DataDependentError as `schedule` does."""
        return accounting.read_schedule(self.reducers, workload)

    def decode_overhead(self, workload: Workload, steps: int) -> tuple[int, int]:
        """FLOPs of the methods' own matrix products in the first decoding step, and in `steps` of them."""
        return accounting.decode_overhead(self.reducers, workload, steps)

    def encoder_cuts(self, workload: Workload) -> list[tuple[EncoderCut, ...]]:
        """For each view of the workload where inside the encoder how many of its patches are left."""
        return accounting.encoder_cuts(self.reducers, workload)

    def projector_tokens(self, workload: Workload) -> int:
        """Visual tokens entering the projector."""
        return accounting.projector_tokens(self.reducers, workload)

    def decoder_tokens(self, workload: Workload) -> int:
        """Visual tokens entering the decoder: fewer may enter its layer 0, where methods act before that."""
        return accounting.decoder_tokens(self.reducers, workload)

    def overhead(self, workload: Workload) -> int:
        """FLOPs of the methods' own matrix products, each on the tokens that really reach it."""
        return accounting.overhead(self.reducers, workload)

    def at_retention(self, retention: float, layers: int) -> Pipeline:
        """Return the pipeline at `retention` (0..1] by its method's own knob; one method only."""
        if len(self.reducers) > 1:
            raise UnreachableError(f"'{self}' has several knobs, so no one retention. Set each method's parameters.")
        return Pipeline((self.reducers[0].at_retention(retention, layers),))
