"""What Prometheus reads at /metrics: of the replica that answers, in a registry of its own."""

import time
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from raypipe.endpoint.answers import Live
from raypipe.endpoint.endpoints import NAMES
from raypipe.endpoint.live import LiveIndex

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


class Metrics:
    """Counts what is asked, and tells of the index whatever it is when somebody reads them."""

    def __init__(self, index: LiveIndex) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "raypipe_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=registry
        )
        seconds = Histogram(
            "raypipe_request_seconds", "Latency by endpoint", ["endpoint"], buckets=_SECONDS, registry=registry
        )
        self._seconds = {name: seconds.labels(name) for name in NAMES}
        in_flight = Gauge("raypipe_in_flight", "Requests that are being answered", ["endpoint"], registry=registry)
        self._in_flight = {name: in_flight.labels(name) for name in NAMES}
        self._batch_sizes = Histogram(
            "raypipe_batch_size",
            "Requests in a batch of an endpoint, or videos in one of a model",
            ["what"],
            buckets=_SIZES,
            registry=registry,
        )
        self._recommended = Counter("raypipe_recommendations", "Lists of recommendations", registry=registry)
        self._fallbacks = Counter(
            "raypipe_fallback", "Lists without a known history: popular and recent videos", registry=registry
        )
        self._selectivity = Histogram(
            "raypipe_filter_selectivity",
            "Share of the videos that a filter leaves",
            buckets=_SHARES,
            registry=registry,
        )
        self._counts: dict[tuple[str, int], Counter] = {}
        self._version = Gauge("raypipe_index_info", "The version served", ["version", "kind"], registry=registry)
        self._loads = Counter("raypipe_index_loads", "Versions put in place", registry=registry)
        self._watch(index)

    def _watch(self, index: LiveIndex) -> None:
        gauges = (
            ("age_seconds", "Since the version served was built", lambda: _age_seconds(index.live)),
            ("videos", "Videos in the version served", lambda: index.live.num_videos if index.live else 0),
            ("broken", "1 where CURRENT names what cannot be served", lambda: index.broken is not None),
            ("failed_polls", "Looks at CURRENT that failed", lambda: index.num_failed_polls),
        )
        for name, about, value in gauges:
            Gauge(f"raypipe_index_{name}", about, registry=self._registry).set_function(value)
        index.on_load = self._loaded

    def started(self, endpoint: str) -> None:
        """A request was let in."""
        self._in_flight[endpoint].inc()

    def ended(self, endpoint: str) -> None:
        """It left again."""
        self._in_flight[endpoint].dec()

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered."""
        key = endpoint, status
        if key not in self._counts:
            self._counts[key] = self._requests.labels(endpoint, str(status))
        self._counts[key].inc()
        self._seconds[endpoint].observe(seconds)

    def batched(self, what: str, size: int) -> None:
        """So many went through an endpoint or a model together."""
        self._batch_sizes.labels(what).observe(size)

    def recommended(self, *, fallback: bool, selectivity: float | None) -> None:
        """A list was made; ``selectivity`` where there was a filter."""
        self._recommended.inc()
        if fallback:
            self._fallbacks.inc()
        if selectivity is not None:
            self._selectivity.observe(selectivity)

    def _loaded(self, live: Live) -> None:
        self._version.clear()
        self._version.labels(live.version, str(live.index.manifest.get("kind"))).set(1)
        self._loads.inc()

    def text(self) -> bytes:
        """All of it, in the format of Prometheus."""
        return generate_latest(self._registry)


def _age_seconds(live: Live | None) -> float:
    if live is None:
        return 0.0
    try:
        return time.time() - datetime.fromisoformat(str(live.index.manifest["created_at"])).timestamp()
    except (KeyError, ValueError):
        return time.time() - live.loaded_at
