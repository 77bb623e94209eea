"""What is run: methods, and models with their tasks in sections of one model and one kind of input. Made without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tokenzoo.bench.local import LocalTask
from tokenzoo.bench.task import Task
from tokenzoo.bench.tasks import builtin_tasks
from tokenzoo.comparison.amounts import Amount
from tokenzoo.comparison.pricing import Target
from tokenzoo.comparison.settings import EMBEDDED, Settings
from tokenzoo.cost import load_hardware
from tokenzoo.cost.conventions import load_convention
from tokenzoo.errors import UserError, unknown
from tokenzoo.lmms.benchmark import Benchmark, benchmark_of
from tokenzoo.lmms.known import PREFIX
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.names import CHECKPOINTS, config_of, shows_videos
from tokenzoo.models.question import Question
from tokenzoo.paths import is_folder
from tokenzoo.zoo.plugins import Zoo, load_zoo

if TYPE_CHECKING:
    from tokenzoo.models.checkpoint import Checkpoint

Kind = Literal["image", "video"]
#: `--model embedded`: each kind of input on the model that is best at it.
EMBEDDED_FOR: dict[str, Kind] = {"embedded:llava": "image", "embedded:onevision": "video"}
GROUPS = ("all", "image", "video")
#: Rows of every comparison: the model as it is, and the baselines that published methods often fail to beat.
ALWAYS = ("none", "random", "pool")

Methods = Sequence[tuple[str, Pipeline]]


@dataclass
class Plan:
    """A comparison before it runs: its settings with everything that they name found."""

    settings: Settings
    zoo: Zoo
    methods: Methods
    targets: list[Target]
    tasks: list[Task]
    sections: list[SectionPlan]

    @property
    def rows(self) -> int:
        """Rows of a section: `none`, and each other method as often as it is set."""
        return 1 + (len(self.methods) - 1) * len(self.settings.amounts or self.settings.retention or [""])

    @property
    def left_out(self) -> list[str]:
        """A note for each kind of task that a model is not asked."""
        return left_out(self.settings, self.tasks, self.sections)


def plan_of(settings: Settings, online: bool = False, models: Models | None = None) -> Plan:
    """Find what the settings name; raises UserError for whatever is wrong. Nothing is loaded, drawn or measured.

    Without `online` a model that is still to be downloaded is taken to see pictures and videos. `models` is where sections get
    theirs from, this process if not given.
    """
    zoo = load_zoo()
    methods = methods_of(settings, zoo)
    check_budgets(settings.amounts, settings.convention)
    targets = [Target.parse(text, settings.convention) for text in settings.price]
    tasks = tasks_of(settings.tasks, zoo, settings.frames)
    sections = plan_sections(settings, tasks, online, models)
    for section in sections:
        for task in section.tasks:
            if isinstance(task, LocalTask):
                for question in task.questions(settings.limit, settings.seed):
                    section.check(question)
    return Plan(settings, zoo, methods, targets, tasks, sections)


def methods_of(settings: Settings, zoo: Zoo) -> list[tuple[str, Pipeline]]:
    """The methods asked for, as written and as built, with the baselines first. Raises UserError for wrong ones."""
    wanted: list[str] = []
    for text in settings.methods:
        wanted += [name for name in zoo.names() if name not in ALWAYS] if text == "all" else [text]
    named = {text.split(":")[0] for text in wanted}
    texts = dict.fromkeys([name for name in ALWAYS if name not in named] + wanted)
    built = [(text, zoo.build(text)) for text in texts]
    return sorted(built, key=lambda item: item[1].name != "none")


def check_budgets(amounts: list[Amount], convention: str) -> None:
    """Raise UserError where a GPU is unknown or the convention defines no times."""
    rules = load_convention(convention)
    for amount in amounts:
        if amount.quantity == "ms":
            load_hardware(amount.hardware)
            if not rules.has_bytes:
                raise UserError(f"Convention '{convention}' defines no time. Use --convention llm-viewer or exact.")


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
        from tokenzoo.models.checkpoint import load

        if name not in self._held:
            self._held.clear()
            options = self._settings
            if options.device == "auto":
                raise UserError("Time and memory are measured on one device: choose --device cuda:0, or another, not 'auto'.")
            self._held[name] = load(name, options.dtype, options.attention, options.device, allow_missing=options.allow_missing)
        return self._held[name]


@dataclass
class SectionPlan:
    """One model on one kind of input, and its tasks. Whether a model on the Hub takes videos is known once it was looked at."""

    title: str
    kind: Kind
    tasks: list[Task]
    takes_videos: bool | None
    models: Models

    def check(self, question: Question) -> None:
        """Raise UserError where a question is about a video, which the model does not take."""
        if question.video != () and self.takes_videos is False:
            raise UserError(
                f"Question '{question.id}' is about a video, which '{self.title}' does not take. Choose another --model."
            )

    @property
    def checkpoint(self) -> Checkpoint:
        """The model and its processor, loaded when they are first needed."""
        return self.models.load(self.title)

    def steps(self, settings: Settings) -> int:
        """Steps of progress for one method."""
        return sum(questions_at_most(task, settings.limit) for task in self.tasks) + settings.rounds * settings.timing


def questions_at_most(task: Task, limit: int) -> int:
    """How many questions a task has, as far as that is known without reading or downloading anything."""
    if isinstance(task, LocalTask):
        return min(limit, len(task))
    if isinstance(task, Benchmark) and task.known is not None:
        return min(limit, task.known.questions)
    return limit


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


def plan_sections(
    settings: Settings, tasks: Sequence[Task], online: bool = True, models: Models | None = None
) -> list[SectionPlan]:
    """Say which models get which tasks, from their configs. Raises UserError where a task has no model, or a model no task."""
    sections: list[SectionPlan] = []
    models = models or LoadedModels(settings)
    for name in settings.model:
        if name == EMBEDDED:
            for model, kind in EMBEDDED_FOR.items():
                if is_shipped(model):
                    sections += _sections(model, tasks, (kind,), models, online)
            continue
        found = _sections(name, tasks, ("image", "video"), models, online)
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
    without = dict.fromkeys(plan.title for plan in plans if plan.title in settings.model and plan.takes_videos is False)
    return notes + [f"{model} takes no videos: {', '.join(videos)} left out." for model in without if videos]


def _sections(model: str, tasks: Sequence[Task], kinds: Sequence[Kind], models: Models, online: bool) -> list[SectionPlan]:
    wanted = [kind for kind in kinds if any(task.modality == kind for task in tasks)]
    if not wanted:
        return []
    config = config_of(model)
    videos = shows_videos(config) if config is not None else _asked_online(model) if online else None
    if videos is False:
        wanted = [kind for kind in wanted if kind != "video"]
    return [SectionPlan(model, kind, [task for task in tasks if task.modality == kind], videos, models) for kind in wanted]


def _asked_online(model: str) -> bool:
    from tokenzoo.models.checkpoint import takes_videos

    return takes_videos(model)
