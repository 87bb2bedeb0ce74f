"""What /metrics tells Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from minimind_jax.inference.engine import Engine
from minimind_jax.serving.models import ServedModel

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/api/page",
    "/api/runs",
    "/api/tools",
    "/health",
    "/metrics",
    "/runs",
    "/web",
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True)
class ModelMetrics:
    """Of one model."""

    prompt_tokens: Counter
    new_tokens: Counter
    first_token: Histogram
    inter_token: Histogram


class Metrics:
    """One server's numbers, in a registry of their own; those of models have the label `model`, its first name."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "minimind_requests",
            "Answered requests; 499: the client left, 504: out of time, also within a stream",
            ["endpoint", "status"],
            registry=registry,
        )
        label = ["model"]
        prompt_tokens = Counter("minimind_prompt_tokens", "Tokens of accepted prompts", label, registry=registry)
        new_tokens = Counter("minimind_generated_tokens", "Tokens generated", label, registry=registry)
        first_token = Histogram(
            "minimind_time_to_first_token_seconds",
            "From a sequence's submission to its first token",
            label,
            buckets=_SECONDS,
            registry=registry,
        )
        inter_token = Histogram(
            "minimind_inter_token_seconds",
            "Between two tokens of a sequence",
            label,
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        running = Gauge("minimind_sequences_running", "Sequences that are being decoded", label, registry=registry)
        waiting = Gauge("minimind_sequences_waiting", "Sequences in the queue", label, registry=registry)
        programs = Gauge("minimind_compiled_programs", "Programs compiled for the device", label, registry=registry)

        def watch(name: str, engine: Engine) -> ModelMetrics:
            running.labels(name).set_function(lambda: engine.n_running)
            waiting.labels(name).set_function(lambda: engine.n_waiting)
            programs.labels(name).set_function(lambda: len(engine.statistics.programs))
            return ModelMetrics(
                prompt_tokens.labels(name), new_tokens.labels(name), first_token.labels(name), inter_token.labels(name)
            )

        self._models = {model.name: watch(model.name, model.engine) for model in models}

    def of(self, model: ServedModel) -> ModelMetrics:
        return self._models[model.name]

    def count_request(self, path: str, status: int) -> None:
        known = next((known for known in ENDPOINTS if path == known or path.startswith(f"{known}/")), "other")
        self.requests.labels("/" if path == "/" else known, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
