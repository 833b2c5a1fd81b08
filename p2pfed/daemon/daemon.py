"""The daemon: builds every part of a site, wires them together and runs them until stopped."""

import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import trio

from p2pfed import __version__
from p2pfed.aggregation import Mixing
from p2pfed.config import Site
from p2pfed.daemon import netcheck
from p2pfed.daemon.addresses import AddressBook
from p2pfed.daemon.announcing import Announcing
from p2pfed.daemon.control import (
    EvaluateResult,
    ExportResult,
    PingResult,
    ReloadResult,
    serve_control,
)
from p2pfed.daemon.correspondence import Correspondence
from p2pfed.daemon.delta_exchange import DeltaReceiver
from p2pfed.daemon.exporting import Exporting, begin_of
from p2pfed.daemon.links import Links
from p2pfed.daemon.logs import RecentLines
from p2pfed.daemon.membership import Membership
from p2pfed.daemon.notify import notify, notify_reloading
from p2pfed.daemon.outbox import Outbox
from p2pfed.daemon.private_training import private_training
from p2pfed.daemon.probing import Probing
from p2pfed.daemon.relaying import Relaying, terms_of
from p2pfed.daemon.reloading import Reload, read_again
from p2pfed.daemon.reporting import ReportKeeper
from p2pfed.daemon.resources import set_aside_what_stays
from p2pfed.daemon.round_work import RoundWork
from p2pfed.daemon.runtime import Runtime
from p2pfed.daemon.status import Status
from p2pfed.daemon.status_builder import StatusBuilder
from p2pfed.daemon.store import Store
from p2pfed.daemon.trainer import Trainer
from p2pfed.daemon.transport import ConnectionObserver, Direction, Transport
from p2pfed.errors import ConfigurationError, ControlError, Problem, TransportError
from p2pfed.keys import Identity
from p2pfed.privacy_terms import privacy_terms
from p2pfed.protocol import events as on
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import issue_address_record, issue_certificate
from p2pfed.protocol.evidence import HeaderLog
from p2pfed.protocol.own_state import OwnState
from p2pfed.protocol.phases import Phase
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.rounds import RoundEngine
from p2pfed.topology import Topology
from p2pfed.topology.plan import neighbour_ids_of, peer_ids_of, plan_of
from p2pfed.training import frames

log = structlog.get_logger(__name__)

PING_TIMEOUT_SECONDS = 5.0
MAX_REPORTED_STRANGERS = 1000


class TransportMaker:
    """Makes the transport once the daemon that observes it exists; tests pass another."""

    def __call__(
        self, identity: Identity, listen: tuple[str, ...], observer: ConnectionObserver
    ) -> Transport:
        # Imported late: libp2p costs half a second, and an error in a file should not wait.
        from p2pfed.daemon.libp2p_transport import Libp2pTransport  # noqa: PLC0415

        return Libp2pTransport(identity.seed, listen, observer)


def trainer_request(site: Site, topology: Topology) -> frames.Open:
    """What the trainer process of this site is told."""
    task = topology.file.task
    privacy = privacy_terms(site, topology)
    return frames.Open(
        task_kind=task.kind,
        task_class=task.class_,
        task_path=str(site.task_directory) if site.task_directory else None,
        site=site.file.name,
        options=dict(task.options),
        data=site.data,
        seed=task.seed,
        device=site.file.training.device,
        minimum_records=max(
            topology.file.privacy.minimum_records, site.file.privacy.minimum_records
        ),
        threads=site.file.training.threads,
        maximum_local_steps=site.file.training.maximum_local_steps,
        topology_file=str(topology.path),
        site_file=str(site.path),
        noise_multiplier=privacy.noise_multiplier if privacy is not None else None,
        clip_norm=privacy.clip_norm if privacy is not None else None,
        delta=privacy.delta if privacy is not None else None,
    )


class Daemon:
    """One running site; also what its operator's commands act on.

    ``start`` fills in the parts in the order in which they need one another. ``make_work`` takes
    what :class:`RoundWork` does; only a demonstration of a hostile site passes another.
    """

    def __init__(
        self,
        site: Site,
        topology: Topology,
        identity: Identity,
        store: Store,
        recent: RecentLines,
        make_transport: TransportMaker,
        make_work: Callable[..., RoundWork] = RoundWork,
    ) -> None:
        self.site = site
        self.topology = topology
        self.identity = identity
        self.store = store
        self.recent = recent
        self._make_transport = make_transport
        self._make_work = make_work
        self._name = site.file.name
        self._trainer = Trainer(
            trainer_request(site, topology),
            on_progress=lambda _: self._changed(),
            on_log=lambda line: log.info("trainer", line=line),
        )
        self._change = trio.Event()
        self._one_reload = trio.Lock()
        self._runtime: Runtime
        self._links: Links
        self._transport: Transport
        self._membership: Membership
        self._probing: Probing
        self._status: StatusBuilder
        self._book: AddressBook
        self._relaying: Relaying
        self._report = ReportKeeper(site)
        self._announcing: Announcing

    async def run(self) -> None:
        """Run until the operator stops the daemon.

        :raises ConfigurationError: the site's data, task or files do not fit.
        :raises TransportError: an address cannot be listened on.
        :raises StoreError: the state directory cannot be used.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._trainer.run)
            plan = self._bind()
            # Reads every vector and ciphertext that is kept.
            await trio.to_thread.run_sync(self._recover)
            self._build(plan)
            if self._runtime.privacy is not None:
                await self._runtime.privacy.reckon()
            await nursery.start(self._heed_signals)
            await nursery.start(
                serve_control,
                self,
                self.site.control_socket,
                self.site.file.metrics.address,
            )
            await nursery.start(self._transport.run)
            self._announcing.announce()
            await nursery.start(self._runtime.outbox.run)
            await nursery.start(self._links.run)
            nursery.start_soon(self._probing.run)
            if self.site.file.relay.use:
                nursery.start_soon(self._relaying.run)
            await self._start_mdns(nursery)
            nursery.start_soon(self._run_rounds, nursery.cancel_scope)
            nursery.start_soon(self._set_aside_what_stays)
            nursery.start_soon(self._keep_report)
            self._start_export(nursery)
            notify("READY=1", f"STATUS=round {self._runtime.engine.round_number}")
            log.info(
                "daemon started",
                site=self._name,
                peer_id=self.identity.peer_id,
                version=__version__,
                addresses=list(self._transport.listen_addresses),
                topology=self.topology.digest.hex()[:12],
            )
        await self._report.write(self.topology, self._runtime.rounds_done)

    async def _keep_report(self) -> None:
        while True:
            done = self._runtime.rounds_done
            finished = self._runtime.engine.phase is Phase.FINISHED
            if self._report.is_due(done, finished=finished):
                await self._report.write(self.topology, done)
            await self._change.wait()

    def _start_export(self, nursery: trio.Nursery) -> None:
        """Export each round's figures, where the site file says so."""
        federation_id = self._runtime.plan.federation_id.hex()
        begin = begin_of(self.site, self.topology, federation_id)
        if begin is not None:
            exporting = Exporting(begin)
            self._runtime.recorded = exporting.offer
            self._status.export_errors = lambda: exporting.errors
            nursery.start_soon(exporting.run)

    async def _set_aside_what_stays(self) -> None:
        """Once when everything is built, and again when the first round has loaded its kernels."""
        set_aside_what_stays()
        while self._runtime.rounds_done == 0:
            await self._change.wait()
        set_aside_what_stays()

    async def _start_mdns(self, nursery: trio.Nursery) -> None:
        """Find members on the local network, unless the site is on loopback alone."""
        from p2pfed.daemon.mdns import Mdns, announceable  # noqa: PLC0415 - only where it is used

        listening = self._transport.listen_addresses
        if not self.site.file.listen.mdns or (listening and not announceable(listening)):
            return

        def heard(peer_id: str, address: str) -> None:
            if self._book.learn_hint(peer_id, address):
                self._links.nudge(peer_id)

        nursery.start_soon(Mdns(self.identity.peer_id, listening, heard).run)

    async def _run_rounds(self, everything: trio.CancelScope) -> None:
        await self._runtime.run()
        notify("STOPPING=1")
        log.info("stopping", round=self._runtime.engine.round_number)
        await self._links.say_goodbye("its operator stopped it")
        everything.cancel()

    def _bind(self) -> FederationPlan:
        """This site's plan, once its state is known to belong to this federation."""
        ready = self._trainer.ready
        self._check_model_size(ready.dimension)
        plan = plan_of(self.topology, self._name, ready.schema_digest, self._trainer.genesis_digest)
        self.store.bind(plan.federation_id)
        return plan

    def _recover(self) -> None:
        floats = self._trainer.ready.state_floats
        for damaged in self.store.recover(self._trainer.genesis_digest, floats):
            log.error("a damaged file of the state is given up", path=str(damaged))

    def _build(self, plan: FederationPlan) -> None:
        work = self._make_work(
            self.store,
            self.identity,
            self._trainer.genesis,
            codec=self.topology.file.codec.name,
            mixing=Mixing.of(self.topology.file),
        )
        headers = HeaderLog(self.store.headers())
        retained = work.retained()
        generation = self.store.generation()
        engine = RoundEngine(
            plan,
            OwnState(
                generation.round_number if generation else 0,
                work.own_digest,
                self.store.last_published(),
                self.store.restored(),
                generation.since_round if generation else 0,
            ),
            work.replica_states(),
            retained,
            headers,
            self.store.quarantined(),
            self.store.standings(),
        )
        self._restore_trainer(self._trainer.ready)
        self._runtime = Runtime(
            engine=engine,
            plan=plan,
            headers=headers,
            work=work,
            store=self.store,
            trainer=self._trainer,
            peer_ids=peer_ids_of(self.topology),
            privacy=private_training(
                self.site,
                self.topology,
                self.identity,
                self.store,
                plan.federation_id,
                self._trainer,
            ),
        )
        self._runtime.changed = self._changed
        self._connect_parts()

    def _check_model_size(self, dimension: int) -> None:
        allowed = self.site.file.limits.maximum_model_megabytes
        megabytes = 4 * dimension / 1e6
        if megabytes > allowed or dimension > limits.MAX_PARAMETERS:
            raise ConfigurationError(
                [
                    Problem(
                        self.site.path,
                        "limits.maximum_model_megabytes",
                        str(allowed),
                        f"the task's model has {megabytes:.0f} MB",
                        f"raise it (at most {4 * limits.MAX_PARAMETERS // 10**6}), or use a "
                        "smaller model",
                    )
                ]
            )

    def _restore_trainer(self, ready: frames.Ready) -> None:
        """Give the trainer the model and the site state that the store names."""
        generation = self.store.generation()
        if generation is None:
            self._trainer.parameters_in[:] = self._trainer.genesis
            return
        model = self.store.vector(generation.model, ready.dimension)
        site_state = self.store.vector(generation.site_state, ready.state_floats)
        if generation.published:
            self._trainer.parameters_out[:] = model
            self._trainer.state_out[:] = site_state
        self._trainer.parameters_in[:] = model
        self._trainer.state_in[:] = site_state
        log.info("state restored", round=generation.round_number, published=generation.published)

    def _connect_parts(self) -> None:
        runtime = self._runtime
        relay = self.site.file.relay
        self._book = AddressBook(self._listed_addresses(), use_relays=relay.use)
        self._announcing = Announcing(self.site, self.identity, self._neighbour_ids)
        self._membership = Membership(
            runtime,
            self.topology,
            self._book,
            own_name=self._name,
            certificate=issue_certificate(self.identity),
            address_record=issue_address_record(self.identity, 0, ()),
            outbid=self._announcing.outbid,
        )
        self._transport = self._make_transport(self.identity, self.site.file.listen.addresses, self)
        self._transport.set_roster(self._roster())
        self._links = Links(
            self._transport,
            self.identity.peer_id,
            self._book,
            self._membership,
            random.SystemRandom(),
            reachable=self.site.reachable,
        )
        if relay.enabled:
            self._transport.relay_for_others(terms_of(relay))
        self._relaying = Relaying(
            self._transport,
            self._links.relays,
            self._book,
            self.identity.peer_id,
            reachable=self.site.reachable,
            neighbours=self._neighbour_ids,
            unlinked=self._links.unlinked,
            changed=self._announcing.relays_changed,
        )
        self._announcing.connect(self._transport, self._relaying, self._membership, self._links)
        self._membership.links = runtime.links = self._links
        self._probing = self._membership.probing = Probing(
            runtime, self._links, self._transport, self.topology, self._name
        )
        self._links.set_neighbours(self._neighbour_ids())
        correspondence = Correspondence(runtime, self._membership, self._links, self.identity)
        runtime.outbox = Outbox(self._transport, self._links, self.identity, correspondence.sent)
        receiver = DeltaReceiver(self.store.spool, runtime.work.dimension, correspondence.handler)
        self._transport.set_handler(limits.DELTA_PROTOCOL, receiver.handle)
        self._status = StatusBuilder(
            self.site,
            self.identity.peer_id,
            runtime,
            self._trainer,
            self._links,
            self._transport,
            self._probing,
        )
        self._status.topology = self.topology

    def _listed_addresses(self) -> dict[str, tuple[str, ...]]:
        return {peer.peer_id_text: peer.addresses for peer in self.topology.file.peers}

    def _roster(self) -> list[str]:
        return [peer.peer_id_text for peer in self.topology.file.peers if peer.name != self._name]

    def _neighbour_ids(self) -> Mapping[str, str]:
        return neighbour_ids_of(self.topology, self._name)

    async def _heed_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            stopping = False
            async for number in signals:
                if number == signal.SIGHUP:
                    try:
                        await self.reload()
                    except (ConfigurationError, ControlError) as error:
                        log.warning("reload refused, nothing changed", reason=str(error))
                elif stopping:
                    raise KeyboardInterrupt
                else:
                    stopping = True
                    self.stop()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    def connected(self, peer_id: str, address: str, direction: Direction) -> None:
        log.debug("connected", peer=peer_id, address=address, direction=direction)
        self._links.nudge(peer_id)

    def disconnected(self, peer_id: str, reason: str) -> None:
        log.debug("disconnected", peer=peer_id, reason=reason)

    def refused(self, peer_id: str | None, address: str | None, reason: str) -> None:
        self._status.strangers_refused += 1
        if self._status.strangers_refused <= MAX_REPORTED_STRANGERS:
            log.warning("stranger refused", peer=peer_id, address=address, reason=reason)

    def status(self) -> Status:
        return self._status.build()

    async def changed(self) -> None:
        await self._change.wait()

    def stop(self) -> None:
        self._runtime.dispatch(on.StopRequested())

    async def ping(self, site: str) -> PingResult:
        """:raises ControlError: no neighbour of that name, or no answer."""
        if site not in self.topology.all_neighbours(self._name):
            known = ", ".join(self.topology.all_neighbours(self._name))
            raise ControlError(f"{site!r} is no neighbour of {self._name}; those are: {known}")
        peer_id = self.topology.peer(site).peer_id_text
        self._links.nudge(peer_id)
        try:
            seconds = await self._links.ping(peer_id, PING_TIMEOUT_SECONDS)
        except TransportError as error:
            state = self._links.state(peer_id)
            why = state.refusal or state.last_error if state is not None else None
            raise ControlError(f"{site}: {error}" + (f"; {why}" if why else "")) from error
        path = self._transport.path(peer_id)
        return PingResult(
            site,
            seconds,
            path.address if path else None,
            path.direction if path else None,
            self._membership.name_of(path.relay) if path and path.relay else None,
        )

    async def netcheck(self) -> netcheck.Report:
        return await netcheck.check_running(
            self.site,
            self.topology,
            self.identity.peer_id,
            links=self._links,
            transport=self._transport,
            book=self._book,
            relays_held=self._relaying.held,
        )

    async def reload(self) -> ReloadResult:
        """Read the topology file again; on any error the running one stays.

        :raises ConfigurationError: it is not sound, or changes what needs a restart.
        """
        async with self._one_reload:
            notify_reloading()
            try:
                found = await self._read_again()
            finally:
                notify("READY=1")
            if found is None:
                return ReloadResult(self.topology.digest.hex(), ["nothing changed"])
            self._take_topology(found)
            log.info(
                "topology reloaded",
                topology=found.topology.digest.hex()[:12],
                changes=list(found.changes),
            )
            # Bounded in time; given up half-way, links would go on under the old file.
            with trio.CancelScope(shield=True):
                await self._change_links(found)
            return ReloadResult(found.topology.digest.hex(), list(found.changes))

    async def _change_links(self, found: Reload) -> None:
        # Whoever is no member any more is told so before the roster shuts it out.
        await self._links.part(found.farewells)
        self._transport.set_roster(self._roster())
        self._links.set_neighbours(self._neighbour_ids())
        async with trio.open_nursery() as nursery:
            for peer_id in self._neighbour_ids():
                # Both ends must compare the new file; who has not reloaded yet says so.
                nursery.start_soon(self._links.reconnect, peer_id, "the topology file was reloaded")

    async def _read_again(self) -> Reload | None:
        return await trio.to_thread.run_sync(
            read_again, self.site, self.identity, self.topology, self._runtime.plan
        )

    def _take_topology(self, found: Reload) -> None:
        """Put a topology in force, all of it at once; the links follow."""
        former = self._neighbour_ids()
        for peer_id in found.farewells:
            # When its link ends, nobody has its name any more.
            self._runtime.dispatch(on.LinkDown(former[peer_id]))
            self._runtime.outbox.forget(peer_id)
        self.topology = self._status.topology = found.topology
        self._membership.change_topology(found.topology)
        self._book.set_listed(self._listed_addresses())
        self._runtime.change_plan(found.plan, peer_ids_of(found.topology))

    async def export(self, path: Path) -> ExportResult:
        """:raises TrainingError: the file cannot be written."""
        runtime = self._runtime
        round_number, model = runtime.engine.round_number, runtime.model_digest
        exported = await self._trainer.export(
            path,
            {
                "format": "p2pfed/1",
                "federation": self.topology.file.federation.name,
                "federation_id": runtime.plan.federation_id.hex(),
                "site": self._name,
                "round": str(round_number),
                "model_digest": model.hex(),
                "schema_digest": runtime.plan.schema_digest.hex(),
                "topology_digest": self.topology.digest.hex(),
                "rule": self.topology.file.aggregation.rule,
                "software": f"p2pfed {__version__}",
            },
        )
        await runtime.store_export(
            {
                "round": round_number,
                "path": exported.path,
                "model": model.hex(),
                "sha256": exported.sha256.hex(),
                "exported_at_seconds": int(time.time()),
            }
        )
        return ExportResult(exported.path, exported.size_bytes, round_number, model.hex())

    async def evaluate(self, data: Path) -> EvaluateResult:
        """:raises DataError: the file does not fit the task."""
        evaluated = await self._trainer.evaluate_file(data)
        return EvaluateResult(
            dict(evaluated.metrics),
            evaluated.records,
            dict(evaluated.intervals),
            dict(evaluated.calibration),
        )
