"""Cells in pieces: joined they are the cell of one process, and the store forgets them. No cluster is needed for that."""

from __future__ import annotations

import sys
from collections import deque

import pytest

from tokenzoo import UserError, cli
from tokenzoo.comparison.cluster import Cell, Cluster, Hand, Piece
from tokenzoo.comparison.compare import accuracy_work
from tokenzoo.comparison.identity import Questions
from tokenzoo.comparison.plan import tasks_of
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store
from tokenzoo.comparison.work import AccuracyWork, TimingWork, piece_identity
from tokenzoo.comparison.worker import Failure, Place
from tokenzoo.models.checkpoint import load
from tokenzoo.zoo.plugins import load_zoo


@pytest.fixture(scope="module")
def whole():
    checkpoint = load("embedded:llava")
    task = tasks_of(["attribute"], load_zoo())[0]
    asked = Questions(task.questions(7, 0), task)
    settings = Settings(methods="prumerge", batch_size=2)
    return checkpoint, accuracy_work(checkpoint, load_zoo().build("prumerge"), "attribute", asked, settings)


def silent(steps):
    return None


@pytest.mark.parametrize(("size", "lengths"), [(1, [2, 2, 2, 1]), (5, [4, 3]), (100, [7])])
def test_pieces_join_to_the_whole_and_are_cut_between_batches(whole, size, lengths):
    checkpoint, work = whole
    pieces = work.pieces(checkpoint, size)
    assert [len(piece.questions) for piece in pieces] == lengths == [piece.steps for piece in pieces]
    assert [question for piece in pieces for question in piece.questions] == list(work.questions)
    assert work.join([piece.do(checkpoint, silent) for piece in pieces]) == work.join([work.do(checkpoint, silent)])


def test_the_store_forgets_the_pieces_of_one_cell_only(whole, tmp_path):
    identity = whole[1].identity
    other = {**identity, "batch_size": 3}
    with Store(tmp_path / "results.sqlite") as store:
        for one in (identity, other):
            store.put(piece_identity(one, 0, 2), {})
            store.put(piece_identity(one, 2, 4), {})
        store.put(identity, {})
        store.drop_pieces(identity)
        left = [(cell.kind, cell.identity["batch_size"]) for cell in store.cells()]
    assert sorted(left) == [("accuracy", 2), ("piece", 3), ("piece", 3)]


def test_what_differs_from_the_plan_is_refused_where_it_would_run(whole):
    checkpoint, work = whole
    work.check(checkpoint)
    changed = AccuracyWork(work.model, {**work.identity, "weights": "other", "versions": {}}, method=work.method)
    with pytest.raises(UserError, match="Other weights, versions on this machine than where 'prumerge' was planned"):
        changed.check(checkpoint)


def test_a_failure_reads_as_the_error_that_it_was():
    try:
        raise ZeroDivisionError("no token left")
    except ZeroDivisionError as error:
        back = Failure.of(error).error()
    assert (type(back).__name__, str(back)) == ("ZeroDivisionError", "no token left")
    assert "raise ZeroDivisionError" in str(back.__cause__)
    assert isinstance(Failure.of(UserError("mend it")).error(), UserError)


# --- who gets what --------------------------------------------------------------------------------------------------


def hand(node, machine="A", piece=None, model=""):
    return Hand(None, Place(node, node, 1, machine), model, piece)


def piece(model="m", machine=None):
    if machine is None:
        work = AccuracyWork(model, {"method": ""})
    else:
        work = TimingWork(model, {"method": "", "environment": {"machine": machine}})
    return Piece(Cell(work, [None]), 0, work, {})


def cluster(hands, waiting):
    made = Cluster()
    made.hands, made.waiting = dict(enumerate(hands)), deque(waiting)
    return made


def test_a_worker_gets_work_of_the_model_that_it_holds():
    first, second = piece("a"), piece("b")
    idle = hand("n", model="b")
    assert cluster([idle], [first, second])._next_for(idle) is second
    assert cluster([idle], [first])._next_for(idle) is first


def test_timing_waits_until_its_machine_is_idle_and_keeps_other_work_from_it():
    timing, other = piece(machine="A"), piece()
    idle, elsewhere, unlike = hand("n"), hand("o"), hand("p", machine="B")
    busy = [idle, hand("n", piece=piece()), elsewhere, unlike]
    assert cluster(busy, [other, timing])._next_for(idle) is None
    assert cluster(busy, [other, timing])._next_for(unlike) is other
    assert cluster(busy, [other, timing])._next_for(elsewhere) is timing
    running = [idle, hand("n", piece=timing)]
    assert cluster(running, [other])._next_for(idle) is None


# --- wrong use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus-per-worker", "1"], "--gpus-per-worker is for Ray workers. Pass --ray"),
        (["--ray"], "Ray is not installed. Run 'pip install tokenzoo[ray]'."),
        (["--tasks", "lmms:pope", "--model", "embedded:llava"], "Run 'pip install tokenzoo[lmms]'."),
        (["--tasks", "lmms:nobody_knows"], "Run 'pip install tokenzoo[lmms]'."),
    ],
)
def test_wrong_use_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    assert cli.run(["compare", "--methods", "aim", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said
