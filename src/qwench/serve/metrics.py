"""/metrics: how the server does, for Prometheus.

Times are measured here, from the arrival of a request to what its client gets; the engine's own counts come from its
process and begin again at 0 when that is restarted, as Prometheus expects. Knows no endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

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
    ("preemptions", "preemptions", "Answers that gave up their cache blocks for older ones"),
    ("steps", "steps", "Steps of the engine"),
    ("step_tokens", "step_tokens", "Tokens computed in them"),
    ("execute_seconds", "execute_s", "Time spent in them"),
    (
        "waited_seconds",
        "waited_s",
        "Of it, rank 0 waiting for others: for a slow one, or for the network",
    ),
)


class ServerMetrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self._engine, self._admission = service.engine, service.admission
        self._registry = CollectorRegistry()
        self._ttft = self._histogram("time_to_first_token_seconds", "From request to first token", SECONDS)
        self._tpot = self._histogram("time_per_output_token_seconds", "Per token after the first", TOKEN_SECONDS)
        self._whole = self._histogram("request_seconds", "From request to the end of the answer", SECONDS)
        self._finished = {"stop": 0, "length": 0, "error": 0, "abort": 0}
        self._registry.register(self)
        service.engine.on_choice_end = self.observe

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"qwench_{name}", text, buckets=buckets, registry=self._registry)

    def observe(self, times: ChoiceTimes) -> None:
        """Counts an answer that ended."""
        self._finished[times.reason] += 1
        self._whole.observe(times.end_s - times.start_s)
        if times.first_token_s is not None:
            self._ttft.observe(times.first_token_s - times.start_s)
            if times.num_tokens > 1:
                self._tpot.observe((times.end_s - times.first_token_s) / (times.num_tokens - 1))

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        engine, admission = self._engine, self._admission
        for name, source, text in GAUGES:
            yield GaugeMetricFamily(f"qwench_{name}", text, value=engine.metrics.get(source, 0))
        for name, source, text in COUNTERS:
            yield CounterMetricFamily(f"qwench_{name}", text, value=engine.metrics.get(source, 0))
        finished = CounterMetricFamily("qwench_answers", "Answers that ended", labels=["reason"])
        for reason, count in self._finished.items():
            finished.add_metric([reason], count)
        yield finished
        block_tokens = 0 if engine.info is None else engine.info.limits.block_size
        yield GaugeMetricFamily("qwench_kv_block_tokens", "Tokens that a block holds", value=block_tokens)
        yield GaugeMetricFamily("qwench_answers_open", "Answers admitted and not over", value=admission.num_open)
        yield CounterMetricFamily("qwench_requests_refused", "Requests told to come later", value=admission.num_refused)
        yield CounterMetricFamily("qwench_engine_restarts", "Deaths of the engine process", value=engine.num_restarts)
        yield GaugeMetricFamily("qwench_ready", "Whether the model is loaded", value=float(engine.info is not None))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
