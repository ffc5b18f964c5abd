"""What an operator watches while a run goes on: the numbers of the newest step, those of the latest
evaluation, and the state of the fleets.

Prometheus format on a loopback port, when one was asked for; nothing that metrics.jsonl or the logs lack.
Left out: what metrics.jsonl has by family, difficulty, style or length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from reasoner.errors import UsageError
from rollouts.fleet import Fleet

LOOPBACK = "127.0.0.1"


class Telemetry(Collector):
    """Holds the newest line of metrics and, once there are any, the fleets; read by the endpoint's thread."""

    def __init__(self) -> None:
        self._fleets: tuple[Fleet, ...] = ()
        self._line: Mapping[str, Any] = {}
        self._evaluation: Mapping[str, Mapping[str, Any]] = {}  # by split

    def watch(self, *fleets: Fleet) -> None:
        self._fleets = fleets

    def publish(self, line: Mapping[str, Any]) -> None:
        self._line = line
        self._evaluation = line.get("eval", self._evaluation)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        replicas = GaugeMetricFamily(
            "reasoner_replicas", "servers and workers by state", labels=["kind", "state"]
        )
        for fleet in self._fleets:
            for state, count in fleet.counts().items():
                replicas.add_metric([fleet.what, state], count)
        yield replicas
        for key, value in self._line.items():
            if isinstance(value, int | float):
                yield GaugeMetricFamily(f"reasoner_{key}", f"{key} of the newest step", value=value)
        seconds = GaugeMetricFamily("reasoner_seconds", "the newest step's seconds", labels=["phase"])
        for phase, value in self._line.get("seconds", {}).items():
            seconds.add_metric([phase], value)
        yield seconds
        rates = GaugeMetricFamily("reasoner_eval", "the latest evaluation", labels=["split", "what"])
        for split, found in self._evaluation.items():
            for what, value in found.items():
                if isinstance(value, int | float):
                    rates.add_metric([split, what], value)
        yield rates

    @contextmanager
    def served(self, port: int) -> Iterator[None]:
        """http://127.0.0.1:PORT/metrics for the block; 0: nothing. UsageError when the port is taken."""
        if not port:
            yield
            return
        collectors = CollectorRegistry()
        collectors.register(self)
        try:
            server, thread = start_http_server(port, LOOPBACK, collectors)
        except OSError as error:
            raise UsageError(f"--metrics-port {port}: {error.strerror}") from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
