"""The process that does work for a comparison on another machine: it holds one model, and tells how each piece ended."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenzoo.bench.timing import MethodError, machine_name
from tokenzoo.comparison.plan import LoadedModels
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.work import Work
from tokenzoo.errors import FailedError, UnsupportedError, UserError
from tokenzoo.zoo.errors import PluginError, kept_from_ending
from tokenzoo.zoo.plugins import configure


@dataclass(frozen=True)
class Failure:
    """An error as text, since its class may not exist where it is reported. `method` is the one that timing blames."""

    kind: str
    message: str
    details: str
    refused: bool = False
    mendable: bool = False
    method: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        cause = error.__cause__ if isinstance(error, MethodError) and error.__cause__ else error
        return cls(
            kind=type(cause).__name__,
            message=str(cause),
            details=traceback.format_exc(),
            refused=isinstance(cause, UnsupportedError),
            mendable=isinstance(cause, (UserError, PluginError)),
            method=error.method if isinstance(error, MethodError) else "",
        )

    def error(self) -> Exception:
        """An exception that reads as the one that was raised there; its cause is the traceback there."""
        known = UnsupportedError if self.refused else FailedError if self.mendable else type(self.kind, (Exception,), {})
        raised = known(self.message)
        raised.__cause__ = RemoteTraceback(self.details)
        if self.method:
            blamed = MethodError(self.method)
            blamed.__cause__ = raised
            return blamed
        return raised


class RemoteTraceback(Exception):
    """The traceback of an error in another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended: its result, or its failure; and how long it took."""

    result: dict[str, Any] | None
    failure: Failure | None
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where a worker runs: host name, Ray's node, process, and the name of its GPU or processor."""

    host: str
    node: str
    pid: int
    machine: str


class Worker:
    """A Ray actor's class. Raises, where it is made, what makes all work impossible there."""

    def __init__(self, settings: dict[str, Any], plugins: tuple[Path, ...], registries: tuple[Path, ...],
                 variables: Mapping[str, str]) -> None:  # fmt: skip
        os.environ.update(variables)
        configure(plugins, registries)
        self.settings = Settings.model_validate(settings)
        self.models = LoadedModels(self.settings)

    def place(self) -> Place:
        import ray

        device = torch.device(self.settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return Place(platform.node(), ray.get_runtime_context().get_node_id(), os.getpid(), machine_name(device))

    def do(self, work: Work) -> Outcome:
        """Do a piece of work; whatever it raises comes back as a Failure."""
        began = time.monotonic()
        result, failure = None, None
        try:
            with kept_from_ending():
                checkpoint = self.models.load(work.model)
                work.check(checkpoint)
                result = work.do(checkpoint, lambda steps: None)
        except Exception as error:
            failure = Failure.of(error)
        return Outcome(result, failure, time.monotonic() - began)
