"""Builds the status from the parts of a running daemon."""

import os
from collections.abc import Callable, Mapping

import trio

from p2pfed import __version__
from p2pfed.config import Site
from p2pfed.daemon.health import health_of
from p2pfed.daemon.link_state import LinkState
from p2pfed.daemon.links import Links
from p2pfed.daemon.probing import Probing
from p2pfed.daemon.resources import resources_used
from p2pfed.daemon.runtime import NeighbourCounts, Runtime
from p2pfed.daemon.status import (
    DriftStatus,
    LocalHealthStatus,
    ModelStatus,
    NeighbourStatus,
    PrivacyStatus,
    RelayStatus,
    RoundStatus,
    SiteStatus,
    Status,
    TopologyStatus,
    Totals,
    TrainerReport,
)
from p2pfed.daemon.trainer import Trainer
from p2pfed.daemon.transport import Transport
from p2pfed.protocol.commands import NoticeKind
from p2pfed.protocol.neighbours import NEVER_PUBLISHED
from p2pfed.protocol.phases import Phase
from p2pfed.topology import Topology
from p2pfed.topology.file import relay_of


class StatusBuilder:
    """Reads everything anew at each call; nothing it reads blocks."""

    def __init__(
        self,
        site: Site,
        peer_id: str,
        runtime: Runtime,
        trainer: Trainer,
        links: Links,
        transport: Transport,
        probing: Probing,
    ) -> None:
        self._site = site
        self._peer_id = peer_id
        self._runtime = runtime
        self._trainer = trainer
        self._links = links
        self._transport = transport
        self._probing = probing
        self._started_at_seconds = trio.current_time()
        self.strangers_refused = 0
        self.export_errors: Callable[[], Mapping[str, str]] = dict
        self.topology: Topology

    def build(self) -> Status:
        status = Status(
            site=self._site_status(),
            topology=TopologyStatus(
                str(self.topology.path), self.topology.digest.hex(), len(self.topology.names)
            ),
            round=self._round(),
            model=self._model(),
            metrics_before=dict(self._runtime.metrics_before),
            metrics_after=dict(self._runtime.metrics_after),
            metrics_intervals={
                name: list(ends) for name, ends in self._runtime.evaluated.intervals.items()
            },
            calibration=dict(self._runtime.evaluated.calibration),
            drift=self._drift(),
            export_errors=dict(self.export_errors()),
            training_loss=self._runtime.training_loss,
            trainer=self._trainer_report(),
            neighbours=[
                self._neighbour(name) for name in self.topology.all_neighbours(self._site.file.name)
            ],
            totals=self._totals(),
            resources=resources_used(self._runtime.store.database_bytes),
            relay=self._relay(),
            privacy=self._privacy(),
            storage_error=self._storage_error(),
            local_health=LocalHealthStatus(
                self._probing.local_health_score, round(self._probing.lag_seconds, 3)
            ),
        )
        status.health.extend(health_of(status))
        return status

    def _storage_error(self) -> str | None:
        error = self._runtime.storage_error
        return f"{self._site.state_directory}: {error}" if error is not None else None

    def _site_status(self) -> SiteStatus:
        return SiteStatus(
            name=self._site.file.name,
            peer_id=self._peer_id,
            federation=self.topology.file.federation.name,
            federation_id=self._runtime.plan.federation_id.hex(),
            software=f"p2pfed {__version__}",
            config=str(self._site.path),
            pid=os.getpid(),
            uptime_seconds=round(trio.current_time() - self._started_at_seconds, 3),
            listen_addresses=list(self._transport.listen_addresses),
        )

    def _round(self) -> RoundStatus:
        engine, times, now = self._runtime.engine, self._runtime.times, trio.current_time()
        expected = len(self._runtime.plan.weights_of(engine.round_number))
        deadline = engine.deadline_at_seconds
        return RoundStatus(
            number=engine.round_number,
            total=self._runtime.plan.total_rounds,
            phase=engine.phase.value,
            phase_seconds=round(now - times.since_seconds, 3),
            deadline_in_seconds=(
                round(deadline - now, 3)
                if deadline is not None and engine.phase is Phase.COLLECTING
                else None
            ),
            delivered=len(engine.delivered()),
            expected=expected,
            degraded=self._runtime.degraded,
            last_seconds={phase: round(value, 4) for phase, value in times.last.items()},
        )

    def _model(self) -> ModelStatus:
        file = self.topology.file
        return ModelStatus(
            digest=self._runtime.model_digest.hex(),
            parameters=self._runtime.work.dimension,
            schema=self._runtime.plan.schema_digest.hex(),
            rule=file.aggregation.rule,
            codec=file.codec.name,
        )

    def _drift(self) -> list[DriftStatus]:
        return [
            DriftStatus(
                metric=drift.metric,
                since_round=drift.since_round,
                best_round=drift.best_round,
                best=drift.best,
                now=drift.now,
                beyond_interval=drift.beyond_interval,
            )
            for drift in self._runtime.records.drifts
        ]

    def _trainer_report(self) -> TrainerReport:
        status, ready = self._trainer.status, self._trainer.ready
        progress = status.progress
        silent_seconds = None
        if status.heard_at_seconds is not None:
            silent_seconds = round(trio.current_time() - status.heard_at_seconds, 3)
        return TrainerReport(
            state=status.state,
            pid=status.pid,
            device=status.device,
            restarts=status.restarts,
            last_error=status.last_error,
            step=progress.step if progress else None,
            steps=progress.steps if progress else None,
            samples_per_second=progress.samples_per_second if progress else None,
            training_records=ready.training_records,
            holdout_records=ready.holdout_records,
            silent_seconds=silent_seconds,
            patience_seconds=status.patience_seconds,
        )

    def _neighbour(self, name: str) -> NeighbourStatus:
        peer_id = self.topology.peer(name).peer_id_text
        link = self._links.state(peer_id) or LinkState()
        known = self._runtime.engine.neighbours.get(name)
        counts = self._runtime.counts.get(name, NeighbourCounts())
        staleness, at_round = None, link.round_number
        if known is not None and known.held.round_number > NEVER_PUBLISHED:
            staleness = max(0, self._runtime.engine.round_number - known.held.round_number)
            # Its last delta may be newer than its last heartbeat.
            at_round = max(at_round or 0, known.held.round_number)
        return NeighbourStatus(
            name=name,
            peer_id=peer_id,
            state=link.phase,
            address=link.address,
            direction=link.direction,
            round_trip_seconds=link.round_trip_seconds,
            round=at_round,
            phase=link.remote_phase,
            last_delta_age_seconds=(
                round(trio.current_time() - counts.last_delta_at_seconds, 3)
                if counts.last_delta_at_seconds is not None
                else None
            ),
            staleness=staleness,
            weight=counts.weight,
            bytes_sent=self._transport.bytes_sent(peer_id),
            bytes_received=self._transport.bytes_received(peer_id),
            last_error=link.last_error,
            refusal=link.refusal,
            quarantined=known.quarantined if known is not None else False,
            software=link.software,
            relay=self._relay_name(link),
            liveness=self._probing.liveness(name).value,
            vouched_by=list(self._probing.vouched_by(name)),
        )

    def _relay_name(self, link: LinkState) -> str | None:
        relay = relay_of(link.address) if link.address is not None else None
        peer = self.topology.peer_by_id(relay) if relay is not None else None
        return peer.name if peer is not None else relay

    def _relay(self) -> RelayStatus | None:
        traffic = self._transport.relayed()
        if traffic is None:
            return None
        return RelayStatus(traffic.circuits, traffic.circuits_opened, traffic.carried_bytes)

    def _privacy(self) -> PrivacyStatus | None:
        privacy = self._runtime.privacy
        if privacy is None:
            return None
        terms, ledger = privacy.terms, privacy.ledger
        return PrivacyStatus(
            epsilon_spent=privacy.epsilon_spent,
            epsilon_left=max(0.0, terms.epsilon - privacy.epsilon_spent),
            epsilon_budget=terms.epsilon,
            delta=terms.delta,
            noise_multiplier=terms.noise_multiplier,
            clip_norm=terms.clip_norm,
            sampling_rate=privacy.sampling_rate,
            charged_rounds=ledger.entries if ledger is not None else 0,
            assumed_rounds=ledger.assumed if ledger is not None else 0,
            ledger_damaged=privacy.is_damaged,
            stopped=privacy.stopped,
        )

    def _totals(self) -> Totals:
        peers = [
            self.topology.peer(name).peer_id_text
            for name in self.topology.all_neighbours(self._site.file.name)
        ]
        runtime = self._runtime
        return Totals(
            rounds_done=runtime.rounds_done,
            bytes_sent=sum(self._transport.bytes_sent(peer) for peer in peers),
            bytes_received=sum(self._transport.bytes_received(peer) for peer in peers),
            deltas_accepted=runtime.deltas_accepted,
            deltas_refused=runtime.deltas_rejected[NoticeKind.DELTA_REFUSED.value],
            deltas_rejected=runtime.deltas_rejected[NoticeKind.DELTA_REJECTED.value],
            strangers_refused=self.strangers_refused,
        )
