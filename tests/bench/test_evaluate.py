"""How answers are read: chosen by the first token that tells choices apart, or generated; batches of one sort."""

from __future__ import annotations

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from tokenzoo.bench.evaluate import _choice_tokens, batches, predict
from tokenzoo.bench.task import Prediction, score
from tokenzoo.models.checkpoint import Checkpoint, load
from tokenzoo.models.question import Question

GREY = Image.new("RGB", (96, 96), "grey")


def question(name: str, *choices: str, images: int = 1) -> Question:
    return Question(name, "what color is the circle?", (GREY,) * images, (), choices, choices[0] if choices else "red")


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return load("embedded:llava")


def llama_like() -> PreTrainedTokenizerFast:
    """A tokenizer that makes a token of a leading blank, as Llama's does."""
    pieces = [("<unk>", 0.0), ("▁", -9.0), ("▁red", -1.0), ("▁blue", -1.0), *((letter, -20.0) for letter in "redblu")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    from tokenizers import decoders

    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_leading_blank_that_is_a_token_is_no_choice() -> None:
    tokenizer = llama_like()
    assert tokenizer.encode(" red") == [1, 2], "the tokenizer is of the kind that this is about"
    assert _choice_tokens(Checkpoint("", None, tokenizer), question("a", "red", "blue")) == [[2], [3]]


def test_batches_are_of_one_sort(embedded: Checkpoint) -> None:
    """Choices that cannot be told apart by their first word are answered in free form, and end a batch."""
    asked = [question("a", "red", "blue"), question("b", "a red car", "a blue car"), question("c"), question("d", images=2)]
    asked += [question(name, "red", "blue") for name in "efg"]
    found = [[one.id for one in batch] for batch in batches(embedded, asked, 2)]
    assert found == [["a"], ["b", "c"], ["d"], ["e", "f"], ["g"]]


def test_an_answer_does_not_depend_on_what_is_asked_before_it(embedded: Checkpoint) -> None:
    hard, easy = question("a", "a red car", "a blue car"), question("b", "red", "blue")
    together = predict(embedded, [hard, easy, hard], batch_size=3)
    assert [one.answer for one in together] == [predict(embedded, [one])[0].answer for one in (hard, easy, hard)]
    assert together[1].answer in ("red", "blue")


def test_f1_reads_answers_as_accuracy_does() -> None:
    answers = [Prediction("1", "Yes.", True, "yes"), Prediction("2", "yes", False, "No"), Prediction("3", "no", True, "no")]
    assert score(answers, f1=True).f1 == pytest.approx(2 / 3)
