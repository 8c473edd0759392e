"""/metrics: how the server does, for Prometheus.

Times are measured here, from the arrival of a request to what its client gets; the engine's own counts come from its
process and begin again at 0 when that is restarted, as Prometheus expects. Knows no endpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qwench.serve.models.models import Models
from qwench.serve.processes.engine_client import ChoiceTimes
from qwench.serve.service import Service

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
GAUGES = (
    ("requests_running", "num_running", "Answers that the engine computes now"),
    ("requests_waiting", "num_waiting", "Answers that wait for a place or for cache blocks"),
    ("kv_blocks_used", "blocks_used", "Blocks of the KV cache that running answers hold"),
    ("kv_blocks", "blocks_total", "Blocks of the KV cache"),
)
COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Tokens of prompts that began"),
    ("cached_prompt_tokens", "cached_prompt_tokens", "Of these, found in the KV cache"),
    ("generated_tokens", "generated_tokens", "Tokens of answers"),
    ("drafted_tokens", "drafted_tokens", "Tokens guessed by prompt lookup or a draft model"),
    ("accepted_tokens", "accepted_tokens", "Of these, guessed right"),
    ("spec_decode_num_drafts", "drafts", "Times that an answer's step had guesses"),
    ("draft_steps", "draft_steps", "Steps of the draft model"),
    ("draft_seconds", "draft_s", "Time spent in them"),
    ("preemptions", "preemptions", "Answers that gave up their cache blocks for older ones"),
    ("steps", "steps", "Steps of the engine"),
    ("step_tokens", "step_tokens", "Tokens computed in them"),
    ("execute_seconds", "execute_s", "Time spent in them"),
    ("waited_seconds", "waited_s", "Of it, rank 0 waiting for others: for a slow one, or for the network"),
)


class ServerMetrics:
    """All metrics of one server, in a registry of its own; with the label `model` where there are several."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._labels = ["model"] if len(models.services) > 1 else []
        self._registry = CollectorRegistry()
        self._ttft = self._histogram("time_to_first_token_seconds", "From request to first token", SECONDS)
        self._tpot = self._histogram("time_per_output_token_seconds", "Per token after the first", TOKEN_SECONDS)
        self._whole = self._histogram("request_seconds", "From request to the end of the answer", SECONDS)
        self._finished = {
            service: {"stop": 0, "length": 0, "error": 0, "abort": 0} for service in models.services
        }  # fmt: skip
        self._registry.register(self)
        for service in models.services:
            service.engine.on_choice_end = functools.partial(self.observe, service)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"qwench_{name}", text, self._labels, buckets=buckets, registry=self._registry)

    def _of(self, service: Service) -> list[str]:
        """The values of the labels."""
        return [service.name] if self._labels else []

    def observe(self, service: Service, times: ChoiceTimes) -> None:
        """Counts an answer that ended."""
        whole, ttft, tpot = (
            histogram.labels(*self._of(service)) if self._labels else histogram
            for histogram in (self._whole, self._ttft, self._tpot)
        )
        self._finished[service][times.reason] += 1
        whole.observe(times.end_s - times.start_s)
        if times.first_token_s is not None:
            ttft.observe(times.first_token_s - times.start_s)
            if times.num_tokens > 1:
                tpot.observe((times.end_s - times.first_token_s) / (times.num_tokens - 1))

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        for name, source, text in GAUGES:
            yield self._gauge(name, text, functools.partial(_told, source))
        for name, source, text in COUNTERS:
            yield self._counter(name, text, functools.partial(_told, source))
        yield from self._guesses()
        finished = CounterMetricFamily("qwench_answers", "Answers that ended", labels=[*self._labels, "reason"])
        for service, counts in self._finished.items():
            for reason, count in counts.items():
                finished.add_metric([*self._of(service), reason], count)
        yield finished
        yield self._gauge("kv_block_tokens", "Tokens that a block holds", _block_tokens)
        yield self._gauge("answers_open", "Answers admitted and not over", lambda service: service.admission.num_open)
        yield self._counter(
            "requests_refused", "Requests told to come later", lambda service: service.admission.num_refused
        )
        yield self._counter(
            "engine_restarts", "Deaths of the engine process", lambda service: service.engine.num_restarts
        )
        yield self._gauge(
            "ready", "Whether the model is loaded", lambda service: float(service.engine.info is not None)
        )
        if self._labels:
            yield self._counter("model_loads", "How often the model was loaded", self._models.loader.num_loads)

    def _gauge(self, name: str, text: str, value: Callable[[Service], float]) -> Metric:
        return self._family(GaugeMetricFamily(f"qwench_{name}", text, labels=self._labels), value)

    def _counter(self, name: str, text: str, value: Callable[[Service], float]) -> Metric:
        return self._family(CounterMetricFamily(f"qwench_{name}", text, labels=self._labels), value)

    def _family(
        self, family: GaugeMetricFamily | CounterMetricFamily, value: Callable[[Service], float]
    ) -> Metric:  # fmt: skip
        for service in self._models.services:
            family.add_metric(self._of(service), value(service))
        return family

    def _guesses(self) -> Iterable[Metric]:
        """By who guessed, under vLLM's names."""
        for name, text, whole, by_model in (
            ("num_draft_tokens", "Tokens guessed, by method", "drafted_tokens", "draft_model_tokens"),
            ("num_accepted_tokens", "Of these, guessed right", "accepted_tokens", "draft_model_accepted_tokens"),
        ):
            labels = [*self._labels, "method"]
            family = CounterMetricFamily(f"qwench_spec_decode_{name}", text, labels=labels)
            for service in self._models.services:
                of_model = _told(by_model, service)
                family.add_metric([*self._of(service), "draft_model"], of_model)
                family.add_metric([*self._of(service), "ngram"], _told(whole, service) - of_model)
            yield family

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


def _told(source: str, service: Service) -> float:
    """By the engine process."""
    return service.engine.metrics.get(source, 0)


def _block_tokens(service: Service) -> int:
    info = service.engine.info
    return 0 if info is None else info.limits.block_size
