"""One or more methods run in order (`prumerge+vtw`), priced as one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenzoo.errors import UserError
from tokenzoo.method.reducer import DataDependentError, TokenReducer, UnreachableError
from tokenzoo.method.workload import Workload

ENTRY_HOOKS = ("before_projector", "pre_llm")


@dataclass(frozen=True)
class Pipeline:
    """Methods in the order in which they run, usually one."""

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
        """Whether the token counts are known without seeing the picture.

        What a second method before the LLM makes of the views that a first one left depends on both: there a recorded
        run tells.
        """
        return all(reducer.fixed_schedule for reducer in self.reducers) and len(self._entering) < 2

    @property
    def _entering(self) -> list[TokenReducer]:
        """The methods that act before the LLM."""
        return [reducer for reducer in self.reducers if _enters(reducer)]

    def implements(self, hook: str) -> bool:
        """Whether any of the methods implements the hook."""
        return any(reducer.implements(hook) for reducer in self.reducers)

    def schedule(self, workload: Workload) -> list[int]:
        """Visual tokens entering each decoder layer: the least that any of the methods leaves there.

        Raises DataDependentError where no closed form tells (see `fixed_schedule`).
        """
        if len(self._entering) > 1:
            raise DataDependentError(f"'{self}' has two methods before the LLM, so no closed form: price a recorded run.")
        seen = self._workloads(workload)
        schedules = [reducer.schedule(load) for reducer, load in zip(self.reducers, seen, strict=True)]
        return [min(counts) for counts in zip(*schedules, strict=True)]

    def projector_tokens(self, workload: Workload) -> int:
        """Visual tokens entering the projector: only methods that act before it can make them fewer."""
        early = [reducer for reducer in self.reducers if reducer.implements("before_projector")]
        return min((reducer.projector_tokens(workload) for reducer in early), default=workload.projector_tokens)

    def overhead(self, workload: Workload) -> int:
        """FLOPs of the methods' own matrix products; of a second method before the LLM an estimate, each source one view."""
        seen = self._workloads(workload)
        return sum(reducer.overhead(load) for reducer, load in zip(self.reducers, seen, strict=True))

    def at_retention(self, retention: float) -> Pipeline:
        """Return the pipeline at `retention` (0..1] by its method's own knob; one method only."""
        if len(self.reducers) > 1:
            raise UnreachableError(f"'{self}' has several knobs, so no one retention. Set each method's parameters.")
        return Pipeline((self.reducers[0].at_retention(retention),))

    def _workloads(self, workload: Workload) -> list[Workload]:
        """What each method is given: the tokens that the methods before it left.

        All reductions before the LLM run before those inside it, so a method that acts only inside sees what all
        the others let in.
        """
        if len(self.reducers) == 1:
            return [workload]
        before, current = [], workload
        for reducer in self.reducers:
            before.append(current if reducer.fixed_schedule else replace(current, recorded=workload.recorded))
            if _enters(reducer):
                current = current.with_entry(self._entry(reducer, current, workload))
        return [load if _enters(reducer) else current for reducer, load in zip(self.reducers, before, strict=True)]

    def _entry(self, reducer: TokenReducer, load: Workload, whole: Workload) -> tuple[int, ...]:
        """The tokens of each source that `reducer` lets into the LLM."""
        if not reducer.fixed_schedule:
            if whole.recorded is None:
                raise DataDependentError(f"'{reducer.name}' keeps as many tokens as the picture asks for.")
            return tuple(sum(counts) for counts in whole.recorded)
        return tuple(reducer.schedule(replace(load, sources=(source,), recorded=None))[0] for source in load.sources)


def _enters(reducer: TokenReducer) -> bool:
    """Whether a method acts before the LLM."""
    return any(map(reducer.implements, ENTRY_HOOKS))
