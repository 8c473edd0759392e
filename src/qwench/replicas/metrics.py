"""/metrics of all replicas as one text: each sample says whose it is. Called by ingress.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


def merged(texts: Mapping[str, str]) -> bytes:
    """texts: by replica, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Labelled(texts))
    return generate_latest(registry)


class _Labelled:
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        return families.values()
