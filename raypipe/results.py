"""The results of the Python API. They display themselves in one line, and as a table in a notebook."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

_MAX_SHOWN = 200
_LEFT = 'style="text-align: left"'


class Shown:
    """A base class for results. ``repr`` and notebooks display the values that ``shown`` returns."""

    __slots__ = ()

    def shown(self) -> Mapping[str, object]:
        """Return the values to display, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in self.shown().items())})"

    def _repr_html_(self) -> str:
        return f"<table>{''.join(self._html_rows())}</table>"

    def _html_rows(self) -> Iterator[str]:
        yield f'<tr><th colspan="2" {_LEFT}>{escape(type(self).__name__)}</th></tr>'
        for name, value in self.shown().items():
            text = value if isinstance(value, str) else _short(value)
            yield f"<tr>{''.join(f'<td {_LEFT}>{escape(cell)}</td>' for cell in (name, text))}</tr>"


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


@dataclass(frozen=True, repr=False)
class JobResult(Shown):
    """The result of a job. The entries of ``counts`` are also attributes: ``result.ok`` is ``result.counts["ok"]``.

    Attributes:
        job: The job, such as embed or train.
        output: The output folder.
        counts: What the job did: number of videos or users by status, metrics of a model, or the version of an index.
        seconds: The wall time of the run.
        report: The URI of the report. Empty if the job writes no report, or if there was nothing to do.
        is_new: False if there was nothing to do.
        record: Everything that the report shows, as data.
    """

    job: str
    output: str
    counts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    report: str = ""
    is_new: bool = True
    record: Any = None
    table: Any = None  # what rich prints on a terminal

    def shown(self) -> Mapping[str, object]:
        """Return the job, its counts, its wall time and its report."""
        if not self.is_new:
            done = {name: count for name, count in self.counts.items() if count}
            return {"job": self.job, "is_new": False, **done, "output": self.output}
        report = {"report": self.report} if self.report else {"output": self.output}
        return {"job": self.job, **self.counts, "seconds": round(self.seconds, 1), **report}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the value of a count
        if not name.startswith("_") and name in (counts := self.__dict__.get("counts", {})):
            return counts[name]
        msg = f"{type(self).__name__} has no attribute {name!r}"
        raise AttributeError(msg, name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.counts]

    def __rich__(self) -> Any:  # noqa: ANN401 - whatever rich prints
        return self.table if self.table is not None else repr(self)
