"""`tokenzoo serve-check`: does vLLM with a method keep, count and answer what the Hugging Face model does, and how fast?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from tokenzoo.commands.options import ANSWER, DTYPE, QUESTIONS, SEED
from tokenzoo.errors import FailedError, UserError

if TYPE_CHECKING:
    from tokenzoo.serving.check import Comparison, Rounding

#: Kept tokens and greedy answers may differ in so many of a hundred questions: two implementations round differently where two
#: tokens are as good, or two answers as likely.
TOLERATED = 1


@click.command("serve-check")
@click.argument("model")
@click.option("--method", required=True, metavar="METHOD", help="A method as in 'tokenzoo list': divprune:retention=0.25, a+b.")
@click.option("--tasks", default="attribute", show_default=True, help="Tasks by name, image, video, or your own folders.")
@click.option("--limit", default=100, show_default=True, type=QUESTIONS, help="Questions of each task.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the questions.")
@click.option("--max-new-tokens", default=8, show_default=True, type=ANSWER, help="Longest answer.")
@click.option("--dtype", type=DTYPE, help="Weights' type on both sides [default: float32 on the CPU, else as they are]")
@click.option("--device", help="Where the Hugging Face model runs [default: cuda where there is one]")
@click.option("--engine", "engine_options", metavar="JSON", default="{}", help="Further arguments of vllm.LLM.")
def command(
    model: str,
    method: str,
    tasks: str,
    limit: int,
    seed: int,
    max_new_tokens: int,
    dtype: str | None,
    device: str | None,
    engine_options: str,
) -> None:
    """Ask MODEL the same questions through Hugging Face with tokenzoo and through vLLM, without and with a method.

    Exit code 1: a prompt has another length, or tokens and answers differ more often than rounding explains.
    """
    from tokenzoo.comparison.plan import tasks_of
    from tokenzoo.report.terminal import print_line, print_table
    from tokenzoo.zoo.plugins import load_zoo

    zoo = load_zoo()
    pipelines = [zoo.build("none"), *([zoo.build(method)] if zoo.build(method).name != "none" else [])]
    options = _json(engine_options)
    chosen = tasks_of([name.strip() for name in tasks.split(",")], zoo)

    import torch

    from tokenzoo.models.checkpoint import load
    from tokenzoo.serving.check import Comparison, Rounding, engine, in_transformers, in_vllm, rounding
    from tokenzoo.serving.served import named, served

    dtype = dtype or ("auto" if torch.cuda.is_available() else "float32")
    checkpoint = load(model, dtype, device=device)
    served(named(checkpoint.model.config, str(pipelines[-1])))  # refuses what cannot be served, before anything runs
    questions = [question for task in chosen for question in task.questions(limit, seed)]
    ours = [in_transformers(checkpoint, pipeline, questions, max_new_tokens) for pipeline in pipelines]
    checkpoint.model.to("meta")  # its memory is vLLM's now
    found = []
    for pipeline, side in zip(pipelines, ours, strict=True):
        with engine(model, str(pipeline), dtype, options) as vllm:
            found.append(Comparison(str(pipeline), side, in_vllm(vllm, checkpoint, questions, max_new_tokens)))
    print_table(*table(found))
    wrong, eager = [], None
    for pipeline, row in zip(pipelines, found, strict=True):
        for index in row.differing:
            texts = [checkpoint.decode(torch.tensor([side.answers[index].tokens]))[0] for side in (row.ours, row.served)]
            print_line(f"{row.method}: '{questions[index].id}' is '{texts[0]}' in transformers, '{texts[1]}' in vLLM.")
        chance = Rounding()
        if row.moved or row.differing:
            eager = eager or load(model, dtype, "eager", device)
            chance = rounding(row, eager, pipeline, questions, max_new_tokens)
            print_line(
                f"{row.method}: transformers with eager attention keeps other tokens too in {chance.moved} of {len(row.moved)} "
                f"questions where vLLM does, and answers differently in {chance.differing} of {len(row.differing)}."
            )
        if not as_expected(row, chance):
            wrong.append(row.method)
    if wrong:
        raise FailedError(f"vLLM does not do what the Hugging Face model does with {', '.join(wrong)}: see the table.")


def as_expected(row: Comparison, chance: Rounding) -> bool:
    """Whether prompts are the same, and no more kept tokens and answers differ than rounding explains (as many without it)."""
    asked = len(row.ours.answers)
    few = TOLERATED * asked // 100
    moved, differing = len(row.moved) - chance.moved, len(row.differing) - chance.differing
    return row.prompts == asked and moved <= max(chance.moved, few) and differing <= max(chance.differing, few)


def table(found: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table."""
    heads = ["Method", "Prompt tokens", "Same length", "Same tokens kept", "Same answers", "Requests/s", "× none", "First token"]
    rows = []
    for row in found:
        asked = len(row.ours.answers)
        mean = sum(answer.prompt_tokens for answer in row.served.answers) / asked
        rows.append(
            [
                row.method,
                f"{mean:.1f}",
                f"{row.prompts} of {asked}",
                f"{row.kept} of {row.pictures}" if row.pictures else "–",
                f"{asked - len(row.differing)} of {asked}",
                f"{row.served.rate:.1f}",
                f"{row.served.rate / found[0].served.rate:.2f}",
                f"{1000 * row.served.first_token:.0f} ms",
            ]
        )
    return heads, rows


def _json(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise UserError(f"--engine is not JSON: {error}. Write '{{\"max_model_len\": 4096}}'.") from None
    if not isinstance(read, dict):
        raise UserError("--engine must be a JSON object, such as '{\"max_model_len\": 4096}'.")
    return read
