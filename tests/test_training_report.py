"""The report and the model card of a training show what was measured, and escape all text."""

import json
import math
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from raypipe.records import MAX_MISTAKES, ClassMetrics, EpochMetrics, Mistake, TrainingRecord, Trial, confused_pairs
from raypipe.report.charts import MAX_POINTS, thinned
from raypipe.report.training_page import model_card
from raypipe.report.write import summarize_training, write_training_report
from raypipe.text import format_loss, format_metric, format_parameters, shorten, visible
from support.properties import examples
from support.report_pages import HOSTILE, Page

START = 1_700_000_000.0
few = settings(max_examples=examples(50))  # each example writes whole pages
JPEG = b"\xff\xd8\xff\xe0 a picture"
DRAWN = {"d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "fill-opacity"}


def epoch(number: int, **changes: object) -> EpochMetrics:
    metrics = EpochMetrics(
        epoch=number, step=10 * number, train_loss=1.0 / number, validation_loss=1.5 / number, accuracy=0.842,
        top5_accuracy=0.97, macro_f1=0.811, learning_rate=1e-3 / number, samples_per_second=800.0, seconds=2.0,
    )  # fmt: skip
    return replace(metrics, **changes)  # type: ignore[arg-type]


def losses_only(number: int, **changes: object) -> EpochMetrics:
    return epoch(number, accuracy=None, top5_accuracy=None, macro_f1=None, **changes)


def metrics_of(label: str, *, f1: float = 0.5, support: int = 4) -> ClassMetrics:
    return ClassMetrics(label=label, support=support, predicted=5, precision=f1, recall=f1, f1=f1)


def training(num_labels: int = 3, **changes: object) -> TrainingRecord:
    """Return a finished training with ten validation videos per label; one of them is predicted as the next label."""
    names = tuple(f"label {number}" for number in range(num_labels))
    confusion = [
        [9 if row == column else int((row + 1) % num_labels == column) for column in range(num_labels)]
        for row in range(num_labels)
    ]
    mistakes = (
        Mistake(video_id="a.mp4", label=names[0], predicted=names[-1], score=0.9, label_score=0.05, thumbnail=JPEG),
    )
    record = TrainingRecord(
        objective="classify", outcome="finished", started_at=START, finished_at=START + 60, label_names=names,
        num_train_videos=480, num_validation_videos=120, num_parameters=1_230_000, num_trainable_parameters=9000,
        epochs=(epoch(1), epoch(2), epoch(3)), best_epoch=2, confusion=confusion,
        classes=tuple(metrics_of(name) for name in names), mistakes=mistakes,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def masked(**changes: object) -> TrainingRecord:
    none_of_labels = training(label_names=(), confusion=None, classes=(), mistakes=(), objective="masked_frame")
    return replace(none_of_labels, **{"epochs": (losses_only(1), losses_only(2)), **changes})  # type: ignore[arg-type]


def full_training(text: str) -> TrainingRecord:
    """Return a record with ``text`` wherever untrusted text can occur."""
    names = (f"l{text}", f"p{text}")
    trial = Trial(name=f"t{text}", settings={f"k{text}": f"v{text}"}, outcome="finished", metrics=epoch(1))
    return training(
        2, label_names=names, classes=tuple(map(metrics_of, names)), trials=(trial,), command=f"c{text}",
        embeddings_uri=f"e{text}", labels_uri=f"b{text}", output_uri=f"o{text}", model_uri=f"m{text}",
        message=f"x{text}", settings={"model": {f"s{text}": f"u{text}"}, "embedding_fingerprint": f"f{text}"},
        versions={f"i{text}": f"1{text}"}, machine={f"n{text}": f"2{text}"},
        mistakes=(Mistake(video_id=f"d{text}", label=names[0], predicted=names[1], score=0.9, label_score=0.1),),
    )  # fmt: skip


def written(record: TrainingRecord) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    write_training_report(record, files.__setitem__)
    return files


def page(record: TrainingRecord) -> Page:
    return Page(written(record)["report.html"])


# A label of the confusion matrix has space for 17 characters and a prefix.
@few
@given(st.one_of(st.text(max_size=17), st.sampled_from([text[:17] for text in HOSTILE])))
def test_untrusted_text_never_becomes_markup(text: str) -> None:
    assert page(full_training(text)).elements == page(full_training("harmless")).elements


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_is_shown_as_it_is_with_odd_characters_visible(text: str) -> None:
    shown = page(full_training(text))
    titles = [value for _, name, value in shown.attributes if name == "title"]
    for prefix in "lptkvcebomxsufind12":
        assert any(visible(f"{prefix}{text}") in said for said in [*shown.texts, *titles]), prefix
    assert {tag for tag, _ in shown.elements}.isdisjoint({"script", "iframe", "object", "embed", "link", "base", "a"})
    assert not any(name.startswith("on") for _, name, _ in shown.attributes)
    assert "".join(shown.texts).replace(shown.style(), "").replace("\n", "").isprintable()


def test_the_page_loads_nothing_and_its_policy_allows_only_its_own_style() -> None:
    shown = page(full_training("a"))
    digest = b64encode(sha256(shown.style().encode()).digest()).decode()
    policy = next(value for _, name, value in shown.attributes if name == "content" and "default-src" in value)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert "--second" in shown.style()
    assert "url(" not in shown.style()
    assert "@import" not in shown.style()
    assert {name for _, name, _ in shown.attributes}.isdisjoint({"href", "style", "action", "srcset", "xlink:href"})


def test_passwords_and_signatures_are_nowhere() -> None:
    uri = "s3://key:hunter2@bucket/v?X-Amz-Signature=cafe12"
    trial = Trial(name="t", settings={"init_from": uri}, outcome="failed")
    record = training(
        embeddings_uri=uri, labels_uri=uri, output_uri=uri, model_uri=uri, message=f"{uri} gave 403",
        command=f"raypipe train --embeddings {uri}", settings={"init_from": uri, "model": {"gpt2": uri}},
        trials=(trial,),
    )  # fmt: skip
    for content in [*written(record).values(), model_card(record).encode()]:
        assert b"hunter2" not in content
        assert b"cafe12" not in content


NAN = math.nan
SEVERAL = "multi_label_classification"


@pytest.mark.parametrize(
    ("record", "headline"),
    [
        (training(), "84.2% of 120 validation videos right"),
        (training(2, epochs=(epoch(1),), best_epoch=1), "84.2% of 120 validation videos right"),
        (training(400), "84.2% of 120 validation videos right"),
        (training(best_epoch=None, epochs=(epoch(1), epoch(2, accuracy=0.5))), "50.0% of 120 validation videos right"),
        (training(problem_type=SEVERAL, confusion=None), "Macro-F1 0.811 on 120 validation videos"),
        (training(epochs=(epoch(1, accuracy=NAN, macro_f1=NAN),)), "Loss 1.500 on 120 validation videos"),
        (masked(), "Loss 0.750 on 120 validation videos"),
        (
            masked(epochs=(losses_only(1, validation_loss=None),), num_validation_videos=0),
            "Training loss 1.000, with no validation videos",
        ),
        (masked(epochs=(), best_epoch=None, outcome="running", finished_at=None), "No epoch has ended"),
        (training(epochs=(), best_epoch=None, outcome="failed"), "Training failed before the first epoch ended"),
        (training(epochs=(), outcome="interrupted"), "Training was interrupted before the first epoch ended"),
    ],
)  # fmt: skip
def test_the_headline_says_how_good_the_kept_epoch_is(record: TrainingRecord, headline: str) -> None:
    files = written(record)
    assert headline in Page(files["report.html"]).texts
    assert f"raypipe train: {headline}" in Page(files["report.html"]).texts
    assert json.loads(files["summary.json"])["outcome"] == record.outcome
    assert f"\n{headline}.\n" in model_card(record)


def test_an_epoch_that_had_to_beat_the_probe_is_not_called_the_best_of_all() -> None:
    with_probe = training(epochs=(replace(epoch(1), epoch=0), epoch(1), epoch(2)), best_epoch=1)
    assert with_probe.kept_why != training(best_epoch=1).kept_why
    assert with_probe.kept_why in with_probe.kept_what
    assert written(with_probe)["report.html"].decode().count(with_probe.kept_why) == 2


def test_a_nan_loss_is_reported_and_is_null_in_summary_json() -> None:
    epochs = (epoch(1), epoch(2, train_loss=NAN, validation_loss=math.inf), epoch(3, train_loss=NAN))
    record = training(epochs=epochs, best_epoch=1, outcome="failed", message="The loss is not finite.")
    files = written(record)
    texts = Page(files["report.html"]).texts
    assert "The loss is not finite." in texts
    assert "The training loss of epoch 2 is NaN: a smaller learning rate or float32 may help." in texts
    assert "infinite" in texts
    told = json.loads(files["summary.json"])["epochs"]
    assert [row["train_loss"] for row in told] == [1.0, None, None]
    assert told[1]["validation_loss"] is None
    assert "84.2% of 120 validation videos right" in texts


numbers = st.one_of(st.none(), st.floats(), st.floats(0, 1))
epochs_of_any_numbers = st.lists(
    st.builds(
        epoch,
        st.just(1),
        train_loss=st.floats(),
        validation_loss=numbers,
        accuracy=numbers,
        macro_f1=numbers,
        learning_rate=st.floats(),
        samples_per_second=st.floats(),
        seconds=st.floats(),
    ),
    max_size=6,
).map(lambda rows: tuple(replace(row, epoch=number) for number, row in enumerate(rows, start=1)))


@few
@given(epochs_of_any_numbers, st.one_of(st.none(), st.integers(1, 6)), st.integers(2, 30))
def test_a_report_is_written_of_any_numbers_and_draws_only_finite_ones(
    epochs: tuple[EpochMetrics, ...], best_epoch: int | None, num_labels: int
) -> None:
    record = training(num_labels, epochs=epochs, best_epoch=best_epoch)
    json.loads(written(record)["summary.json"])
    for tag, name, value in page(record).attributes:
        if name in DRAWN:
            assert "nan" not in value, (tag, name, value)
            assert "inf" not in value, (tag, name, value)
            assert "-" not in value, (tag, name, value)
    assert yaml.safe_load(model_card(record).split("---\n")[1])


def test_curves_have_a_legend_a_mark_at_the_kept_epoch_and_a_gap_where_a_value_is_missing() -> None:
    epochs = (epoch(1), epoch(2), epoch(3, train_loss=NAN), epoch(4), epoch(5))
    content = written(training(epochs=epochs))["report.html"].decode()
    assert content.count('class="mean"') == 6  # three charts, each for wide and narrow pages
    loss = next(re.finditer(r'<path d="([^"]+)" class="line other">', content))[1]
    assert re.sub(r"[\d.,]", "", loss) == "MLML"
    assert {"training", "validation", "accuracy", "macro-F1"} <= set(Page(content.encode()).texts)
    assert "epoch 2: training 0.500, validation 0.750" in Page(content.encode()).texts
    one = written(training(epochs=(epoch(1),), best_epoch=1))["report.html"].decode()
    assert 'class="dot main"' in one
    assert "Learning rate" not in one


def test_the_metric_that_selected_the_kept_epoch_is_named() -> None:
    for selected_by, words in (("loss", "validation loss"), ("macro_f1", "macro-F1"), ("accuracy", "accuracy")):
        record = training(selected_by=selected_by)
        assert f"the best {words}" in page(record).texts
        assert f"Kept: epoch 2 of 3, after 20 optimizer steps, which has the best {words}" in model_card(record)
    unheld = masked(epochs=(losses_only(1, validation_loss=None),), best_epoch=1, num_validation_videos=0)
    assert "the best training loss" in page(unheld).texts


@given(st.integers(1, 5000), st.one_of(st.none(), st.integers(0, 4999)))
def test_a_chart_of_many_epochs_stays_small_and_has_the_kept_and_the_last_one(
    num_epochs: int, keep: int | None
) -> None:
    kept = None if keep is None else keep % num_epochs
    drawn = thinned(num_epochs, kept)
    assert drawn == sorted(set(drawn))
    assert len(drawn) <= MAX_POINTS + 2
    assert {0, num_epochs - 1} <= set(drawn)
    assert kept is None or kept in drawn


def test_a_small_confusion_matrix_is_drawn_cell_by_cell() -> None:
    content = written(training(3))["report.html"].decode()
    shown = Page(content.encode())
    assert "true label 0, predicted label 1: 1 of 10 (10.0%)" in shown.texts
    assert content.count('class="right" fill-opacity="0.9"') == 3
    assert content.count('class="wrong" fill-opacity="0.1"') == 3
    assert "True → predicted" not in shown.texts
    assert 'class="matrix"' in written(training(25))["report.html"].decode()


def test_for_many_labels_the_most_confused_pairs_are_listed() -> None:
    record = training(26)
    assert record.confusion is not None
    counts = [list(row) for row in record.confusion]
    counts[7][3] = 5
    record = replace(record, confusion=counts)
    assert confused_pairs(record)[0] == ("label 7", "label 3", 5, 15)
    content = written(record)["report.html"].decode().replace("\n", "")
    assert 'class="matrix"' not in content
    row = content.index("label 7</bdi><span")
    assert content[row:].startswith(
        'label 7</bdi><span class="arrow"> → </span><bdi>label 3</bdi></td><td class="num">5<'
    )
    assert content.index("<bdi>label 0</bdi><span") > row
    perfect = [[4 * (row == column) for column in range(26)] for row in range(26)]
    assert "All predictions are correct." in page(replace(record, confusion=perfect)).texts


def test_labels_are_listed_worst_first_and_unmeasured_ones_last() -> None:
    rows = [metrics_of(f"label {n}", f1=1 - n / 20, support=0 if n == 19 else 3) for n in range(20)]
    content = written(training(20, classes=tuple(rows)))["report.html"].decode()
    listed = re.findall(r'<th class="wide" scope="row"><bdi>(label \d+)</bdi>', content)
    assert listed == [*(f"label {n}" for n in range(18, -1, -1)), "label 19"]
    assert content.index("Show 5 more") > content.index(f"<bdi>{listed[14]}</bdi></th>")
    assert content.index("Show 5 more") < content.index(f"<bdi>{listed[15]}</bdi></th>")
    assert "1 label without a validation video" in content


def trial(name: str, **metrics: object) -> Trial:
    return Trial(name=name, settings={"lr": name}, outcome="finished", best_epoch=1, metrics=epoch(1, **metrics))


@pytest.mark.parametrize(("selected_by", "best"), [("loss", "b"), ("accuracy", "a"), ("macro_f1", "c")])
def test_the_best_trial_is_the_best_by_the_metric_that_selects_the_epoch(selected_by: str, best: str) -> None:
    trials = (
        Trial(name="failed", settings={}, outcome="failed"),
        trial("nan", validation_loss=NAN, accuracy=NAN, macro_f1=NAN),
        trial("a", validation_loss=0.5, accuracy=0.9, macro_f1=0.1),
        trial("b", validation_loss=0.1, accuracy=0.5, macro_f1=0.5),
        trial("c", validation_loss=0.9, accuracy=0.1, macro_f1=0.9),
    )
    record = training(trials=trials, selected_by=selected_by)
    assert record.best_trial is not None
    assert record.best_trial.name == best
    content = written(record)
    assert f'<bdi>{best}</bdi><span class="pill">best</span>' in content["report.html"].decode()
    assert [row["name"] for row in json.loads(content["summary.json"])["trials"] if row["is_best"]] == [best]
    assert training().best_trial is None


def test_mistakes_are_shown_with_pictures_the_most_confident_first() -> None:
    mistakes = tuple(
        Mistake(video_id=f"{n}.mp4", label="dog", predicted="cat", score=n / 100, label_score=0.1, thumbnail=jpeg)
        for n, jpeg in enumerate((None, b"<svg onload=alert(1)>", JPEG + b"x" * 70_000, JPEG))
    )
    shown = page(training(mistakes=mistakes))
    assert [text for text in shown.texts if text.endswith(".mp4")] == ["3.mp4", "2.mp4", "1.mp4", "0.mp4"]
    assert [value for _, name, value in shown.attributes if name == "src"] == [
        f"data:image/jpeg;base64,{b64encode(JPEG).decode()}"
    ]
    assert shown.texts.count("no picture") == 3


def test_a_report_stays_small_whatever_the_training() -> None:
    mistakes = tuple(
        Mistake(video_id=f"{n}" * 2000, label="a" * 2000, predicted="b" * 2000, score=1, label_score=0, thumbnail=JPEG)
        for n in range(200)
    )
    record = training(400, epochs=tuple(epoch(n) for n in range(1, 5001)), best_epoch=4321, mistakes=mistakes)
    shown = page(record)
    assert sum(tag == "figure" for tag, _ in shown.elements) == MAX_MISTAKES
    assert len(written(record)["report.html"]) < 1_500_000
    summary = json.loads(written(record)["summary.json"])
    assert summary["confusion"] is None
    assert len(summary["confused_pairs"]) == 100
    assert len(summary["mistakes"]) == MAX_MISTAKES


def test_summary_json_has_its_documented_keys_and_numbers() -> None:
    record = training(trials=(trial("a"),), settings={"seed": 1, "nan": NAN})
    summary = json.loads(written(record)["summary.json"])
    documented = set(re.findall(r"``(\w+)``", str(summarize_training.__doc__)))
    assert set(summary) <= documented
    assert set(summary["epochs"][0]) | set(summary["classes"][0]) | set(summary["mistakes"][0]) <= documented
    assert set(summary["trials"][0]) <= documented
    assert summary["started_at"] == "2023-11-14T22:13:20+00:00"
    assert summary["elapsed_seconds"] == 60
    assert summary["metrics"] == summary["epochs"][1]
    assert summary["metrics"]["accuracy"] == 0.842
    assert summary["confusion"][0] == [9, 1, 0]
    assert summary["confused_pairs"][0] == {"label": "label 0", "predicted": "label 1", "num_videos": 1}
    assert summary["settings"] == {"seed": 1, "nan": "nan"}
    assert "thumbnail" not in summary["mistakes"][0]


def test_tiles_show_the_accuracy_of_the_most_common_label_and_the_videos_left_out() -> None:
    classes = (metrics_of("cat", support=30), metrics_of("dog", support=10))
    record = training(2, classes=classes, num_unknown_labels=9, num_without_frames=3, num_restarts=1, num_workers=2)
    texts = page(record).texts
    assert "75.0% by always predicting cat" in texts
    assert "9 without embeddings, 3 without frames" in texts
    assert "on 2 workers, 1 restart" in texts
    assert "2 of 3" in texts
    assert "9.00k trained" in texts
    assert "Top-5 accuracy" not in texts
    assert "Top-5 accuracy" in page(training(6)).texts


def rendered(record: TrainingRecord) -> tuple[list[str], str]:
    """Return the kinds of a card's Markdown elements, and its text."""
    body = model_card(record).split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds: list[str] = []
    for token in tokens:
        kinds.append(token.type)
        for child in token.children or ():
            if kinds[-1] != "text" or child.type not in {"text", "text_special"}:  # escapes split a text
                kinds.append("text" if child.type == "text_special" else child.type)
    return kinds, "".join(child.content for token in tokens for child in token.children or ())


MARKDOWN = [
    "| a | b |", "`code` ``", "**bold** _i_", "[x](http://evil)", "![x](http://evil)", "<b>&amp;</b>", "# head",
    "\\", "a\\|b", "~~x~~", "$x$", "www.evil.com", "---", "- a\n- b", "line\nline", "` ", "",
]  # fmt: skip


def holds_as_text(text: str) -> bool:
    """Return whether a card shows ``text`` literally everywhere, and has the same structure as any other card."""
    kinds, said = rendered(full_training(text))
    labels = [shorten(visible(f"{prefix}{text}".strip()), max_chars=120) for prefix in "lp"]
    codes = [shorten(visible(f"{prefix}{text}"), max_chars=240).strip() for prefix in "ebf"]
    header = yaml.safe_load(model_card(full_training(text)).split("---\n")[1])
    same = kinds == rendered(full_training("harmless"))[0] and header["library_name"] == "transformers"
    return same and all(shown in said for shown in [*labels, *codes])


@few
@given(st.text(max_size=30))
def test_any_text_is_text_in_markdown(text: str) -> None:
    assert holds_as_text(text)


@pytest.mark.parametrize("text", [*MARKDOWN, *HOSTILE])
def test_untrusted_text_never_becomes_markdown_or_yaml(text: str) -> None:
    assert holds_as_text(text)


def test_the_card_has_the_metrics_for_the_hub() -> None:
    header = yaml.safe_load(model_card(training()).split("---\n")[1])
    assert header["pipeline_tag"] == "video-classification"
    (result,) = header["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.842, "f1": 0.811}
    assert set(result) == {"task", "dataset", "metrics"}
    card = ModelCard(model_card(training()))  # the parser of the Hub's own client
    assert {found.metric_name: found.metric_value for found in card.data.eval_results} == {
        "Accuracy": 0.842,
        "Macro-F1": 0.811,
    }
    assert card.text.startswith("\n# Video classifier\n")
    for record in (masked(), training(epochs=(), best_epoch=None), training(num_validation_videos=0)):
        assert "model-index" not in yaml.safe_load(model_card(record).split("---\n")[1])


def test_the_card_lists_the_worst_labels_and_how_to_load_the_model_and_its_limits() -> None:
    classes = tuple(metrics_of(f"label_{n}", f1=n / 20, support=0 if n == 19 else 3) for n in range(20))
    record = training(20, classes=classes, settings={"embedding_fingerprint": "c0ffee", "seed": 7, "output": "s3://x"})
    card = model_card(record)
    assert re.findall(r"^\| label\\_(\d+) \|", card, re.MULTILINE) == [str(n) for n in range(10)]
    assert 'model = VideoClassifier.from_pretrained("PATH")' in card
    assert "fingerprint `c0ffee`" in card
    assert "| seed | 7 |" in card
    assert "s3://x" not in unescape(card)
    assert "1 label had no validation video" in card
    assert "VideoClassifier" not in model_card(masked())
    assert "There were no validation videos" in model_card(training(num_validation_videos=0))


def test_metrics_read_without_false_precision() -> None:
    assert [format_loss(value) for value in (0.0, 0.41234, 0.00034, 123_456.0, NAN, -math.inf)] == [
        "0.000", "0.412", "0.00034", "1.2e+05", "NaN", "infinite",
    ]  # fmt: skip
    assert format_metric("accuracy", 0.8421) == "84.2%"
    assert format_metric("macro_f1", 0.8421) == "0.842"
    assert format_metric("validation_loss", None) == "–"  # noqa: RUF001  the sign for no value
    assert [format_parameters(count) for count in (820, 1_234_000, 124_439_808)] == ["820", "1.23M", "124M"]


def ranker_training(**changes: object) -> TrainingRecord:
    metrics = [
        losses_only(number, validation_loss=None, hr_at_10=0.1 * number, ndcg_at_10=0.0512, coverage_at_10=0.75)
        for number in (1, 2)
    ]
    record = TrainingRecord(
        objective="next_video", outcome="finished", started_at=START, finished_at=START + 60, epochs=tuple(metrics),
        best_epoch=2, selected_by="ndcg_at_10", num_train_videos=4_321, num_validation_videos=1_234,
        index_uri="s3://index", history_uri="s3://events.parquet", output_uri="s3://ranker",
        history_facts={
            "holdout": "none", "cut": None, "num_events": 98_765, "index_version": "20240531T120000-0a1b2c3d"
        },
        history_counts={"unknown_videos": 77}, is_refitted=True,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def test_a_ranker_shows_its_ranks_and_its_history() -> None:
    shown, card = page(ranker_training()), model_card(ranker_training())
    texts = " ".join(shown.texts)
    for number in ("0.0512", "0.2000", "75.0%", "4,321", "1,234", "98,765", "77", "none", "20240531T120000-0a1b2c3d"):
        assert number in texts, number
        assert number in card or number == "75.0%", number
    assert "s3://events.parquet" in texts
    assert "NextVideoModel.from_pretrained" in card
    assert not re.search(r"validation videos?\b|accuracy", card)
    summary = json.loads(written(ranker_training())["summary.json"])
    assert (summary["metrics"]["hr_at_10"], summary["history_counts"]) == (0.2, {"unknown_videos": 77})
    refitted_alone = model_card(ranker_training(is_refitted=False))
    assert card.count("2 epochs") == 1 + refitted_alone.count("2 epochs")


def test_trials_of_a_ranker_are_ranked_by_ndcg() -> None:
    trials = tuple(
        Trial(name=name, settings={}, outcome="finished", best_epoch=1, metrics=losses_only(1, ndcg_at_10=value))
        for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2))
    )
    best = ranker_training(trials=trials).best_trial
    assert best is not None
    assert best.name == "b"
