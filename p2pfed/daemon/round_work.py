"""What a round does to vectors: publish the own one, rebuild neighbours', fold them in.

Everything here blocks and is heavy; the runtime calls it in worker threads. Vectors are
mapped files, read and written in chunks, so that a model may be larger than memory.
"""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pfed.aggregation import Mixing, NeighbourModel, Outcome, gather
from p2pfed.daemon.second_stage import SecondStage
from p2pfed.daemon.sendable import Sendable
from p2pfed.daemon.store import Generation, Store, StoredReplica
from p2pfed.errors import RemoteProtocolError
from p2pfed.keys import Identity
from p2pfed.protocol import commands as do
from p2pfed.protocol import limits
from p2pfed.protocol.codec_kernels import squared_norm
from p2pfed.protocol.codecs import get_codec
from p2pfed.protocol.digests import vector_bytes, vector_digest
from p2pfed.protocol.envelope import PAYLOAD_KEY_BYTES, PayloadContext
from p2pfed.protocol.header import Header, Kind, SignedHeader, sign_header
from p2pfed.protocol.neighbours import NOTHING_HELD, ReplicaState, Standing
from p2pfed.protocol.plan import FederationPlan
from p2pfed.protocol.publishing import Publication, Sealed, publish
from p2pfed.protocol.receiving import Application

NORM_SAMPLES = 64  # accepted delta norms from which the running median is taken
NORM_SAMPLES_NEEDED = 8  # fewer say too little to refuse anything by
# Beyond so many running medians a delta is damage, not training; but one that is no longer than
# the model itself is believed: who was away comes back with all that it missed, and near the end
# of training usual deltas are next to nothing.
NORM_BOUND_FACTOR = 1000.0
MIXING_CHUNK_PARAMETERS = 1 << 16
SNAPSHOT_CODEC = "float32"
ROUNDING_DOMAIN = b"p2pfed/1 rounding\x00"
ROUNDING_SEED_BYTES = 8
ROUND_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Mixed:
    """The model after aggregation, on disk and mapped, with what the rule reports.

    ``consensus_distance``: Euclidean norm of the trained model less this one, over the norm of the
    trained one; None where nothing was trained.
    """

    digest: bytes
    model: npt.NDArray[np.float32]
    outcome: Outcome
    consensus_distance: float | None = None


class RoundWork:
    """The vectors of one peer and what is done with them; one call at a time.

    :param genesis: the model all peers start from, shape (d,), float32.
    :param mixing: the federation's rule and how it is applied.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        genesis: npt.NDArray[np.float32],
        *,
        codec: str,
        mixing: Mixing,
    ) -> None:
        self._store = store
        self._identity = identity
        self._genesis = genesis
        self._zero = np.broadcast_to(np.float32(0.0), genesis.shape)
        self.genesis_digest = vector_digest(genesis)
        self.dimension = genesis.shape[0]
        self._codec = codec
        self._mixing = mixing
        self._replicas: dict[str, StoredReplica] = store.replicas(self.dimension)
        self._delta_norms: deque[float] = deque(maxlen=NORM_SAMPLES)
        self._model_norm = 0.0
        self._deltas_until_measured = 0
        generation = store.generation()
        self._start_digest = store.round_start(self.genesis_digest)
        self.own_digest = generation.replica if generation else self.genesis_digest
        self._trained_digest = (
            generation.model if generation and generation.published else self.genesis_digest
        )
        self._site_state_digest = generation.site_state if generation else None
        self._since_round = generation.since_round if generation else 0
        self._standings: Sequence[Standing] = store.standings()
        self._envelopes: dict[bytes, Sendable] = {}  # by header digest, oldest first
        for item in store.envelopes():
            self._retain(item)

    @property
    def spool(self) -> Path:
        """Where payloads that are being received are kept."""
        return self._store.spool

    def replica_states(self) -> dict[str, ReplicaState]:
        return {site: stored.state for site, stored in self._replicas.items()}

    def _own_replica(self) -> npt.NDArray[np.float32]:
        return self._own_vector(self.own_digest)

    def _own_vector(self, digest: bytes) -> npt.NDArray[np.float32]:
        """One that this peer made: the genesis model is stored nowhere."""
        if digest == self.genesis_digest:
            return self._genesis
        return self._store.vector(digest, self.dimension)

    def _context(
        self, plan: FederationPlan, kind: Kind, codec: str, round_number: int, sequence: int
    ) -> PayloadContext:
        shape = get_codec(codec)
        return PayloadContext(
            federation_id=plan.federation_id,
            sender=self._identity.public_key,
            kind=kind,
            round_number=round_number,
            sequence=sequence,
            codec=codec,
            payload_bytes=shape.payload_bytes(self.dimension),
            chunk_count=shape.chunk_count(self.dimension),
        )

    def _sign(
        self,
        plan: FederationPlan,
        context: PayloadContext,
        sealed: Sealed,
        *,
        previous: bytes,
        replica_before: bytes,
        since_round: int,
        privacy_spend: float,
    ) -> SignedHeader:
        header = Header(
            version=limits.PROTOCOL_VERSION,
            federation_id=context.federation_id,
            kind=context.kind,
            sender=context.sender,
            topology_digest=plan.topology_digest,
            schema_digest=plan.schema_digest,
            round_number=context.round_number,
            sequence=context.sequence,
            since_round=since_round,
            previous=previous,
            replica_before=replica_before,
            replica_after=sealed.replica_after,
            codec=context.codec,
            key_commitment=sealed.key_commitment,
            chunks_root=sealed.chunks_root,
            chunk_count=context.chunk_count,
            payload_bytes=context.payload_bytes,
            privacy_spend=privacy_spend,
            time_seconds=int(time.time()),
        )
        return sign_header(self._identity, header)

    def _rounding_seed(self, context: PayloadContext) -> int:
        """The 64-bit seed of a round's stochastic rounding.

        It follows from the round, so that a delta that a crash took before it was durable is
        encoded alike the next time, and from a secret, so that nobody else can tell which way a
        parameter was rounded. The payload is sealed under a new random key each time: two
        ciphertexts under one key and nonce there never are, even if the change differs.
        """
        message = context.federation_id + context.round_number.to_bytes(ROUND_NUMBER_BYTES)
        return int.from_bytes(self._identity.derive(ROUNDING_DOMAIN, message, ROUNDING_SEED_BYTES))

    def publish(
        self,
        command: do.Publish,
        plan: FederationPlan,
        trained: npt.NDArray[np.float32],
        site_state: npt.NDArray[np.float32],
        privacy_spend: float = 0.0,
    ) -> Sendable:
        """Encode, seal and sign the trained model's change, and make all of it durable.

        :param trained: shape (d,), float32.
        :param site_state: shape (s,), float32; what this site's training keeps.
        :param privacy_spend: epsilon of all local training so far, as the header declares it.
        """
        against_genesis = command.replica_before == self.genesis_digest
        key = os.urandom(PAYLOAD_KEY_BYTES)
        context = self._context(
            plan, Kind.DELTA, self._codec, command.round_number, command.sequence
        )
        publication = Publication(
            trained,
            self._genesis if against_genesis else self._own_replica(),
            context=context,
            key=key,
            seed=self._rounding_seed(context),
        )
        with ThreadPoolExecutor(1) as beside:
            # Hashing and storing the trained model takes as long as sealing its change does.
            stored = beside.submit(self._store.put_vector, trained)
            sealed = self._seal(publication, context)
        signed = self._sign(
            plan,
            context,
            sealed,
            previous=command.previous,
            replica_before=command.replica_before,
            since_round=command.since_round,
            privacy_spend=privacy_spend,
        )
        self._trained_digest = stored.result()
        self._site_state_digest = self._store.put_vector(site_state)
        generation = Generation(
            round_number=command.round_number,
            published=True,
            model=self._trained_digest,
            replica=sealed.replica_after,
            site_state=self._site_state_digest,
            since_round=command.since_round,
        )
        self._store.commit_published(generation, signed, sealed.chunk_digests, key)
        self.own_digest = sealed.replica_after
        item = Sendable(
            signed, sealed.chunk_digests, key, self._store.ciphertext_path(command.sequence)
        )
        self._retain(item)
        return item

    def _seal(self, publication: Publication, context: PayloadContext) -> Sealed:
        """Encode in this thread, seal and write the ciphertext in another; both durable."""
        after = self._store.new_vector_file("replica", self.dimension)
        outbox_file = self._store.outbox_file(context.sequence, context.payload_bytes)
        try:
            with outbox_file as ciphertext, SecondStage() as sealing:

                def seal(index: int, encoded: bytes) -> None:
                    ciphertext.write(publication.seal(index, encoded))

                for index in range(publication.chunk_count):
                    encoded, part = publication.encode(index)
                    sealing.submit(partial(seal, index, encoded))
                    after.write(vector_bytes(part))
                sealing.submit(ciphertext.sync)
                after.sync()
            sealed = publication.finish()
            self._store.keep_vector(after, sealed.replica_after)
        finally:
            after.discard()
        return sealed

    def envelope(self, header_digest: bytes) -> Sendable | None:
        """A retained own delta, or None where it is too old."""
        return self._envelopes.get(header_digest)

    def retained(self) -> list[SignedHeader]:
        """The headers of the own deltas that can be sent again, oldest first."""
        return [item.signed for item in self._envelopes.values()]

    def _retain(self, item: Sendable) -> None:
        self._envelopes[item.signed.digest] = item
        while len(self._envelopes) > limits.RETAINED_DELTAS:
            del self._envelopes[next(iter(self._envelopes))]

    def snapshot(self, published: SignedHeader, plan: FederationPlan, path: Path) -> Sendable:
        """Seal the own published replica whole, for a neighbour that lost track of it.

        It restates what ``published`` brought about, under the same round and sequence.
        """
        key = os.urandom(PAYLOAD_KEY_BYTES)
        header = published.header
        context = self._context(
            plan, Kind.SNAPSHOT, SNAPSHOT_CODEC, header.round_number, header.sequence
        )
        whole = Publication(self._own_replica(), self._zero, context=context, key=key, seed=0)
        with path.open("wb") as file:
            sealed = publish(whole, write=file.write, keep=lambda _: None)
        signed = self._sign(
            plan,
            context,
            sealed,
            previous=published.digest,
            replica_before=NOTHING_HELD,
            since_round=header.since_round,
            privacy_spend=header.privacy_spend,
        )
        return Sendable(signed, sealed.chunk_digests, key, path, throw_away=True)

    def apply(self, site: str, signed: SignedHeader, chunks: Iterable[bytes]) -> None:
        """Move a neighbour's replica on by a received payload.

        The new replica goes to the neighbour's other slot, so that a payload that turns out to
        lie leaves the old one as it was.

        :param chunks: the decrypted payload, in order.
        :raises RemoteProtocolError: it is not what its header promises.
        """
        header = signed.header
        stored = self._replicas.get(site)
        slot = 1 - stored.slot if stored else 0
        snapshot = header.kind is Kind.SNAPSHOT
        application = Application(
            header,
            self._zero if snapshot else self._base(site, header),
            max_norm=None if snapshot else self._norm_bound(),
        )
        with self._store.replica_file(site, slot, 4 * self.dimension) as file:

            def keep(part: npt.NDArray[np.float32]) -> None:
                application.hash(part)
                file.write(vector_bytes(part))

            with SecondStage() as keeping:
                for chunk in chunks:
                    keeping.submit(partial(keep, application.decode(chunk)))
            applied = application.finish()
        if not snapshot:
            self._delta_norms.append(applied.norm)
            self._deltas_until_measured = max(0, self._deltas_until_measured - 1)
        state = ReplicaState.after(header)
        self._replicas[site] = StoredReplica(state, slot)

    def _base(self, site: str, header: Header) -> npt.NDArray[np.float32]:
        if header.replica_before == self.genesis_digest:
            return self._genesis
        stored = self._replicas.get(site)
        if stored is None or stored.state.replica != header.replica_before:
            raise RemoteProtocolError("the delta builds on a replica that is not held")
        return self._replica(site)

    def _norm_bound(self) -> float | None:
        if len(self._delta_norms) < NORM_SAMPLES_NEEDED:
            return None
        if self._deltas_until_measured == 0:
            self._model_norm = math.sqrt(squared_norm(self._own_replica()))
            self._deltas_until_measured = NORM_SAMPLES
        typical = statistics.median(self._delta_norms)
        return max(NORM_BOUND_FACTOR * typical, self._model_norm)

    def _replica(self, site: str) -> npt.NDArray[np.float32]:
        return self._store.replica(site, self._replicas[site].slot, self.dimension)

    def mix(self, command: do.Aggregate, plan: FederationPlan) -> Mixed:
        """x = y + gamma (R(r; r_1..r_k) - r): fold the neighbours' replicas in.

        Both ends of an edge mix the same two published replicas, so what the codec lost stays
        with its owner and goes out with the next delta.

        :raises AggregationError: the rule refuses an input; it names the neighbour.
        """
        own = self._own_replica()
        trained = self._store.vector(self._trained_digest, self.dimension)
        pending = self._store.new_vector("mixed", self.dimension)
        models = [
            NeighbourModel(i.site, self._replica(i.site), i.counted_weight, i.returning)
            for i in command.inputs
        ]
        start = self._start_digest
        outcome = self._mixing.aggregate(
            command.round_number,
            plan.total_rounds,
            own,
            models,
            pending.array,
            start=None if start is None else self._own_vector(start),
        )
        step = np.float32(self._mixing.step)
        moved = length = 0.0  # squared norms
        for first in range(0, self.dimension, MIXING_CHUNK_PARAMETERS):
            part = slice(first, first + MIXING_CHUNK_PARAMETERS)
            change = step * (pending.array[part] - own[part])
            pending.array[part] = trained[part] + change
            moved += squared_norm(change)
            length += squared_norm(trained[part])
        digest = vector_digest(pending.array)
        self._store.keep_vector(pending, digest)
        distance = math.sqrt(moved / length) if length > 0.0 else None
        return Mixed(digest, pending.array, outcome, distance)

    def gather(self, donors: Sequence[str]) -> Mixed:
        """What the donors' replicas come to, for one who has been far away; it is stored, and
        nothing is committed to it yet.

        :raises AggregationError: they cannot be combined.
        """
        pending = self._store.new_vector("gathered", self.dimension)
        outcome = gather({site: self._replica(site) for site in donors}, pending.array)
        digest = vector_digest(pending.array)
        self._store.keep_vector(pending, digest)
        return Mixed(digest, pending.array, outcome)

    def adopt(
        self,
        round_number: int,
        gathered: Mixed,
        site_state: npt.NDArray[np.float32],
        headers: Mapping[tuple[bytes, int], SignedHeader],
        record: Mapping[str, Any],
    ) -> None:
        """Make the donors' model, with its ``site_state``, the start of ``round_number``."""
        self._site_state_digest = self._store.put_vector(site_state)
        self._since_round = round_number
        self._store_start(round_number, gathered, headers, record)

    def start_of_round(self) -> npt.NDArray[np.float32]:
        """What the round's training began with, or, where it was resumed in its midst, what it
        came to."""
        return self._own_vector(self._start_digest or self._trained_digest)

    def commit(
        self,
        command: do.CommitRound,
        mixed: Mixed,
        headers: Mapping[tuple[bytes, int], SignedHeader],
        record: Mapping[str, Any],
    ) -> None:
        """Make the mixed model the start of the next round."""
        for site in command.forgotten:
            self._replicas.pop(site, None)
        self._standings = command.standings
        self._store_start(command.round_number + 1, mixed, headers, record)

    def _store_start(
        self,
        round_number: int,
        mixed: Mixed,
        headers: Mapping[tuple[bytes, int], SignedHeader],
        record: Mapping[str, Any],
    ) -> None:
        """Make a model the start of ``round_number``."""
        assert self._site_state_digest is not None  # noqa: S101 - stored before
        generation = Generation(
            round_number=round_number,
            published=False,
            model=mixed.digest,
            replica=self.own_digest,
            site_state=self._site_state_digest,
            since_round=self._since_round,
        )
        self._store.commit_round(generation, self._replicas, headers, record, self._standings)
        self._start_digest = mixed.digest
