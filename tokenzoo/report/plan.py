"""What `tokenzoo compare --plan` says would run."""

from __future__ import annotations

from collections.abc import Iterator

from tokenzoo.comparison.plan import Plan, questions_at_most
from tokenzoo.numbers import percent


def plan_lines(plan: Plan) -> Iterator[str]:
    """The rows, then what each model is asked, in sentences."""
    settings = plan.settings
    others = ", ".join(text for text, method in plan.methods if method.name != "none")
    yield f"Rows: none as it is; {others} {_set(plan)}: {plan.rows} rows a table."
    for section in plan.sections:
        count = sum(questions_at_most(task, settings.limit) for task in section.tasks)
        names = ", ".join(task.name for task in section.tasks)
        yield f"{section.title}, {section.kind}s: {names}; {count} questions a row, {plan.rows * count} answers."
    if settings.timing:
        yield f"Timing: {settings.rounds} interleaved rounds of {settings.new_tokens} new tokens, all rows of a table."
    if plan.targets:
        yield f"Prices: {', '.join(target.text for target in plan.targets)}, convention {settings.convention}."
    yield from plan.left_out
    for title in dict.fromkeys(section.title for section in plan.sections if section.takes_videos is None):
        yield f"{title} is still to be downloaded, so nothing is known of it."
    yield "Nothing was run."


def _set(plan: Plan) -> str:
    settings = plan.settings
    if settings.retention:
        return f"at {', '.join(percent(share) for share in settings.retention)} of the visual tokens"
    if settings.as_published:
        return "each at its own settings"
    return f"each set to at most {', '.join(amount.described for amount in settings.amounts)}"
