"""The daemon's metrics in Prometheus' text format, for `trackctl metrics` and the HTTP listener.

The daemon counts and answers the operation `metrics` with plain values; prometheus_client makes
the text of them here, on the reader's side, so that the writer never formats anything. Nothing
is kept between two calls. Needs prometheus-client, which the extras `cli` and `daemon` install.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["CONTENT_TYPE", "exposition", "total"]

#: What an HTTP response with the text calls it.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Endings that Prometheus reserves for parts of histograms and for counters.
_RESERVED: Final = ("_bucket", "_count", "_sum", "_total")


def exposition(families: Iterable[Sequence[Any]]) -> str:
    """Return families of metrics as Prometheus reads them.

    Every sample has the label `cluster` when the family `trackd_info` is among them, so that the
    texts of several daemons can stand beside each other.

    Args:
        families: as the operation `metrics` gives them (docs/protocol.md): `[name, kind, help,
            [label names], samples]`. A counter's name is without its `_total`. A family of a
            kind that this version does not know, which a newer daemon may send, is left out.

    Raises:
        ModuleNotFoundError: prometheus-client is not installed.
        ValueError: a family is not what the operation gives.
    """
    from prometheus_client import generate_latest
    from prometheus_client.registry import Collector

    families = list(families)
    common = _common_labels(families)

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            for family in families:
                if (metric := _metric(*family)) is not None:
                    for sample in metric.samples:
                        sample.labels.update(common)
                    yield metric

    return generate_latest(Families()).decode()


def total(
    families: Iterable[Sequence[Any]], name: str, labels: Mapping[str, str] | None = None
) -> float:
    """Return the sum over a counter's or gauge's samples; 0 for a family that is not there.

    Args:
        families: as for `exposition`.
        name: of the family.
        labels: only samples with these are counted.
    """
    wanted = labels or {}
    return sum(
        float(value)
        for found, _kind, _help, names, samples in families
        if found == name
        for values, value in samples
        if wanted.items() <= dict(zip(names, values, strict=True)).items()
    )


def _common_labels(families: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Return the labels that every sample gets: the cluster, when the families name it."""
    for name, _kind, _help, labels, samples in families:
        if name == "trackd_info" and "cluster" in labels:
            for values, _value in samples:
                return {"cluster": str(values[labels.index("cluster")])}
    return {}


def _metric(
    name: str, kind: str, text: str, names: Sequence[str], samples: Iterable[Sequence[Any]]
) -> Metric | None:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        UnknownMetricFamily,
    )

    if kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=names)
        for values, buckets, summed in samples:
            bounds = [(str(bound), float(count)) for bound, count in buckets]
            histogram.add_metric(values, bounds, float(summed))
        return histogram
    if kind not in {"counter", "gauge"}:
        return None
    # `trackd_connection_count` is a gauge whose name looks like a part of a histogram. Prometheus
    # accepts such a name only without a type.
    family = UnknownMetricFamily if name.endswith(_RESERVED) else GaugeMetricFamily
    plain = (CounterMetricFamily if kind == "counter" else family)(name, text, labels=names)
    for values, value in samples:
        plain.add_metric(values, float(value))
    return plain
