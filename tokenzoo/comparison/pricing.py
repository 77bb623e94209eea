"""Prices on an architecture and a GPU that are not here: `vicuna-7b@a100`."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.comparison.rows import Price
from tokenzoo.cost import Cost, ModelArchitecture, load_architecture, load_hardware, price, price_trace
from tokenzoo.cost.conventions import load_convention
from tokenzoo.cost.vision import view_grids
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.method.trace import Trace
from tokenzoo.method.workload import Workload

#: Frames of the videos that are priced, as in the tables of AIM.
FRAMES = 32


@dataclass(frozen=True)
class Target:
    """An architecture on a GPU under a convention, with the prompts that are priced there."""

    text: str
    model: ModelArchitecture
    hardware: str
    convention: str

    @classmethod
    def parse(cls, text: str, convention: str) -> Target:
        """Read ARCH@GPU; raises UserError with the choices where one is unknown."""
        architecture, _, hardware = text.partition("@")
        load_convention(convention)
        return cls(text, load_architecture(architecture), load_hardware(hardware).name, convention)

    def workload(self, kind: str) -> Workload:
        """One image with 40 text tokens, or 32 frames with 100; raises UserError where the model's default is unknown."""
        if kind == "video":
            return self.model.video_workload(FRAMES)
        return self.model.image_workload()

    @property
    def times(self) -> str:
        """What to say of the times: some conventions define none."""
        return ", times by the roofline" if load_convention(self.convention).has_bytes else ", which defines no times"

    def takes(self, kind: str) -> bool:
        """Whether the architecture has a default for images or videos."""
        try:
            self.workload(kind)
        except UserError:
            return False
        return True

    def cost(self, kind: str, method: Pipeline | None, trace: Trace | None = None) -> Cost:
        """Price one prefill.

        Where the count depends on the picture, the retention that `trace` recorded here is applied to the target. The vision
        tower is priced at the target's own size. The method's own products are left out, since they depend on the picture too.
        """
        workload = self.workload(kind)
        options = {"convention": self.convention, "hardware": self.hardware}
        try:
            return price(self.model, workload, method, **options)
        except DataDependentError:
            if trace is None:
                raise
            recorded = sum(source.source.tokens for source in trace.samples[0].sources)
            scale = workload.visual_tokens / recorded
            return price_trace(
                trace,
                self.model,
                sample=0,
                scale=scale,
                text_tokens=workload.text_tokens,
                grids=view_grids(workload),
                **options,
            )

    def price(self, kind: str, method: Pipeline, trace: Trace | None = None) -> Price:
        """The price of a method as a row shows it."""
        cost, full = self.cost(kind, method, trace), self.cost(kind, None)
        return Price(
            target=self.text,
            convention=self.convention,
            tflops=cost.flops / 1e12,
            share=cost.flops / full.flops,
            prefill_ms=None if cost.seconds is None else cost.seconds * 1000,
            kv_bytes=cost.kv_bytes,
            visual_tokens=cost.mean_visual_tokens,
            basis="schedule" if method.fixed_schedule else "measured retention, own products left out",
        )
