"""What is run: models, their tasks, in sections of one model and one kind of input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tokenzoo.bench.local import LocalTask
from tokenzoo.bench.task import Task
from tokenzoo.bench.tasks import builtin_tasks
from tokenzoo.comparison.settings import EMBEDDED, Settings
from tokenzoo.errors import UserError, unknown
from tokenzoo.lmms.benchmark import benchmark_of
from tokenzoo.lmms.known import PREFIX
from tokenzoo.models.checkpoint import CHECKPOINTS, Checkpoint, load, takes_videos
from tokenzoo.paths import is_folder
from tokenzoo.zoo.plugins import Zoo

Kind = Literal["image", "video"]
#: `--model embedded`: each kind of input on the model that is best at it.
EMBEDDED_FOR: dict[str, Kind] = {"embedded:llava": "image", "embedded:onevision": "video"}
GROUPS = ("all", "image", "video")


class Models(Protocol):
    """Where a comparison gets its models from."""

    def load(self, name: str) -> Checkpoint:
        """Return a model; raises UserError where it cannot be loaded."""


class LoadedModels:
    """Loads models as they are asked for and holds one at a time: two may not fit."""

    def __init__(self, settings: Settings) -> None:
        self._held: dict[str, Checkpoint] = {}
        self._settings = settings

    def load(self, name: str) -> Checkpoint:
        if name not in self._held:
            self._held.clear()
            options = self._settings
            self._held[name] = load(name, options.dtype, options.attention, options.device, allow_missing=options.allow_missing)
        return self._held[name]


@dataclass
class SectionPlan:
    """One model on one kind of input, and its tasks."""

    title: str
    kind: Kind
    tasks: list[Task]
    takes_videos: bool
    models: Models

    @property
    def checkpoint(self) -> Checkpoint:
        """The model and its processor, loaded when they are first needed."""
        return self.models.load(self.title)

    def steps(self, settings: Settings) -> int:
        """Steps of progress for one method."""
        return len(self.tasks) * settings.limit + settings.rounds * settings.timing


def tasks_of(names: Sequence[str], zoo: Zoo, frames: int = 8) -> list[Task]:
    """The tasks of these names: a task, `image`, `video` or `all` built-in ones, a folder with questions.jsonl, or a
    benchmark of lmms-eval (`lmms:pope`)."""
    known: dict[str, Task] = {task.name: task for task in (*builtin_tasks(), *zoo.tasks())}
    chosen: dict[str, Task] = {}
    for name in names:
        if name.startswith(PREFIX):
            found: list[Task] = [benchmark_of(name, frames)]
        elif name in GROUPS:
            found = [task for task in known.values() if name in ("all", task.modality)]
        elif name in known:
            found = [known[name]]
        elif is_folder(name):
            found = [LocalTask(name, frames)]
        elif "/" in name or "\\" in name:
            raise UserError(f"No task folder '{name}'. Give a folder with a questions.jsonl, or: {', '.join(known)}.")
        else:
            raise unknown("task", name, [*known, *GROUPS], "tokenzoo compare --help")
        for task in found:
            if chosen.setdefault(task.name, task) is not task or (known.get(task.name, task) is not task):
                raise UserError(f"Two tasks are called '{task.name}' (one is '{name}'). Rename a folder.")
    return list(chosen.values())


def plan_sections(settings: Settings, tasks: Sequence[Task], models: Models | None = None) -> list[SectionPlan]:
    """Say which models get which tasks, from their configs. Raises UserError where a task has no model, or a model no task."""
    sections: list[SectionPlan] = []
    models = models or LoadedModels(settings)
    for name in settings.model:
        if name == EMBEDDED:
            for model, kind in EMBEDDED_FOR.items():
                if is_shipped(model):
                    sections += _sections(model, tasks, (kind,), models)
            continue
        found = _sections(name, tasks, ("image", "video"), models)
        if not found:
            raise UserError(f"'{name}' takes no videos, and only video tasks were asked for. Choose other --tasks.")
        sections += found
    if not sections:
        raise UserError("No embedded model of this installation takes these tasks. Choose other --tasks, or a --model.")
    return sections


def is_shipped(model: str) -> bool:
    """Whether an embedded model is part of this installation (a source tree may lack one that is still being trained)."""
    return (CHECKPOINTS / model.partition(":")[2] / "config.json").is_file()


def left_out(settings: Settings, tasks: Sequence[Task], plans: Sequence[SectionPlan]) -> list[str]:
    """A note for each kind of task that a model was not asked."""
    notes = []
    if EMBEDDED in settings.model:
        notes = [
            f"No {kind} tasks: {model} is not part of this installation."
            for model, kind in EMBEDDED_FOR.items()
            if not is_shipped(model) and any(task.modality == kind for task in tasks)
        ]
    videos = [task.name for task in tasks if task.modality == "video"]
    without = dict.fromkeys(plan.title for plan in plans if plan.title in settings.model and not plan.takes_videos)
    return notes + [f"{model} takes no videos: {', '.join(videos)} left out." for model in without if videos]


def _sections(model: str, tasks: Sequence[Task], kinds: Sequence[Kind], models: Models) -> list[SectionPlan]:
    wanted = [kind for kind in kinds if any(task.modality == kind for task in tasks)]
    if not wanted:
        return []
    videos = takes_videos(model)
    if not videos:
        wanted = [kind for kind in wanted if kind != "video"]
    return [SectionPlan(model, kind, [task for task in tasks if task.modality == kind], videos, models) for kind in wanted]
