"""The metrics of one replica, which Prometheus reads at /metrics."""

import time
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from raypipe.endpoint.http import NAMES
from raypipe.endpoint.index_watcher import IndexWatcher, LoadedIndex

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


class EndpointMetrics:
    """Metrics of requests and of the index. The gauges of the index are computed when Prometheus reads them."""

    def __init__(self, index: IndexWatcher) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._requests = counter("raypipe_requests", "Requests by endpoint and status", ["endpoint", "status"])
        seconds = histogram("raypipe_request_seconds", "Latency by endpoint", ["endpoint"], buckets=_SECONDS)
        self._seconds = {name: seconds.labels(name) for name in NAMES}
        in_flight = gauge("raypipe_in_flight", "Requests in flight", ["endpoint"])
        self._in_flight = {name: in_flight.labels(name) for name in NAMES}
        about = "Requests per batch of an endpoint, or videos per batch of a model"
        self._batch_sizes = histogram("raypipe_batch_size", about, ["what"], buckets=_SIZES)
        self._recommended = counter("raypipe_recommendations", "Lists of recommendations")
        self._fallbacks = counter("raypipe_fallback", "Lists of popular and recent videos, for lack of a known history")
        about = "Fraction of the videos that pass a filter"
        self._selectivity = histogram("raypipe_filter_selectivity", about, buckets=_SHARES)
        self._counts: dict[tuple[str, int], Counter] = {}
        self._version = gauge("raypipe_index_info", "The version being served", ["version", "kind"])
        self._loads = counter("raypipe_index_loads", "Versions that became live")
        for name, about, value in (
            ("age_seconds", "Seconds since the live version was built", lambda: _age_seconds(index.live)),
            ("videos", "Videos in the live version", lambda: index.live.num_videos if index.live else 0),
            ("broken", "1 if CURRENT names a version that cannot be served", lambda: index.broken is not None),
            ("failed_polls", "Failed polls of CURRENT", lambda: index.num_failed_polls),
        ):
            gauge(f"raypipe_index_{name}", about).set_function(value)
        index.on_load = self._loaded

    def started(self, endpoint: str) -> None:
        self._in_flight[endpoint].inc()

    def ended(self, endpoint: str) -> None:
        self._in_flight[endpoint].dec()

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request and record its latency, whether it was admitted or rejected."""
        key = endpoint, status
        if key not in self._counts:
            self._counts[key] = self._requests.labels(endpoint, str(status))
        self._counts[key].inc()
        self._seconds[endpoint].observe(seconds)

    def batched(self, what: str, size: int) -> None:
        """Record the size of a batch that an endpoint or a model has processed."""
        self._batch_sizes.labels(what).observe(size)

    def recommended(self, *, fallback: bool, selectivity: float | None) -> None:
        """Count a list of recommendations. ``selectivity`` is the fraction of videos that pass the filter, if any."""
        self._recommended.inc()
        if fallback:
            self._fallbacks.inc()
        if selectivity is not None:
            self._selectivity.observe(selectivity)

    def _loaded(self, live: LoadedIndex) -> None:
        self._version.clear()
        self._version.labels(live.version, str(live.index.manifest.get("kind"))).set(1)
        self._loads.inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _age_seconds(live: LoadedIndex | None) -> float:
    if live is None:
        return 0.0
    try:
        return time.time() - datetime.fromisoformat(str(live.index.manifest["created_at"])).timestamp()
    except (KeyError, ValueError):
        return time.time() - live.loaded_at
