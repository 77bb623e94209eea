"""What is run: models, their tasks, in sections of one model and one kind of input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenzoo.bench.local import LocalTask
from tokenzoo.bench.task import Task
from tokenzoo.bench.tasks import builtin_tasks
from tokenzoo.comparison.settings import EMBEDDED, Settings
from tokenzoo.errors import UserError, unknown
from tokenzoo.models import CHECKPOINTS, Checkpoint, load
from tokenzoo.plugins import Zoo

Kind = Literal["image", "video"]
#: `--model embedded`: each kind of input on the model that is best at it.
EMBEDDED_FOR: dict[str, Kind] = {"embedded:llava": "image", "embedded:onevision": "video"}
GROUPS = ("all", "image", "video")


@dataclass
class SectionPlan:
    """One model on one kind of input, and its tasks."""

    title: str
    checkpoint: Checkpoint
    kind: Kind
    tasks: list[Task]

    def steps(self, settings: Settings) -> int:
        """Steps of progress for one method."""
        return len(self.tasks) * settings.limit + settings.rounds * settings.timing


def tasks_of(names: Sequence[str], zoo: Zoo) -> list[Task]:
    """The tasks of these names: a task, `image`, `video` or `all` built-in ones, or a folder with questions.jsonl."""
    known: dict[str, Task] = {task.name: task for task in (*builtin_tasks(), *zoo.tasks())}
    chosen: dict[str, Task] = {}
    for name in names:
        if name in GROUPS:
            found = [task for task in known.values() if name in ("all", task.modality)]
        elif name in known:
            found = [known[name]]
        elif Path(name).is_dir():
            found = [LocalTask(name)]
        elif "/" in name or "\\" in name:
            raise UserError(f"No task folder '{name}'. Give a folder with a questions.jsonl, or: {', '.join(known)}.")
        else:
            raise unknown("task", name, [*known, *GROUPS], "tokenzoo compare --help")
        chosen.update((task.name, task) for task in found)
    return list(chosen.values())


def plan_sections(settings: Settings, tasks: Sequence[Task]) -> list[SectionPlan]:
    """Load the models and say which tasks each one gets. Raises UserError where a task has no model, or a model no task."""
    sections: list[SectionPlan] = []
    for name in settings.model:
        if name == EMBEDDED:
            for model, kind in EMBEDDED_FOR.items():
                if is_shipped(model):
                    sections += _sections(model, tasks, (kind,))
            continue
        found = _sections(name, tasks, ("image", "video"))
        if not found:
            raise UserError(f"'{name}' takes no videos, and only video tasks were asked for. Choose other --tasks.")
        sections += found
    if not sections:
        raise UserError("No embedded model of this installation takes these tasks. Choose other --tasks, or a --model.")
    return sections


def is_shipped(model: str) -> bool:
    """Whether an embedded model is part of this installation (a source tree may lack one that is still being trained)."""
    return (CHECKPOINTS / model.partition(":")[2] / "config.json").is_file()


def left_out(settings: Settings, tasks: Sequence[Task]) -> list[str]:
    """A note for each kind of task that `--model embedded` left out for want of its model."""
    if EMBEDDED not in settings.model:
        return []
    return [
        f"No {kind} tasks: {model} is not part of this installation."
        for model, kind in EMBEDDED_FOR.items()
        if not is_shipped(model) and any(task.modality == kind for task in tasks)
    ]


def _sections(model: str, tasks: Sequence[Task], kinds: Sequence[Kind]) -> list[SectionPlan]:
    wanted = [kind for kind in kinds if any(task.modality == kind for task in tasks)]
    if not wanted:
        return []
    checkpoint = load(model)
    if getattr(checkpoint.model.config, "video_token_id", None) is None:
        wanted = [kind for kind in wanted if kind != "video"]
    return [SectionPlan(model, checkpoint, kind, [task for task in tasks if task.modality == kind]) for kind in wanted]
