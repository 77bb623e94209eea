"""`tokenzoo show-kept`: the picture with dropped patches greyed, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenzoo.commands.options import FRAMES_SHOWN
from tokenzoo.errors import UserError


@click.command("show-kept")
@click.option("--method", required=True, metavar="METHOD", help="A method as in 'tokenzoo list': aim, fastv:K=3, a+b.")
@click.option("--image", type=click.Path(path_type=Path), help="A picture.")
@click.option("--video", type=click.Path(path_type=Path), help="A video file, or a folder of frames.")
@click.option("--frames", default=8, show_default=True, type=FRAMES_SHOWN, help="Frames taken from the video.")
@click.option("--question", default="what color is the circle?", show_default=True, help="Asked about it: scores depend on it.")
@click.option("--model", metavar="MODEL", help="embedded:llava (images), embedded:onevision (videos), a directory, a Hub id.")
@click.option("--out", default="kept.png", show_default=True, type=click.Path(path_type=Path), help="A .png, .pdf or .svg.")
def command(
    method: str, image: Path | None, video: Path | None, frames: int, question: str, model: str | None, out: Path
) -> None:
    """Draw which patches a method keeps in each stage of layers: dropped ones are struck through, merged ones pale."""
    if (image is None) == (video is None):
        raise UserError("Give one picture to look at: --image FILE or --video FILE.")
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"'{out}' is no .png, .pdf or .svg. Choose another --out.")
    from tokenzoo.models.media import read_image, read_video
    from tokenzoo.zoo.plugins import load_zoo

    pipeline = load_zoo().build(method)
    pictures = (read_image(image),) if image is not None else ()
    shown = read_video(video, frames) if video is not None else ()

    import torch

    from tokenzoo.application import apply
    from tokenzoo.models.checkpoint import knows, load
    from tokenzoo.models.question import Question
    from tokenzoo.report.kept import kept_figure, stage_pictures
    from tokenzoo.report.plots import save

    checkpoint = load(model or ("embedded:llava" if video is None else "embedded:onevision"))
    if knows(checkpoint.name):
        click.echo(f"Note: {knows(checkpoint.name)}", err=True)
    asked = Question("command line", question, pictures, shown)
    checkpoint = checkpoint.scaled(pipeline.picture_scale)
    inputs = checkpoint.inputs([asked])
    with apply(checkpoint.model, pipeline, **checkpoint.words([asked])) as run, torch.inference_mode():
        checkpoint.model(**inputs, logits_to_keep=1)
    trace = run.trace
    views = views_of(checkpoint, inputs, pictures or shown, len(trace.samples[0].sources[0].grids))
    save(kept_figure(views, trace, f"{pipeline} on {checkpoint.name}"), out)
    for stage in stage_pictures(trace):
        click.echo(stage.title)
    click.echo(f"Written to {out}")


def views_of(checkpoint: Any, inputs: dict[str, Any], originals: Any, count: int) -> list[Any]:
    """The pictures as the model sees them (cropped and scaled, colours restored); the originals where that is unclear."""
    import numpy as np

    processor: Any = checkpoint.image_processor or getattr(checkpoint.processor, "image_processor", None)
    pixels = inputs["pixel_values_videos"] if "pixel_values_videos" in inputs else inputs.get("pixel_values")
    if pixels is None or pixels.ndim < 4 or not getattr(processor, "image_mean", None):
        return _originals(originals, count)
    seen = pixels.float().cpu().flatten(0, -4).permute(0, 2, 3, 1).numpy()
    colours = np.clip((seen * np.array(processor.image_std) + np.array(processor.image_mean)) * 255, 0, 255)
    if len(seen) == count and ("pixel_values_videos" in inputs or count == 1):
        return list(colours.astype(np.uint8))
    return _originals(originals, count)


def _originals(pictures: Any, count: int) -> list[Any]:
    """One picture per view: frames as they are (repeated where a view is several), an image for each of its views."""
    return [pictures[min(index * len(pictures) // count, len(pictures) - 1)] for index in range(count)]
