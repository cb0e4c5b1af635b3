"""The parts of a report's page below its headline: each takes the record and returns markup, or nothing."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping

from raypipe.records import FLAG_TEXTS, RunRecord, VideoNote
from raypipe.report.charts import share_bar, stacked_bar
from raypipe.report.markup import Html, tag
from raypipe.status import NOT_FAILED
from raypipe.text import NOTHING, format_count, format_seconds, format_share, plural, redact, shorten

_STAGES = ("fetch", "read", "decode", "embed", "classify", "put")
_SHADES = 6
_OPEN_FAILURES = 10
_MAX_KINDS = 12
_MAX_LABELS = 20
_CAPTION_CHARS = 44
_ID_CHARS = 160


def section(title: str, *children: str, note: str = "") -> Html:
    """Return a titled section, with one line of explanation where it needs one."""
    explained = tag("p", note, class_="note") if note else Html("")
    return tag("section", tag("h2", title), explained, *children)


def troubles(record: RunRecord) -> Html:
    """Say how the run ended where it did not end well, and which attempts at a shard failed."""
    if not record.message and not record.problems:
        return Html("")
    lines = [tag("li", tag("bdi", problem)) for problem in record.problems]
    if record.num_problems > len(record.problems):
        lines.append(tag("li", f"and {format_count(record.num_problems - len(record.problems))} more"))
    title = f"{plural(record.num_problems, 'attempt')} at a shard failed" if record.num_problems else ""
    return tag(
        "aside",
        tag("p", tag("bdi", record.message)) if record.message else Html(""),
        tag("h3", title) if title else Html(""),
        tag("p", "A later attempt finished each of them.", class_="note")
        if title and record.outcome == "finished"
        else Html(""),
        tag("ul", *lines) if lines else Html(""),
        class_="trouble",
    )


def stages(record: RunRecord) -> Html:
    """Show the seconds of each stage over all slots, and what is left of their time."""
    spent = [(stage, record.stage_seconds[stage]) for stage in _STAGES if stage in record.stage_seconds]
    spent += sorted((stage, seconds) for stage, seconds in record.stage_seconds.items() if stage not in _STAGES)
    rows = [(stage, seconds, f"shade{min(index, _SHADES - 1)}") for index, (stage, seconds) in enumerate(spent)]
    if record.idle_seconds is not None:
        rows.append(("idle or other", record.idle_seconds, "idle"))
    whole = sum(seconds for _, seconds, _ in rows)
    if not any(record.stage_seconds.values()):
        return Html("")
    bar = stacked_bar(
        [(class_, seconds / whole, f"{stage} {format_share(seconds / whole)}") for stage, seconds, class_ in rows]
    )
    body = [
        tag(
            "tr",
            tag("th", tag("span", class_=f"swatch {class_}"), stage, scope="row"),
            tag("td", format_seconds(seconds), class_="num"),
            tag("td", format_share(seconds / whole), class_="num"),
        )
        for stage, seconds, class_ in rows
    ]
    slots = f" of {plural(record.num_slots, 'slot')}" if record.num_slots else ""
    return section("Where the time went", bar, tag("table", *body), note=f"Wall time{slots}, added up.")


def statuses(record: RunRecord) -> Html:
    """Show how many videos ended in each status."""
    if not record.num_videos:
        return Html("")
    rows = []
    for status, count in sorted(record.statuses.items(), key=lambda item: (item[0] not in NOT_FAILED, -item[1])):
        share = count / record.num_videos
        rows.append(
            tag(
                "tr",
                tag("th", status, scope="row"),
                tag("td", share_bar(share, "shade0" if status in NOT_FAILED else "failed"), class_="wide"),
                tag("td", format_count(count), class_="num"),
                tag("td", format_share(share), class_="num"),
            )
        )
    flags = f" {', '.join(flag_texts(record))}." if record.flags.total() else ""
    note = f"One row of the output for each video.{flags}"
    return section("How videos ended", tag("table", *rows, class_="bars"), note=note)


def flag_texts(record: RunRecord) -> list[str]:
    """Return what was noticed about videos that were read, such as '2 repaired timelines'."""
    return [plural(record.flags[name], text) for name, text in FLAG_TEXTS.items() if record.flags[name]]


def picture(jpeg: bytes) -> Html:
    """Return a JPEG as a picture inside the page."""
    return tag("img", src=f"data:image/jpeg;base64,{b64encode(jpeg).decode('ascii')}", alt="")


def labels(record: RunRecord) -> Html:
    """Show how many videos have each label as their best, where the job gives labels."""
    labelled = record.labels.total()
    if not labelled:
        return Html("")
    rows = [
        tag(
            "tr",
            tag("th", tag("bdi", shorten(label, max_chars=_CAPTION_CHARS)), scope="row"),
            tag("td", share_bar(count / labelled, "shade0"), class_="wide"),
            tag("td", format_count(count), class_="num"),
            tag("td", format_share(count / labelled), class_="num"),
        )
        for label, count in record.labels.most_common(_MAX_LABELS)
    ]
    others = len(record.labels) - len(rows)
    more = f" {plural(others, 'other label')} not shown." if others else ""
    note = f"The best label of each video.{more}"
    return section("What the videos are", tag("table", *rows, class_="bars"), note=note)


def thumbnails(record: RunRecord) -> Html:
    """Show a few of the embedded videos as pictures."""
    figures = [
        tag(
            "figure",
            picture(jpeg),
            tag("figcaption", tag("bdi", shorten(video_id, max_chars=_CAPTION_CHARS)), title=video_id),
        )
        for video_id, jpeg in record.thumbnails
    ]
    if not figures:
        return Html("")
    return section(
        "What was embedded", tag("div", *figures, class_="gallery"), note="The middle frame of a few videos."
    )


def failures(record: RunRecord) -> Html:
    """List the failures by cause, then one by one."""
    if not record.failures:
        return Html("")
    kinds = [
        tag(
            "tr",
            tag("td", tag("span", status, class_="status")),
            tag("td", tag("bdi", kind or NOTHING), class_="wide"),
            tag("td", format_count(count), class_="num"),
        )
        for (status, kind), count in record.failure_kinds.most_common(_MAX_KINDS)
    ]
    named = record.failure_kinds.total()
    note = f"Causes of {plural(named, 'failure')}"
    if named < record.num_failed_videos:
        note += f" that shards named, of {format_count(record.num_failed_videos)}"
    shown, folded = record.failures[:_OPEN_FAILURES], record.failures[_OPEN_FAILURES:]
    more = tag("details", tag("summary", f"Show {format_count(len(folded))} more"), _notes(folded)) if folded else ""
    return section("Failures", tag("table", *kinds, class_="kinds"), _notes(shown), more, note=f"{note}.")


def _notes(notes: list[VideoNote]) -> Html:
    return tag(
        "ul",
        *(
            tag(
                "li",
                shown_id(note.video_id),
                tag("p", tag("span", note.status, class_="status"), " ", tag("bdi", note.error or NOTHING)),
            )
            for note in notes
        ),
        class_="notes",
    )


def shown_id(video_id: str) -> Html:
    """Return a video_id, shortened where it is too long and then whole under the pointer."""
    shown = shorten(video_id, max_chars=_ID_CHARS)
    return tag("bdi", shown, class_="id") if shown == video_id else tag("bdi", shown, class_="id", title=video_id)


def slowest(record: RunRecord) -> Html:
    """List the videos that took longest to download and decode."""
    rows = [
        tag(
            "tr",
            tag("td", format_seconds(note.seconds), class_="num"),
            tag("td", shown_id(note.video_id), class_="wide"),
            tag("td", note.status, class_="" if note.status in NOT_FAILED else "bad"),
        )
        for note in record.slowest
    ]
    if not rows:
        return Html("")
    return section("Slowest videos", tag("table", *rows), note="Seconds of download and decoding.")


def settings(record: RunRecord) -> Html:
    """Show what the run was started with, on what, and with which versions."""
    run = {"fingerprint": record.fingerprint, "plans": ", ".join(map(str, record.plans))}
    groups = (("Run", run), ("Settings", record.settings), ("Machine", record.machine), ("Versions", record.versions))
    return facts(record.command, groups)


def facts(command: str, groups: Iterable[tuple[str, Mapping[str, object]]]) -> Html:
    """Show a command line and (title, names and values) groups as small tables; what is empty is left out."""
    line = tag("p", redact(command), class_="command") if command else Html("")
    lists = []
    for title, mapping in groups:
        rows = [
            tag("tr", tag("th", key, scope="row"), tag("td", tag("bdi", redact(value))))
            for key, value in leaves(mapping)
            if value
        ]
        if rows:
            lists.append(tag("div", tag("h3", title), tag("table", *rows, class_="facts")))
    if not lists and not command:
        return Html("")
    return section("Settings and versions", line, tag("div", *lists, class_="columns"))


def leaves(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as (dotted name, shown value)."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{prefix}{key}", NOTHING if value is None else shown
