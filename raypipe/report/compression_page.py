"""The page of a compression: what each candidate saves and what it costs."""

from raypipe.records import CandidateMetrics, CompressionRecord
from raypipe.report.templating import Tile, render_page
from raypipe.text import NOTHING, format_bytes, format_count, format_parameters, format_rate, format_share, plural

_IN_TERMINAL = {"candidate", "size", "speed", "loss", "other answers", "95 % interval", "agreement"}


def compression_page(record: CompressionRecord) -> str:
    """Return the report of a compression as one HTML document."""
    return render_page(
        "compression.html",
        record,
        job="compress",
        headline=record.verdict.rstrip("."),
        uris=(record.model_uri, record.output_uri),
        tiles=_tiles(record),
        bad_tile="" if record.pays_off else "Chosen",
        run={"kind": record.kind, "input": record.input_uri},
        columns=compression_columns(record),
        rows=[(one.name == record.chosen, compression_cells(one, record)) for one in record.candidates],
        measured=_measured(record),
    )


def _tiles(record: CompressionRecord) -> list[Tile]:
    kept, original = record.kept_candidate, record.candidates[0]
    chosen = "smaller" if record.pays_off else "unchanged"
    return [
        ("Chosen", chosen, kept.name),
        ("Speed", f"{kept.speedup:.1f}x", f"{format_rate(kept.samples_per_second)} {_noun(record)}s/s on one core"),
        (
            "Size",
            format_bytes(kept.size_bytes),
            f"{format_share(kept.size_bytes / original.size_bytes)} of the original",
        ),
        ("Agreement", format_share(kept.agreement), "the same answer as the original model"),
    ]


def _noun(record: CompressionRecord) -> str:
    return "user" if record.kind == "ranker" else "video"


def _measured(record: CompressionRecord) -> str:
    """Return what the numbers were measured on."""
    what = plural(record.num_validation, f"{_noun(record)}") + " held out for validation"
    if record.kind == "classifier":
        labelled = f", {format_count(record.num_labelled)} videos have labels" if record.num_labelled else ", no labels"
        what += f"; students learned from {plural(record.num_train, 'video')}{labelled}"
    if not record.score_name:
        what += ". Without labels, the loss is the share of videos with another answer than the original model's"
    return f"{what}."


def compression_columns(record: CompressionRecord) -> list[str]:
    """Return the headings of the table of candidates."""
    score = [record.score_name] if record.score_name else []
    others = list(record.candidates[0].others)
    loss = "loss" if record.score_name else "other answers"
    sizes = ["candidate", "blocks", "heads", "weights", "size"]
    return [*sizes, f"{_noun(record)}s/s", "speed", *score, *others, loss, "95 % interval", "agreement"]


def compression_rows(record: CompressionRecord) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the table for a terminal, which has fewer columns."""
    columns = compression_columns(record)
    shown = [at for at, name in enumerate(columns) if name in {*_IN_TERMINAL, record.score_name}]
    cells = [compression_cells(one, record) for one in record.candidates]
    return [columns[at] for at in shown], [[row[at] for at in shown] for row in cells]


def compression_cells(one: CandidateMetrics, record: CompressionRecord) -> list[str]:
    """Return the cells of one candidate."""
    digits = 4 if record.kind == "ranker" else 3
    return [
        one.name,
        str(one.num_blocks or NOTHING),
        str(one.num_heads or NOTHING),
        format_parameters(one.num_parameters),
        format_bytes(one.size_bytes),
        format_rate(one.samples_per_second),
        f"{one.speedup:.2f}x",
        *([] if one.score is None else [f"{one.score:.{digits}f}"]),
        *(f"{value:.{digits}f}" for value in one.others.values()),
        f"{one.loss:+.{digits}f}",
        f"{one.loss_low:+.{digits}f} to {one.loss_high:+.{digits}f}",
        format_share(one.agreement),
    ]
