"""The status as Prometheus metrics, names p2pfed_*."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from p2pfed.daemon.status import Status


class StatusCollector(Collector):
    """Reads the status anew at each scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield _gauge("round", "Round under way, from 0.", status.round.number)
        yield _gauge("healthy", "1 where no health line is an error.", float(status.healthy))
        yield _gauge("delivered", "Neighbours that delivered this round.", status.round.delivered)
        yield _gauge(
            "local_health_score",
            "0 where the event loop is in time, up to 8 where it lags.",
            status.local_health.score,
        )
        yield _gauge("trainer_restarts", "Times the trainer was replaced.", status.trainer.restarts)
        yield _counter("rounds", "Rounds committed since start.", status.totals.rounds_done)
        for name in ("deltas_accepted", "deltas_refused", "deltas_rejected", "strangers_refused"):
            yield _counter(
                name, f"{name.replace('_', ' ')} since start.", getattr(status.totals, name)
            )
        metric = GaugeMetricFamily(
            "p2pfed_metric", "Hold-out metrics of the last round.", labels=["name", "when"]
        )
        for when, values in (("before", status.metrics_before), ("after", status.metrics_after)):
            for name, value in values.items():
                metric.add_metric([name, when], value)
        yield metric
        seconds = GaugeMetricFamily(
            "p2pfed_round_seconds", "Seconds of each phase of the last round.", labels=["phase"]
        )
        for phase, value in status.round.last_seconds.items():
            seconds.add_metric([phase], value)
        yield seconds
        yield from _resources(status)
        yield from _relay(status)
        yield from _privacy(status)
        yield from self._neighbours(status)

    @staticmethod
    def _neighbours(status: Status) -> Iterator[Metric]:
        up = GaugeMetricFamily("p2pfed_neighbour_connected", "1 where linked.", labels=["site"])
        unreachable = GaugeMetricFamily(
            "p2pfed_neighbour_unreachable", "1 where rounds do not wait for it.", labels=["site"]
        )
        trip = GaugeMetricFamily(
            "p2pfed_neighbour_round_trip_seconds", "Smoothed round trip.", labels=["site"]
        )
        sent = CounterMetricFamily("p2pfed_neighbour_sent_bytes", "Bytes sent.", labels=["site"])
        received = CounterMetricFamily(
            "p2pfed_neighbour_received_bytes", "Bytes received.", labels=["site"]
        )
        for neighbour in status.neighbours:
            labels = [neighbour.name]
            up.add_metric(labels, float(neighbour.state == "connected"))
            unreachable.add_metric(labels, float(neighbour.liveness == "unreachable"))
            if neighbour.round_trip_seconds is not None:
                trip.add_metric(labels, neighbour.round_trip_seconds)
            sent.add_metric(labels, neighbour.bytes_sent)
            received.add_metric(labels, neighbour.bytes_received)
        yield from (up, unreachable, trip, sent, received)


def _resources(status: Status) -> Iterator[Metric]:
    used = status.resources
    for name, text, value in (
        ("tasks", "Tasks of the daemon's event loop that are alive.", used.tasks),
        ("open_files", "Open file descriptors of the daemon.", used.open_files),
        ("memory_bytes", "Resident memory of the daemon.", used.memory_bytes),
        ("database_bytes", "Size of the round journal with its log.", used.database_bytes),
    ):
        if value is not None:
            yield _gauge(name, text, value)


def _relay(status: Status) -> Iterator[Metric]:
    if status.relay is None:
        return
    yield _gauge("relay_circuits", "Circuits carried for others now.", status.relay.circuits)
    yield _counter(
        "relay_circuits_opened", "Circuits opened for others.", status.relay.circuits_opened
    )
    yield _counter(
        "relay_carried_bytes", "Bytes carried for others, each once.", status.relay.carried_bytes
    )


def _privacy(status: Status) -> Iterator[Metric]:
    privacy = status.privacy
    if privacy is None:
        return
    yield _gauge("privacy_epsilon_spent", "Epsilon of all training.", privacy.epsilon_spent)
    yield _gauge("privacy_epsilon_left", "Epsilon left of the budget.", privacy.epsilon_left)
    yield _gauge("privacy_delta", "Delta at which epsilon is accounted.", privacy.delta)
    yield _gauge(
        "privacy_training_stopped",
        "1 where nothing more is trained for privacy's sake.",
        float(privacy.stopped is not None),
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"p2pfed_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"p2pfed_{name}", text, value=value)


def render(status: Callable[[], Status]) -> bytes:
    """The whole exposition in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry)
