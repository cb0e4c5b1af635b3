"""A training as lines, as a live display and as a final table, with a clock that the test controls."""

import io
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from raypipe.records import EpochMetrics, TrainingRecord
from raypipe.runs.progress import TrainingProgress
from raypipe.runs.summary_tables import epoch_table, training_table

START = 1_700_000_000.0


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def epoch(number: int, **changes: object) -> EpochMetrics:
    metrics = EpochMetrics(
        epoch=number, step=10 * number, train_loss=1.0, validation_loss=0.75, accuracy=0.842, top5_accuracy=0.97,
        macro_f1=0.811, learning_rate=1e-3, samples_per_second=812.3, seconds=12.0,
    )  # fmt: skip
    return replace(metrics, **changes)  # type: ignore[arg-type]


def file_console(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, force_terminal=False), file


def terminal_console(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, force_terminal=True, _environ={"TERM": "xterm-256color"}), file


def table_lines(*rows: tuple[EpochMetrics, bool], width: int = 100) -> list[str]:
    console, file = file_console(width)
    console.print(epoch_table(rows))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_lines_say_how_far_how_good_and_what_happened(clock: FakeClock) -> None:
    console, file = file_console()
    with TrainingProgress(num_epochs=2, console=console, clock=clock) as progress:
        progress.note("resumed from checkpoint 12")
        progress.step(1, 10, 40, 1.25, 800.0)
        clock.now += 10
        progress.step(1, 20, 40, 0.5, 812.3)
        clock.now += 2
        progress.epoch(epoch(1), is_best=True)
        progress.epoch(epoch(2, validation_loss=None, accuracy=None, top5_accuracy=None, macro_f1=None), is_best=False)
    scores = "accuracy 84.2% · top-5 accuracy 97.0% · macro-F1 0.811"
    assert file.getvalue().splitlines() == [
        "resumed from checkpoint 12",
        "epoch 1/2 step 20/40 · loss 0.500 · 812 samples/s · ETA 1m00s",
        f"epoch 1/2 · training loss 1.000 · validation loss 0.750 · {scores} · 812 samples/s · took 12s · best so far",
        "epoch 2/2 · training loss 1.000 · 812 samples/s · took 12s",
    ]


def test_there_is_at_most_one_line_per_interval_between_epochs(clock: FakeClock) -> None:
    console, file = file_console()
    with TrainingProgress(num_epochs=4, console=console, clock=clock, line_seconds=10) as progress:
        for number in range(1, 5):
            for step in range(1, 26):
                clock.now += 1
                progress.step(number, step, 25, 1.0, 800.0)
            progress.epoch(epoch(number), is_best=False)
    lines = file.getvalue().splitlines()
    assert len(lines) == 4 * (2 + 1)
    assert sum("step" in line for line in lines) == 8


def test_of_short_epochs_a_few_are_lines_and_the_last_one_is(clock: FakeClock) -> None:
    console, file = file_console()
    with TrainingProgress(num_epochs=100, console=console, clock=clock, line_seconds=10) as progress:
        for number in range(1, 101):
            clock.now += 0.125
            progress.epoch(epoch(number), is_best=False)
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]


def test_lines_are_plain_where_the_output_cannot_say_more() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with TrainingProgress(num_epochs=1, console=Console(file=file, force_terminal=False)) as progress:
        progress.epoch(epoch(1), is_best=False)
        progress.note("resumed in Zürich")
    assert raw.getvalue().startswith(b"epoch 1/1 | training loss 1.000 | ")
    assert raw.getvalue().splitlines()[1] == b"resumed in Z\\xfcrich"


def test_the_time_left_includes_validation_and_starts_over_after_a_restart(clock: FakeClock) -> None:
    progress = TrainingProgress(num_epochs=10, console=file_console()[0], clock=clock)
    assert progress.eta_seconds() is None
    clock.now += 500  # workers are starting
    progress.step(1, 0, 10, 1.0, 800.0)
    assert progress.eta_seconds() is None
    clock.now += 8
    progress.step(1, 10, 10, 1.0, 800.0)
    clock.now += 4  # validation
    progress.step(2, 0, 10, 1.0, 800.0)
    assert progress.eta_seconds() == pytest.approx(9 * 12)
    progress.step(3, 0, 10, 1.0, 800.0)
    clock.now += 1000  # a worker dies
    progress.step(2, 0, 10, 1.0, 800.0)
    assert progress.eta_seconds() is None
    clock.now += 6
    progress.step(2, 5, 10, 1.0, 800.0)
    assert progress.eta_seconds() == pytest.approx(8.5 * 12)
    progress.step(10, 10, 10, 1.0, 800.0)
    assert progress.eta_seconds() == 0


def test_the_table_keeps_the_best_epoch_among_the_last_ones() -> None:
    rows = [(epoch(number, validation_loss=number / 100), number in {1, 3}) for number in range(1, 21)]
    lines = table_lines(*rows)
    assert [line.split()[0] for line in lines[2:]] == ["3", "14", "15", "16", "17", "18", "19", "20"]
    assert [line for line in lines if line.endswith("best")] == [lines[2]]
    assert lines[0].split() == [
        "epoch", "train", "loss", "val", "loss", "accuracy", "top-5", "macro-F1", "samples/s",
    ]  # fmt: skip
    assert lines[2].split() == ["3", "1.000", "0.030", "84.2%", "97.0%", "0.811", "812", "best"]


def test_the_bar_stays_visible_on_a_low_terminal(clock: FakeClock) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=9, force_terminal=True, _environ={"TERM": "xterm-256color"})
    with TrainingProgress(num_epochs=9, console=console, clock=clock) as progress:
        for number in range(1, 10):
            progress.step(number, 40, 40, 1.0, 800.0)
            progress.epoch(epoch(number), is_best=number == 1)
    shown = Text.from_ansi(file.getvalue()).plain
    last = [line.split() for line in shown[shown.rindex("train loss") :].splitlines() if line.strip()]
    assert [words[0] for words in last[2:5]] == ["1", "8", "9"]
    assert last[5][:2] == ["epoch", "9/9"]
    assert len(last) + 2 <= 9


def test_the_table_has_columns_only_for_what_was_measured() -> None:
    bare = epoch(1, train_loss=math.nan, accuracy=None, top5_accuracy=None, macro_f1=None, samples_per_second=math.inf)
    lines = table_lines((bare, False))
    assert lines[0].split() == ["epoch", "train", "loss", "val", "loss", "samples/s"]
    assert lines[2].split() == ["1", "NaN", "0.750", "–"]  # noqa: RUF001  the sign for no value


def fail_in_epoch_3(console: Console, clock: FakeClock) -> None:
    with TrainingProgress(num_epochs=12, console=console, clock=clock) as progress:
        progress.step(1, 0, 40, 2.0, 800.0)
        clock.now += 10
        progress.step(2, 40, 40, 1.0, 800.0)
        progress.epoch(epoch(1), is_best=False)
        progress.epoch(epoch(2, accuracy=0.77), is_best=True)
        progress.epoch(epoch(3, accuracy=0.11), is_best=True)
        progress.note("a worker died: restarted from checkpoint 2 of s3://key:hunter2@b [red]\x1b[2J")
        progress.epoch(epoch(2, accuracy=0.78), is_best=True)
        progress.step(3, 10, 40, 0.5, 812.3)
        raise KeyboardInterrupt


def test_the_live_display_shows_epochs_bar_and_notes_and_restores_the_terminal(clock: FakeClock) -> None:
    console, file = terminal_console(width=100)
    with pytest.raises(KeyboardInterrupt):
        fail_in_epoch_3(console, clock)
    shown = Text.from_ansi(file.getvalue()).plain
    assert "a worker died: restarted from checkpoint 2 of s3://***@b [red]\\x1b[2J" in shown
    last = shown[shown.rindex("train loss") :]
    assert [line.split()[3] for line in last.splitlines() if line.lstrip()[:2] in {"1 ", "2 ", "3 "}] == [
        "84.2%",
        "78.0%",
    ]
    assert [line.split()[0] for line in last.splitlines() if line.rstrip().endswith("best")] == ["2"]
    assert "epoch 3/12" in last
    assert "10/40 steps" in last
    assert "loss 0.500  812 samples/s" in last
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_the_live_display_begins_before_the_first_step() -> None:
    console, file = terminal_console()
    with TrainingProgress(num_epochs=3, console=console):
        pass
    assert "waiting for the first step" in Text.from_ansi(file.getvalue()).plain


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(0, 5), st.floats(), st.floats()), max_size=9)
)
def test_any_steps_can_be_shown(steps: list[tuple[int, int, int, float, float]]) -> None:
    for make in (file_console, terminal_console):
        clock = FakeClock()
        console, _ = make()
        with TrainingProgress(num_epochs=3, console=console, clock=clock, line_seconds=0) as progress:
            for number, step, steps_per_epoch, loss, rate in steps:
                clock.now += 1
                progress.step(number, step, steps_per_epoch, loss, rate)
                progress.epoch(epoch(number, train_loss=loss, samples_per_second=rate, seconds=rate), is_best=step > 5)
            assert (progress.eta_seconds() or 0) >= 0


def record(**changes: object) -> TrainingRecord:
    made = TrainingRecord(
        objective="classify", outcome="interrupted", message="Stopped by [red]Ctrl-C[/red]\x1b[2J.", started_at=START,
        finished_at=START + 61, label_names=tuple("abcdef"), num_train_videos=480, num_validation_videos=120,
        epochs=(epoch(1, accuracy=0.9), epoch(2, accuracy=0.8)), best_epoch=1, selected_by="accuracy", num_restarts=1,
        model_uri="s3://key:hunter2@b/out/model",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [45, 80, 140])
def test_the_final_table_fits_and_names_what_matters(width: int) -> None:
    console, file = file_console(width)
    console.print(training_table(record(), report_uri="s3://b/out/reports/1/report.html"))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    text = "".join(line[17:].strip() for line in lines)
    for wanted in (
        "interrupted",
        "epoch 1 of 2, the best",
        "90.0%97.0%0.8110.7501.000480 for training",
        "120 for",
        "1m01s",
        "s3://***@b/out/model",
        "s3://b/out/reports/1/report.html",
    ):
        assert wanted in text, wanted
    assert "[red]Ctrl-C[/red]\\x1b[2J." in text


def test_the_final_table_of_a_training_that_failed_at_once_has_no_metrics() -> None:
    console, file = file_console()
    console.print(training_table(record(outcome="failed", epochs=(), best_epoch=None, num_restarts=0, model_uri="")))
    assert [line.split()[0] for line in file.getvalue().splitlines() if line.strip()] == [
        "outcome",
        "Stopped",
        "videos",
        "wall",
    ]
