"""The page of suggestions: the videos to label next, and the labels to check, each with a frame."""

from raypipe.records import SuggestionRecord, is_thumbnail
from raypipe.report.templating import Tile, render_page
from raypipe.text import NOTHING, format_count, format_share, plural

MAX_SHOWN = 200  # videos of each list on the page
_NUM_OPEN, _NUM_OPEN_LABELS = 48, 15


def suggestion_page(record: SuggestionRecord) -> str:
    """Return the report of suggestions as one HTML document."""
    summary = record.summary
    num_to_label, num_to_check = plural(len(record.to_label), "video"), plural(len(record.to_check), "label")
    return render_page(
        "suggestion.html",
        record,
        job="suggest",
        headline=f"{num_to_label} to label next, {num_to_check} to check",
        uris=(record.embeddings_uri, record.output_uri),
        tiles=_tiles(record),
        bad_tile="",
        run={name: summary[name] for name in ("features", "num_unknown", "num_without_frames") if summary[name]},
        to_label=list(enumerate(record.to_label[:MAX_SHOWN], start=1)),
        to_check=list(enumerate(record.to_check[:MAX_SHOWN], start=1)),
        num_open=_NUM_OPEN,
        num_open_labels=_NUM_OPEN_LABELS,
        max_shown=MAX_SHOWN,
        has_model=summary["has_model"],
        is_thumbnail=is_thumbnail,
        labels=[
            (
                row.label,
                format_count(row.num_videos),
                NOTHING if row.recall is None else format_share(row.recall),
                format_count(row.num_to_check),
            )
            for row in record.labels
        ],
    )


def _tiles(record: SuggestionRecord) -> list[Tile]:
    summary = record.summary
    num_labelled, num_unlabelled = summary["num_labelled"], summary["num_unlabelled"]
    sampled = summary["num_unlabelled_used"]
    accuracy = summary["accuracy"]
    note = (
        "of all videos" if sampled == num_unlabelled else f"{format_count(sampled)} of them, evenly chosen, were ranked"
    )
    test = summary["num_test"]
    return [
        ("Labelled", format_count(num_labelled), plural(len(record.labels), "label")),
        ("Unlabelled", format_count(num_unlabelled), note),
        ("In the split test", format_count(test), "neither used nor suggested"),
        (
            "Accuracy",
            NOTHING if accuracy is None else format_share(accuracy),
            "of the probe, on labelled videos that it has not seen",
        ),
    ]
