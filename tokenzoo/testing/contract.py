"""One method on one model and one batch: every guarantee that such a run can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.host.adapter import AdapterError
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.trace import SourceTrace
from tokenzoo.method.validation import InvalidReductionError
from tokenzoo.testing.case import Case, Outcome, Report, leftovers, run
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.guarantees import check_entry, check_logits, check_promises, check_structure
from tokenzoo.testing.recorder import watch
from tokenzoo.zoo.errors import reason


def check_case(case: Case, reducers: Sequence[TokenReducer]) -> Report:
    """Run the methods on the case and return all that is wrong."""
    report = Report()
    watched = [watch(reducer, number) for number, reducer in enumerate(reducers)]
    states = [dict(vars(copy)) for copy in watched]
    inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in case.inputs.items()}
    try:
        outcome = run(case, watched)
    except UnsupportedError as error:
        report.unsupported = str(error)
        return report
    except AdapterError:
        raise  # the method is not to blame
    except InvalidReductionError as error:
        report.findings.append(Finding(6, case.where, f"it returned what is no reduction of its tokens. {error}"))
        return report
    except Exception as error:
        names = "+".join(reducer.name for reducer in reducers)
        report.findings.append(Finding(4, case.where, f"'{names}' raised {reason(error)}"))
        return report
    finally:
        report.findings += leftovers(case)
    report.outcome = outcome
    report.dropped = any(
        outcome.trace.mlp_visual_tokens(index)[-1] < sum(map(_offered, sample.sources)) or sample.cached or any(sample.reads)
        for index, sample in enumerate(outcome.trace.samples)
    )
    for copy, state in zip(watched, states, strict=True):
        if not _equal_state(vars(copy), state):
            written = sorted(set(vars(copy)) ^ set(state)) or sorted(k for k in state if vars(copy)[k] is not state[k])
            message = f"it wrote to self ({', '.join(written)}); keep what hooks share in tokens.memory / layer.memory."
            report.findings.append(Finding(3, case.where, message))
    report.findings += changed_inputs(case, outcome, inputs)
    structure = list(check_structure(case, outcome))
    report.findings += structure
    if not structure:
        report.findings += check_promises(case, outcome, reducers)
        report.findings += check_entry(case, outcome, reducers)
        report.findings += check_logits(case, outcome, reducers)
    return report


def _offered(source: SourceTrace) -> int:
    """Tokens that a source had before anything was reduced: before the projector there may be more."""
    before = sum(source.source.before_projector) if source.assignment is not None else 0
    return max(source.source.tokens, before)


def changed_inputs(case: Case, outcome: Outcome, before: dict[str, Any]) -> Iterator[Finding]:
    """A method must not write into what it was given."""
    entering = [call for sources in (*outcome.encoder, *outcome.entering) for calls in sources for call in calls]
    for call in [*entering, *(call for calls in outcome.inside for call in calls)]:
        if call.changed:
            place = "reduce" if call.layer is None else f"{call.decision} (layer {call.layer})"
            message = f"{place} changed its input in place ({', '.join(call.changed)}); work on a copy."
            yield Finding(3, case.where, message)
            return
    for name, value in before.items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, case.inputs[name]):
            yield Finding(3, case.where, f"the call's argument '{name}' was changed in place.")


def _equal_state(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() == before.keys() and all(now[key] is before[key] or now[key] == before[key] for key in now)
