"""Real lmms-eval on tasks that are made here, both ways, against our own evaluation of the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokenzoo import UserError
from tokenzoo.bench.tasks import task
from tokenzoo.comparison.compare import compare
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store
from tokenzoo.models.checkpoint import load
from tokenzoo.models.question import Question

pytestmark = pytest.mark.lmms

COUNT, METHOD = 12, "fastv:R=0.9"

COMMON = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/documents.json
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
"""
#: One token an answer: the embedded models know no end.
FREE = """
output_type: generate_until
generation_kwargs:
  max_new_tokens: 1
  do_sample: false
process_results: !function utils.results
metric_list:
"""
YES_NO = COMMON + FREE + "".join(
    f"""
  - metric: pope_{metric}
    aggregation: !function utils.{metric}
    higher_is_better: true"""
    for metric in ("f1_score", "accuracy")
)  # fmt: skip
CHOICE = COMMON + """
output_type: multiple_choice
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""  # fmt: skip
VIDEO = COMMON + FREE + """
  - metric: right
    aggregation: mean
    higher_is_better: true
"""  # fmt: skip

UTILS = """
from PIL import Image
from lmms_eval.tasks.pope.utils import pope_aggregate_accuracy as accuracy
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score as f1_score
from lmms_eval.tasks.pope.utils import pope_process_results

def visual(document):
    if document["file"].endswith(".mp4"):
        return [document["file"]]
    return [Image.open(document["file"]).convert("RGB")]

def text(document, lmms_eval_specific_kwargs=None):
    return document["question"]

def results(document, results):
    if document["answer"] in ("yes", "no"):
        return pope_process_results(document, results)
    return {"right": float(results[0].strip() == document["answer"])}
"""


def write_video(path, frames):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *frames[0].size, "yuv420p", 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def make(folder, name, source, template, chosen=False):
    """The same questions twice: as a task of lmms-eval and as a folder with questions.jsonl."""
    folder.mkdir()
    documents, lines = [], []
    for index, question in enumerate(task(source).questions(COUNT, 0)):
        file = folder / f"{index}.{'mp4' if question.video else 'png'}"
        if question.video:
            write_video(file, list(question.video))
        else:
            question.images[0].save(file)
        document = {"question_id": index, "question": question.prompt, "answer": question.answer, "file": str(file)}
        documents.append({**document, "choices": list(question.choices)})
        line = {"video" if question.video else "image": file.name, "question": question.prompt, "answer": question.answer}
        lines.append(line | ({"choices": list(question.choices)} if chosen else {}))
    (folder / "documents.json").write_text("\n".join(map(json.dumps, documents)))
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "utils.py").write_text(UTILS)
    (folder / f"{name}.yaml").write_text(template.format(name=name, folder=folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    return {
        "yesno": make(root / "yesno", "yesno", "existence", YES_NO),
        "choice": make(root / "choice", "choice", "attribute", CHOICE, chosen=True),
        "clips": make(root / "clips", "clips", "when", VIDEO),
    }


def settings(model, tasks):
    return Settings(
        methods=METHOD, model=model, tasks=tasks, limit=COUNT, timing=False, as_published=True, batch_size=4, max_new_tokens=1
    )


@pytest.fixture(scope="module")
def both(made, tmp_path_factory):
    """Each model's rows, by lmms-eval's evaluation and by ours, and the cells of the former."""
    folder = tmp_path_factory.mktemp("results")
    found = {}
    with Store(folder / "theirs.sqlite") as theirs, Store(folder / "ours.sqlite") as ours:
        for model, names in (("embedded:llava", ("yesno", "choice")), ("embedded:onevision", ("clips",))):
            benchmarks = [f"lmms:{made[name] / name}.yaml" for name in names]
            left = compare(settings(model, benchmarks), theirs, samples=folder / "samples").sections[0]
            right = compare(settings(model, [str(made[name]) for name in names]), ours).sections[0]
            found[model] = (left, right, benchmarks, names)
        cells = {kind: list(store.cells()) for kind, store in (("theirs", theirs), ("ours", ours))}
    return found, cells, folder / "samples"


def answers(cells, task, method):
    (cell,) = [cell for cell in cells if task in cell.task and cell.method == method]
    return [(answer["answer"].lower(), answer["correct"]) for answer in cell.result["answers"]]


@pytest.mark.parametrize("method", ["none", METHOD, "random"])
def test_answers_are_the_same_question_by_question(both, method):
    _, cells, _ = both
    for name in ("yesno", "clips"):
        theirs, ours = answers(cells["theirs"], name, method), answers(cells["ours"], name, method)
        assert theirs == ours and len(ours) == COUNT
    theirs, ours = answers(cells["theirs"], "choice", method), answers(cells["ours"], "choice", method)
    assert [right for _, right in theirs] == [right for _, right in ours]


def test_scores_differences_tokens_and_prices_are_the_same(both):
    for left, right, benchmarks, names in both[0].values():
        assert left.questions == right.questions == COUNT * len(names) and left.kind == right.kind
        for theirs, ours in zip(left.rows, right.rows, strict=True):
            assert theirs.label == ours.label and theirs.status == ours.status == "ok"
            assert theirs.overall.accuracy == ours.overall.accuracy and theirs.overall.difference == ours.overall.difference
            for benchmark, name in zip(benchmarks, names, strict=True):
                assert theirs.scores[benchmark].difference == ours.scores[name].difference
            assert theirs.visual_share == ours.visual_share


def test_a_benchmarks_own_metric_and_its_error_stand_in_the_table(both):
    left, right, benchmarks, _ = both[0]["embedded:llava"]
    for theirs, ours in zip(left.rows, right.rows, strict=True):
        yesno, choice = (theirs.scores[name] for name in benchmarks)
        assert yesno.metric == "pope_f1_score" and yesno.value == pytest.approx(ours.scores["yesno"].f1)
        assert yesno.metrics["pope_accuracy"] == pytest.approx(ours.scores["yesno"].accuracy.value)
        assert choice.metric == "acc" and choice.value == pytest.approx(ours.scores["choice"].accuracy.value)
        assert yesno.error is not None and 0 <= yesno.error < 0.5
    from tokenzoo.report.columns import task_columns

    column = task_columns(left)[0]
    assert column.unit == "pope_f1_score" and column.text(left.rows[0]).startswith(
        f"{left.rows[0].scores[benchmarks[0]].value:.4g}±"
    )


def test_parts_make_the_scores_of_the_whole(both, made):
    from tokenzoo.comparison.work import BenchmarkWork

    (whole,) = [cell for cell in both[1]["theirs"] if "yesno" in cell.task and cell.method == METHOD]
    checkpoint = load("embedded:llava")
    work = BenchmarkWork("embedded:llava", whole.identity, COUNT, METHOD, whole.task, 8, 4, [("yesno", 0, COUNT)])
    pieces = work.pieces(checkpoint, 6)
    assert [piece.spans for piece in pieces] == [[("yesno", start, start + 4)] for start in range(0, COUNT, 4)]
    parts = [json.loads(json.dumps(piece.do(checkpoint, lambda steps: None))) for piece in pieces]
    assert json.loads(json.dumps(work.join(parts))) == whole.result


def test_every_sample_is_kept_with_its_metrics(both):
    written = sorted(both[2].glob("*yesno*.jsonl"))[0].read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert len(lines) == 4 * COUNT
    assert all(line["metrics"]["pope_f1_score"]["score"] == line["score"] and line["question"] for line in lines)


def test_lmms_eval_finds_the_model_and_its_row_is_that_of_compare(both, made):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    left, _, benchmarks, _ = both[0]["embedded:llava"]
    for method, row in (("none", left.rows[0]), (METHOD, left.rows[-1])):
        found = simple_evaluate(
            model="tokenzoo", model_args=f"pretrained=embedded:llava,method={method}", tasks=["yesno"], limit=COUNT, batch_size=4,
            task_manager=TaskManager(include_path=str(made["yesno"]), include_defaults=False), bootstrap_iters=0,
        )  # fmt: skip
        assert found["results"]["yesno"]["pope_f1_score,none"] == row.scores[benchmarks[0]].value


# --- the model itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    from tokenzoo.lmms.model import Tokenzoo

    return Tokenzoo(checkpoint=load("embedded:llava"), batch_size=3)


@pytest.fixture(scope="module")
def scene():
    return next(task("attribute").questions(1, 0))


def request(*arguments):
    return SimpleNamespace(args=arguments)


def test_a_likelihood_is_the_mean_loss_of_the_continuation(model, scene):
    model.task_dict = {"t": {"test": [None]}}
    wanted = [" red blue", f" {scene.answer}", " green"]
    found = model.loglikelihood([request(scene.prompt, text, lambda _: scene.images, 0, "t", "test") for text in wanted])
    tokenizer, network = model.checkpoint.tokenizer, model.checkpoint.model
    for text, (loss, greedy) in zip(wanted, found, strict=True):
        inputs = model.checkpoint.inputs([Question("q", scene.prompt, scene.images)])
        tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        ids = torch.cat([inputs["input_ids"], tokens], dim=1)
        with torch.inference_mode():
            logits = network(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[
                0, -tokens.shape[1] - 1 : -1
            ]
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, tokens[0]).item(), abs=1e-4)
        assert greedy == (logits.argmax(-1) == tokens[0]).all().item()


def test_rounds_go_on_until_the_benchmark_ends_them(model, scene):
    asked = []

    def ask(document, previous_output, round_idx, previous_round_info):
        asked.append((list(previous_output), round_idx, previous_round_info))
        return scene.images, "what shape is the red thing?", round_idx == 2, previous_output, "told"

    model.task_dict = {"t": {"test": [None]}}
    options = {"max_new_tokens": 1}
    (found,) = model.generate_until_multi_round([request(scene.prompt, options, lambda _: scene.images, ask, 0, "t", "test")])
    assert asked == [(found[:1], 1, None), (found, 2, "told")]
    assert found[0] == model.generate_until([request(scene.prompt, options, lambda _: scene.images, 0, "t", "test")])[0]


def test_stop_strings_end_an_answer(model, scene):
    model.task_dict = {"t": {"test": [None]}}
    ask = {"max_new_tokens": 6}
    whole = model.generate_until([request(scene.prompt, ask, lambda _: scene.images, 0, "t", "test")])[0]
    stop = whole[1:3]
    cut = model.generate_until([request(scene.prompt, {**ask, "until": [stop]}, lambda _: scene.images, 0, "t", "test")])[0]
    assert cut == whole[: whole.find(stop)]


def test_what_it_cannot_be_shown_is_refused(model):
    from tokenzoo.lmms.model import question_of

    with pytest.raises(UserError, match="shows dict: only pictures, or one video"):
        question_of("t/0", "?", [{"array": []}], 8)


def config_of(path):
    """A task's file with what it includes; its functions are not imported."""
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(path), mode="simple")
    return {**(config_of(Path(path).parent / config["include"]) if "include" in config else {}), **config}


def test_lmms_eval_has_the_benchmarks_of_the_tables():
    from tokenzoo.comparison.settings import read_config, shipped_configs
    from tokenzoo.lmms.benchmark import manager
    from tokenzoo.lmms.known import known_benchmarks

    index = manager(None).task_index
    assert {
        name.removeprefix("lmms:") for path in shipped_configs().values() for name in read_config(path, {}).tasks
    } <= index.keys()
    for name, known in known_benchmarks().items():
        members = config_of(index[name]["yaml_path"])["task"]
        config = config_of(index[members[0] if isinstance(members, list) else name]["yaml_path"])
        assert config["dataset_path"] == known.data
        assert known.metric in {listed["metric"] for listed in config["metric_list"]}


def test_unknown_benchmarks_are_named():
    from tokenzoo.lmms.benchmark import Benchmark

    with pytest.raises(UserError, match=r"has no benchmark 'popee'. Did you mean lmms:pope"):
        Benchmark("lmms:popee")
