"""A comparison on as many machines as there are: a pool of Ray workers, each holding one model.

The driver alone reads and writes the store: it keeps each piece the moment it arrives, joins a cell from its pieces, and
gives the pieces of a worker that died to another. A driver that is killed and started again asks for what is missing only.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenzoo.comparison.plan import Models
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store, cell_key
from tokenzoo.comparison.work import Advance, Look, Work, WorkersLostError, piece_identity
from tokenzoo.comparison.worker import Failure, Outcome, Place, Worker
from tokenzoo.errors import UserError
from tokenzoo.models.checkpoint import Checkpoint, outline
from tokenzoo.zoo.plugins import ALLOWLIST, configured

#: Questions in a piece: seconds on a small model, about a minute on one of 7B, so that little is lost with a worker.
PIECE = 256
#: How often a piece is tried whose workers die: it may be what kills them.
TRIES = 3
#: What every worker's environment gets from the driver's: it decides which methods exist.
VARIABLES = (ALLOWLIST, "TOKENZOO_REGISTRY")


@dataclass
class Cell:
    """A cell on its way: its work, the results of the pieces that are done (None: missing), and what they made in the end."""

    work: Work
    results: list[dict[str, Any] | None]
    whole: dict[str, Any] | None = None
    failure: Failure | None = None


@dataclass
class Piece:
    """A part of a cell that a worker does."""

    cell: Cell
    index: int
    work: Work
    identity: dict[str, Any]
    tries: int = 0


@dataclass
class Hand:
    """A worker as the driver sees it; `place` is None until it has started."""

    actor: Any
    place: Place | None = None
    model: str = ""
    piece: Piece | None = None


@dataclass
class Done:
    """What was done on one machine."""

    host: str
    machine: str
    workers: set[int] = field(default_factory=set)
    pieces: int = 0
    seconds: float = 0.0
    died: int = 0


class Cluster:
    """Workers on the machines of a Ray cluster. Use it in a `with` block, and hand it to one `compare`.

    :param address: Ray's own: "auto", "HOST:6379", "ray://HOST:10001"; "local" starts one on this machine and ends it; None takes
        a running one, else does as "local"
    :param gpus_per_worker: 1 where the cluster has GPUs; 0.5 lets two workers share one; 0 runs on processor cores
    :param piece: questions in a piece
    :raises UserError: where Ray is missing, unreachable, or has no such GPUs
    """

    def __init__(self, address: str | None = None, gpus_per_worker: float | None = None, piece: int = PIECE) -> None:
        self.address, self.gpus_per_worker, self.piece = address, gpus_per_worker, piece
        self.hands: dict[Any, Hand] = {}
        self.cells: dict[str, Cell] = {}
        self.waiting: deque[Piece] = deque()
        self.done: dict[str, Done] = {}
        self.again = 0

    def __enter__(self) -> Cluster:
        self.ray = _connected(self.address)
        try:
            self.options = self._options()
        except BaseException:
            self.ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self.hands.values():
            self.ray.kill(hand.actor)
        self.ray.shutdown()

    def open(self, settings: Settings, store: Store | None, advance: Advance, fresh: bool) -> Models:
        """Start the workers; return where the driver learns of the models that they load."""
        self.settings, self.store, self.advance, self.fresh = settings, store, advance, fresh
        plugins, registries = configured()
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        made = self.ray.remote(Worker).options(**self.options)
        files = [tuple(path.resolve() for path in paths) for paths in (plugins, registries)]
        self._make = lambda: made.remote(settings.model_dump(exclude_unset=True), *files, variables)
        for _ in range(self.size):
            self._hire()
        return OutlinedModels(self)

    def submit(self, work: Work, checkpoint: Checkpoint) -> None:
        """Queue a cell's pieces, but for those that the store has; once however often it is asked for."""
        if _key(work) in self.cells:
            return
        pieces = work.pieces(checkpoint, self.piece) if work.identity else [work]
        cell = self.cells[_key(work)] = Cell(work, [None] * len(pieces))
        start = 0
        for index, part in enumerate(pieces):
            identity = piece_identity(work.identity, start, start + part.steps) if len(pieces) > 1 else {}
            start += part.steps
            known = self.store.get(identity) if identity and self.store is not None and not self.fresh else None
            if known is not None:
                cell.results[index] = known
                self.advance(part.steps)
            else:
                self.waiting.append(Piece(cell, index, part, identity))
        if None not in cell.results:
            self._finish(cell)
        self._assign()

    def has(self, work: Work) -> bool:
        """Whether a cell was submitted and not asked for yet."""
        return _key(work) in self.cells

    def result(self, work: Work, checkpoint: Checkpoint) -> dict[str, Any]:
        """Wait for a cell and return it; raises what its work raised. Whatever else arrives meanwhile is kept."""
        self.submit(work, checkpoint)
        cell = self.cells[_key(work)]
        while cell.whole is None and cell.failure is None:
            self._wait(cell)
        del self.cells[_key(work)]
        if cell.whole is None:
            assert cell.failure is not None
            raise cell.failure.error()
        return cell.whole

    def look(self, model: str) -> dict[str, Any]:
        """What a worker that has the model tells of it."""
        return self.result(Look(model, {}), Checkpoint(model, None, None))

    def summary(self) -> list[str]:
        """A line for each machine that did something, and one on what had to be done again."""
        lines = [
            f"{one.host} ({one.machine}): {_count(len(one.workers), 'worker')}, {_count(one.pieces, 'piece')} of work, "
            f"{one.seconds:.0f} s busy{f', {one.died} died' if one.died else ''}"
            for one in sorted(self.done.values(), key=lambda one: one.host)
        ]
        return [*lines, *([f"{_count(self.again, 'piece')} of dead workers done again"] if self.again else [])]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        """What each worker takes of a machine, and how many fit (`size`)."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in nodes)
        share = self.gpus_per_worker if self.gpus_per_worker is not None else min(gpus, 1)
        if not 0 <= share <= 1:
            raise UserError(f"--gpus-per-worker {share:g}: a model is loaded on one GPU. Choose 1, a share such as 0.5, or 0.")
        if share and gpus < share:
            raise UserError(f"This Ray cluster has {gpus:g} GPUs, a worker was to have {share:g}. Pass --gpus-per-worker 0.")
        if share:
            self.size = sum(int(min(node.get("GPU", 0) / share, node.get("CPU", 0))) for node in nodes)
        else:
            self.size = sum(int(node.get("CPU", 0)) for node in nodes)
        if not self.size:
            raise UserError("This Ray cluster has no processor core left for a worker. Start its nodes with --num-cpus.")
        return {"num_cpus": 1, "num_gpus": share}

    def _hire(self) -> None:
        actor = self._make()
        self.hands[actor.place.remote()] = Hand(actor)

    def _assign(self) -> None:
        """Give pieces to idle workers, first those of the model that a worker has."""
        for reference, hand in list(self._idle()):
            piece = self._next_for(hand)
            if piece is None:
                continue
            self.waiting.remove(piece)
            hand.piece, hand.model = piece, piece.work.model
            self.hands[hand.actor.do.remote(piece.work)] = self.hands.pop(reference)

    def _idle(self) -> Iterator[tuple[Any, Hand]]:
        return ((reference, hand) for reference, hand in self.hands.items() if hand.place and hand.piece is None)

    def _next_for(self, hand: Hand) -> Piece | None:
        """The next piece for a worker: work that must be alone waits for its machine, and keeps other work from it."""
        assert hand.place is not None
        busy = [one for one in self.hands.values() if one.piece and one.place and one.place.node == hand.place.node]
        if any(one.piece is not None and one.piece.work.alone for one in busy):
            return None
        for piece in self.waiting:
            if piece.work.alone and piece.work.identity["environment"]["machine"] == hand.place.machine:
                return None if busy else piece
        open_to_all = [piece for piece in self.waiting if not piece.work.alone]
        return next((piece for piece in open_to_all if piece.work.model == hand.model), next(iter(open_to_all), None))

    def _wait(self, cell: Cell) -> None:
        """Wait until something happened, and see to it."""
        busy = [reference for reference, hand in self.hands.items() if hand.piece or not hand.place]
        if not busy:
            machine = cell.work.identity.get("environment", {}).get("machine", "")
            raise WorkersLostError(f"No worker is left on a machine with '{machine}' to time on. Run the same command again.")
        ready, _ = self.ray.wait(busy, num_returns=1)
        for reference in ready:
            self._arrived(reference, self.hands.pop(reference))
        self._assign()

    def _arrived(self, reference: Any, hand: Hand) -> None:
        try:
            told = self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            self._died(hand, error)
            return
        except self.ray.exceptions.RayError as error:
            raise WorkersLostError(f"A worker failed: {_last_line(error)}") from error
        if isinstance(told, Place):
            hand.place = told
            self._done_at(told).workers.add(told.pid)
        else:
            self._take(hand, told)
            hand.piece = None
        self.hands[reference] = hand

    def _take(self, hand: Hand, outcome: Outcome) -> None:
        """Keep what a worker brought: the piece at once, and the cell where it was the last one."""
        piece = hand.piece
        assert piece is not None and hand.place is not None
        here = self._done_at(hand.place)
        here.pieces += 1
        here.seconds += outcome.seconds
        cell = piece.cell
        if outcome.failure is not None:
            cell.failure = cell.failure or outcome.failure
            self.waiting = deque(one for one in self.waiting if one.cell is not cell)
            return
        cell.results[piece.index] = outcome.result
        self.advance(piece.work.steps)
        if None not in cell.results:
            self._finish(cell)
        elif self.store is not None and piece.identity and outcome.result is not None:
            self.store.put(piece.identity, outcome.result)

    def _finish(self, cell: Cell) -> None:
        """Make the whole of the pieces, write it, and drop them from the store."""
        cell.whole = cell.work.join([result for result in cell.results if result is not None])
        if self.store is not None and cell.work.identity:
            self.store.put(cell.work.identity, cell.whole)
            if len(cell.results) > 1:
                self.store.drop_pieces(cell.work.identity)

    def _died(self, hand: Hand, error: Exception) -> None:
        """Give a dead worker's piece to another, and hire one in its place."""
        if hand.place is None:
            raise WorkersLostError(
                f"A worker does not start: {_last_line(error)} Install tokenzoo and the plugins on every machine of the cluster."
            )
        self._done_at(hand.place).died += 1
        if hand.piece is not None:
            piece = hand.piece
            piece.tries += 1
            if piece.tries < TRIES:
                self.again += 1
                self.waiting.appendleft(piece)
            else:
                message = f"its workers died {TRIES} times, last on {hand.place.host}"
                piece.cell.failure = Failure("", message, str(error), mendable=True)
                self.waiting = deque(one for one in self.waiting if one.cell is not piece.cell)
        self._hire()

    def _done_at(self, place: Place) -> Done:
        return self.done.setdefault(place.node, Done(place.host, place.machine))


class OutlinedModels:
    """Models as the driver has them: without weights, with what a worker told of them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._held: dict[str, Checkpoint] = {}

    def load(self, name: str) -> Checkpoint:
        if name not in self._held:
            self._held[name] = outline(name, self._cluster.look(name))
        return self._held[name]


def _connected(address: str | None) -> Any:
    """Ray, connected to a cluster."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError("Ray is not installed. Run 'pip install tokenzoo[ray]'.") from None
    if ray.is_initialized():
        raise UserError("This process is connected to a Ray cluster already. Run 'ray.shutdown()' first.")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"Cannot reach the Ray cluster '{address or 'auto'}': {_first_line(error)}") from None
    return ray


def _key(work: Work) -> str:
    return cell_key(work.identity or {"look": work.model})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
