"""What /metrics tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from minimind_jax.inference.engine import Engine

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "minimind_requests",
            "Answered requests; 499: the client left, 504: out of time, also within a stream",
            ["endpoint", "status"],
            registry=registry,
        )
        self.prompt_tokens = Counter("minimind_prompt_tokens", "Tokens of accepted prompts", registry=registry)
        self.new_tokens = Counter("minimind_generated_tokens", "Tokens generated", registry=registry)
        self.first_token = Histogram(
            "minimind_time_to_first_token_seconds",
            "From a sequence's submission to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "minimind_inter_token_seconds",
            "Between two tokens of a sequence",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        running = Gauge("minimind_sequences_running", "Sequences that are being decoded", registry=registry)
        running.set_function(lambda: engine.n_running)
        waiting = Gauge("minimind_sequences_waiting", "Sequences in the queue", registry=registry)
        waiting.set_function(lambda: engine.n_waiting)
        programs = Gauge("minimind_compiled_programs", "Programs compiled for the device", registry=registry)
        programs.set_function(lambda: len(engine.statistics.programs))

    def count_request(self, path: str, status: int) -> None:
        known = next((known for known in ENDPOINTS if path == known or path.startswith(f"{known}/")), "other")
        self.requests.labels(known, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
