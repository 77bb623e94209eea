"""Built-in tasks: deterministic, held out, unbiased, and scored as by hand."""

from collections import Counter

import numpy as np
import pytest

from tokenzoo.bench.image_questions import IMAGE_QUESTIONS
from tokenzoo.bench.scenes import sample_scene
from tokenzoo.bench.task import Prediction, score
from tokenzoo.bench.tasks import HELD_OUT, TRAINING, builtin_tasks, task
from tokenzoo.bench.video_questions import VIDEO_QUESTIONS
from tokenzoo.bench.video_scenes import sample_video
from tokenzoo.bench.vocabulary import WORDS
from tokenzoo.errors import UserError
from tokenzoo.training.data import SEGMENT

TASKS = builtin_tasks()
NAMES = [one.name for one in TASKS]


def test_the_tasks_that_ship():
    assert NAMES == ["attribute", "relation", "existence", "counting", "reading", "order", "when", "change"]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_questions(name):
    first, second = (list(task(name).questions(6, seed=3)) for _ in range(2))
    assert first == second
    assert [question.id for question in first] == [f"{name}/3/{index}" for index in range(6)]
    other = list(task(name).questions(6, seed=4))
    assert [one.prompt for one in first] != [one.prompt for one in other] or [one.answer for one in first] != [
        one.answer for one in other
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_question_stays_the_same_when_more_are_asked(name):
    assert list(task(name).questions(3, seed=0)) == list(task(name).questions(5, seed=0))[:3]


@pytest.mark.parametrize("one", TASKS, ids=NAMES)
def test_questions_have_an_allowed_answer_and_the_right_medium(one):
    for question in one.questions(20, seed=0):
        assert question.answer in question.choices
        assert len(question.images) == (1 if one.modality == "image" else 0)
        assert len(question.video) == (8 if one.modality == "video" else 0)


def test_training_and_held_out_seeds_are_disjoint():
    assert TRAINING != HELD_OUT
    training = {sample_scene(np.random.default_rng([TRAINING, 0, 0])).seed}
    held_out = {sample_scene(np.random.default_rng([HELD_OUT, 0, index])).seed for index in range(200)}
    assert not training & held_out


def test_every_count_is_as_frequent_as_any_other():
    answers = Counter(question.answer for question in task("counting").questions(25, seed=0))
    assert set(answers.values()) == {5}


def test_existence_is_balanced():
    answers = Counter(question.answer for question in task("existence").questions(300, seed=0))
    assert 0.42 < answers["yes"] / 300 < 0.58


def test_every_question_fits_the_vocabulary_and_the_packing():
    rng = np.random.default_rng(0)
    for functions, sample in ((IMAGE_QUESTIONS, sample_scene), (VIDEO_QUESTIONS, sample_video)):
        for _ in range(20):
            shown = sample(rng)
            for function in functions:
                asked = function(shown, rng)
                if asked is None:
                    continue
                prompt, choices, answer, _ = asked
                words = prompt.rstrip("?").split()
                assert set(words) <= set(WORDS) and len(words) + 2 <= SEGMENT, "with assistant and the answer"
                assert answer in choices and set(choices) <= set(WORDS)


def test_unknown_task():
    with pytest.raises(UserError, match=r"Unknown task 'atribute'\. Did you mean 'attribute'\?"):
        task("atribute")


def test_score_by_hand():
    """8 of 10: the Wilson interval is (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) = 0.4902, 0.9433."""
    result = score([Prediction(str(i), "a", i < 8) for i in range(10)])
    assert result.accuracy == 0.8 and result.count == 10 and result.f1 is None
    assert result.low == pytest.approx(0.4902, abs=1e-4) and result.high == pytest.approx(0.9433, abs=1e-4)


def test_f1_of_yes_by_hand():
    """Said yes 3 times, 2 of them right, one yes missed: precision 2/3, recall 2/3, F1 2/3."""
    said = [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    result = score([Prediction(str(i), a, a == e, e) for i, (a, e) in enumerate(said)], f1=True)
    assert result.f1 == pytest.approx(2 / 3) and result.accuracy == 0.6


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no predictions"):
        score([])
