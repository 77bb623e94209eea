"""`tokenzoo run`: ask one question about pictures or a video, with a method at work, and see what it dropped."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenzoo.commands.options import ANSWER, DTYPE, FRAMES_SHOWN
from tokenzoo.errors import FailedError, UserError

if TYPE_CHECKING:
    from tokenzoo.method.trace import Trace

MAX_NEW_TOKENS = 32


@click.command(name="run")
@click.argument("question")
@click.option("--model", default="embedded:llava", show_default=True, help="A directory, a Hub id, or an embedded model.")
@click.option("--method", default="none", show_default=True, help="A method as in 'tokenzoo list': aim, fastv:K=3, a+b.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="A picture; may be repeated.")
@click.option("--video", type=click.Path(path_type=Path), help="A video file, or a folder of frames.")
@click.option("--frames", default=8, show_default=True, type=FRAMES_SHOWN, help="Frames taken from the video.")
@click.option(
    "--max-new-tokens",
    type=ANSWER,
    help=f"Longest answer [default: what the model's generation config says, else {MAX_NEW_TOKENS}].",
)
@click.option("--dtype", type=DTYPE, help="Weights' type: float32, bfloat16, ... [default: float32 on the CPU]")
@click.option("--trace", "trace_file", type=click.Path(path_type=Path), help="Also write the trace (JSON) here.")
@click.option(
    "--device", default=None, help="cpu, cuda, cuda:1, ..., or auto: spread over all there are [default: cuda where there is one]"
)
@click.option("--allow-missing", is_flag=True, help="Load a checkpoint that lacks weights: those are random then.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the checkpoint.")
def command(
    question: str,
    model: str,
    method: str,
    images: tuple[Path, ...],
    video: Path | None,
    frames: int,
    max_new_tokens: int | None,
    dtype: str | None,
    device: str | None,
    allow_missing: bool,
    trace_file: Path | None,
    trust_remote_code: bool,
) -> None:
    """Answer QUESTION about images or a video, and print the tokens each layer saw."""
    from tokenzoo.zoo.plugins import load_zoo

    if not images and video is None:
        raise UserError("Nothing to look at: pass --image FILE or --video FILE.")
    pipeline = load_zoo().build(method)

    import torch

    from tokenzoo.application import apply
    from tokenzoo.models.checkpoint import knows, load
    from tokenzoo.models.media import read_image, read_video
    from tokenzoo.models.question import Question

    asked = Question(
        id="command line",
        prompt=question,
        images=tuple(read_image(path) for path in images),
        video=read_video(video, frames) if video is not None else (),
    )
    checkpoint = load(model, dtype, device=device, trust_remote_code=trust_remote_code, allow_missing=allow_missing)
    if knows(model):
        click.echo(f"Note: {knows(model)}", err=True)
    checkpoint = checkpoint.scaled(pipeline.picture_scale)
    inputs = checkpoint.inputs([asked])
    longest = max_new_tokens or checkpoint.model.generation_config.max_new_tokens or MAX_NEW_TOKENS
    with apply(checkpoint.model, pipeline, **checkpoint.words([asked])) as run, torch.inference_mode():
        generated = checkpoint.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    click.echo(checkpoint.decode(generated[:, inputs["input_ids"].shape[1] :])[0])
    click.echo()
    for line in describe(run.trace):
        click.echo(line)
    if trace_file is not None:
        try:
            run.trace.save(trace_file)
        except OSError as error:
            raise FailedError(f"Cannot write '{trace_file}': {error.strerror}.") from None


def describe(trace: Trace) -> list[str]:
    """One line per run of layers that saw the same tokens, and the mean over layers.

    What left before an MLP is said, and what is left in the KV cache.
    """
    visual, every, mlp, cached = trace.visual_tokens(), trace.tokens(), trace.mlp_visual_tokens(), trace.cache_tokens()
    before = sum(source.source.tokens for source in trace.samples[0].sources)
    lines = [f"{'layers':>9}  {'visual tokens':>13}  {'all tokens':>10}"]
    seen_by = list(zip(visual, every, mlp, cached, strict=True))
    for (seen, total, left, held), group in groupby(range(trace.layers), key=seen_by.__getitem__):
        layers = list(group)
        span = str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
        notes = [f"{left} visual in its MLP"] * (left < seen) + [f"{held} in its cache"] * (held < total)
        lines.append(f"{span:>9}  {seen:>13}  {total:>10}" + "".join(f"  {note}" for note in notes))
    mean = sum(visual) / len(visual)
    share = f", {mean / before:.1%} of {before}" if before else ""
    return [*lines, f"     mean  {mean:>13.1f}{share}"]
