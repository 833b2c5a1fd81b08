"""Whether a round may be trained under the site's privacy budget, and with which secret noise.

Price the round, charge it durably, and only then train: a crash can cost a charge, and never lose
one. Where the next round would exceed the budget, no more is trained; the site goes on to publish
the model that it aggregated, which costs no privacy: it follows from what was published before,
here and by the neighbours.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog

from p2pfed.config import Site
from p2pfed.daemon.privacy_ledger import (
    Charge,
    DamagedLedgerError,
    PrivacyLedger,
    has_charges,
)
from p2pfed.daemon.store import Store
from p2pfed.errors import ConfigurationError, Problem
from p2pfed.keys import Identity
from p2pfed.privacy_terms import PrivacyTerms, privacy_terms
from p2pfed.protocol.canonical import pack
from p2pfed.protocol.header import MAX_EPSILON, SignedHeader
from p2pfed.topology import Topology
from p2pfed.training import frames

log = structlog.get_logger(__name__)

NOISE_DOMAIN = b"p2pfed/1 private noise\x00"
NOISE_SECRET_BYTES = 32
# Sums of floats: what is declared and what is accounted for may differ by as much.
RELATIVE_TOLERANCE = 1e-6

UntilStored = Callable[[Callable[[], None]], Awaitable[None]]


class PricingTrainer(Protocol):
    """The part of the trainer that knows the price."""

    @property
    def ready(self) -> frames.Ready: ...

    async def price(self, request: frames.Price) -> frames.Priced: ...


@dataclass(frozen=True, slots=True)
class KnownPast:
    """Up to where the state, as it was found when the daemon started, knows the site's past.

    :ivar first_unknown_round: the first round that it would not know to have been trained.
    :ivar restored: it came back from a backup, so there may be such rounds.
    :ivar declared_epsilon: what the newest own header that it holds declares as spent.
    """

    first_unknown_round: int
    restored: bool
    declared_epsilon: float

    @classmethod
    def of(cls, store: Store) -> "KnownPast":
        generation, published = store.generation(), store.last_published()
        first = generation.round_number + generation.published if generation is not None else 0
        declared = published.header.privacy_spend if published is not None else 0.0
        return cls(first, store.restored(), declared)


class PrivateTraining:
    """One site's budget.

    :param ledger: None where it is damaged; ``damage`` says how, and nothing is trained.
    :ivar epsilon_spent: at ``terms.delta``, all that is charged.
    :ivar stopped: why no more is trained; None while training goes on.
    """

    def __init__(
        self,
        terms: PrivacyTerms,
        ledger: PrivacyLedger | None,
        identity: Identity,
        federation_id: bytes,
        trainer: PricingTrainer,
        known: KnownPast,
        *,
        damage: str | None = None,
    ) -> None:
        self.terms = terms
        self.ledger = ledger
        self._identity = identity
        self._federation_id = federation_id
        self._trainer = trainer
        self._known = known
        self._resumed_round: int | None = None
        self._vouched_epsilon = 0.0
        self._goes_out = False
        self.epsilon_spent = 0.0
        self.is_damaged = ledger is None
        self.stopped: str | None = damage

    @property
    def sampling_rate(self) -> float:
        return self._trainer.ready.sampling_rate

    @property
    def declared(self) -> float:
        """What the header of the next delta declares: epsilon spent so far."""
        return min(max(self.epsilon_spent, self._vouched_epsilon), MAX_EPSILON)

    def spending(self) -> dict[str, Any]:
        """The state of the budget as a round's record keeps it; see ``report.records.Spending``."""
        return {
            "epsilon_spent": self.epsilon_spent,
            "epsilon_budget": self.terms.epsilon,
            "delta": self.terms.delta,
            "noise_multiplier": self.terms.noise_multiplier,
            "clip_norm": self.terms.clip_norm,
            "charged_rounds": self.ledger.entries if self.ledger is not None else 0,
            "stopped": self.stopped,
        }

    async def reckon(self) -> None:
        """Account for what is in the ledger.

        :raises TrainingError: the trainer does not answer.
        """
        if self.ledger is not None:
            priced = await self._price(self.ledger, self.terms.delta)
            self.epsilon_spent = priced.epsilon

    async def grant(
        self,
        round_number: int,
        local_steps: int,
        start: bytes,
        elsewhere: SignedHeader | None,
        until_stored: UntilStored,
    ) -> bytes | None:
        """Charge a round before it is trained.

        :param start: digest of the model that it begins with.
        :param elsewhere: the newest own delta header that neighbours hold and this state does not
            know of: the rounds up to it are charged as well.
        :param until_stored: carries out work that ends on the disk.
        :returns: the secret, 32 bytes, that its noise is drawn from; None: train nothing.
        :raises TrainingError: the trainer does not answer.
        """
        ledger = self.ledger
        self._goes_out = False
        if ledger is None:
            return None
        usual = Charge(
            round_number,
            start,
            self.sampling_rate,
            self.terms.noise_multiplier,
            local_steps,
            self.terms.delta,
        )
        if self._resumed_round is None:
            self._resumed_round = round_number
        if not await self._account_for(elsewhere, usual, until_stored):
            return None
        priced = await self._price(ledger, self.terms.delta, round_number, local_steps)
        charge = Charge(round_number, start, *priced.next_spend, self.terms.delta)
        # Done again after a crash, with the same noise, it gives away nothing that it did not.
        epsilon = priced.epsilon if ledger.holds(charge) else priced.epsilon_with_next
        self.epsilon_spent = priced.epsilon
        if epsilon > self.terms.epsilon:
            self._stop(
                f"epsilon {priced.epsilon:.4g} of {self.terms.epsilon:g} is spent at delta "
                f"{self.terms.delta:g}, and another round would make it {epsilon:.4g}"
            )
            return None
        if charge.steps:
            await until_stored(partial(ledger.reserve, charge))
        self.epsilon_spent = self._vouched_epsilon = epsilon
        self.stopped, self._goes_out = None, True
        return self._secret(charge)

    async def withholds(self, elsewhere: SignedHeader | None, until_stored: UntilStored) -> bool:
        """Whether what was just trained must be thrown away: while it was, neighbours showed
        that this state is an old one, and what it does not know of has used up the budget.

        :raises TrainingError: the trainer does not answer.
        """
        ledger = self.ledger
        assert ledger is not None  # noqa: S101 - it granted
        self._goes_out = False
        like = ledger.last
        if like is not None and not await self._account_for(elsewhere, like, until_stored):
            return True
        await self.reckon()
        if self.epsilon_spent > self.terms.epsilon:
            self._stop(
                f"epsilon {self.epsilon_spent:.4g} of {self.terms.epsilon:g} is spent at delta "
                f"{self.terms.delta:g}"
            )
            return True
        self._goes_out = True
        return False

    async def published(self, until_stored: UntilStored) -> None:
        """Note that what was trained last has left the site."""
        if self.ledger is not None and self._goes_out:
            self._goes_out = False
            await until_stored(self.ledger.mark_published)

    async def _account_for(
        self, elsewhere: SignedHeader | None, like: Charge, until_stored: UntilStored
    ) -> bool:
        """Charge what this state does not know of; False where that cannot be done."""
        ledger = self.ledger
        assert ledger is not None  # noqa: S101 - both callers have one
        # At the delta at which the last header was signed: another gives another epsilon.
        delta = ledger.last.delta if ledger.last is not None else self.terms.delta
        rounds = self._unknown_rounds(elsewhere)
        if rounds:
            before = ledger.entries
            await until_stored(partial(ledger.assume, rounds, like))
            if ledger.entries > before:
                log.warning(
                    "rounds that this state does not know of are charged as if it had trained them",
                    rounds=ledger.entries - before,
                    first=rounds.start,
                )
        declared = self._known.declared_epsilon
        if elsewhere is not None:
            declared = max(declared, elsewhere.header.privacy_spend)
        if declared <= self._vouched_epsilon * (1 + RELATIVE_TOLERANCE):
            return True
        priced = await self._price(ledger, delta)
        if declared > priced.epsilon * (1 + RELATIVE_TOLERANCE):
            self.is_damaged = True
            self._stop(
                f"this site once declared epsilon {declared:.4g} as spent, and its ledger accounts "
                f"for {priced.epsilon:.4g}: entries are lost"
            )
            return False
        self._vouched_epsilon = declared
        return True

    async def _price(
        self, ledger: PrivacyLedger, delta: float, round_number: int = 0, local_steps: int = 0
    ) -> frames.Priced:
        return await self._trainer.price(
            frames.Price(
                spent=ledger.spent(),
                delta=delta,
                round_number=round_number,
                local_steps=local_steps,
            )
        )

    def _unknown_rounds(self, elsewhere: SignedHeader | None) -> range:
        """The rounds that may have been trained under this site's key, unknown to this state.

        After a restore those between the backup and the round in which the site may sign again;
        what it may sign no more, it may have trained.
        """
        first = end = self._known.first_unknown_round
        if self._known.restored and self._resumed_round is not None:
            end = max(end, self._resumed_round)
        if elsewhere is not None:
            end = max(end, elsewhere.header.round_number + 1)
        return range(first, end)

    def _stop(self, reason: str) -> None:
        if self.stopped is None:
            log.warning("training stops for good; aggregation goes on", reason=reason)
        self.stopped = reason

    def _secret(self, charge: Charge) -> bytes:
        """Of these steps alone. Bound to all that they begin with and are charged by: what begins
        otherwise gets other noise, for two releases with one noise give it away; the same steps,
        done again after a crash, get the same, and reveal nothing more."""
        message = pack(
            [
                self._federation_id,
                charge.round_number,
                charge.start,
                charge.sampling_rate,
                charge.noise_multiplier,
                self.terms.clip_norm,
                charge.steps,
            ]
        )
        return self._identity.derive(NOISE_DOMAIN, message, NOISE_SECRET_BYTES)


def private_training(
    site: Site,
    topology: Topology,
    identity: Identity,
    store: Store,
    federation_id: bytes,
    trainer: PricingTrainer,
) -> PrivateTraining | None:
    """The budget of a site; None where it trains without differential privacy.

    :raises ConfigurationError: its file is weaker than the federation allows, or switches off
        what it trained under before.
    :raises StoreError: the journal cannot be read.
    """
    terms = privacy_terms(site, topology)
    if terms is None:
        if has_charges(store.journal):
            raise ConfigurationError(
                [
                    Problem(
                        site.path,
                        "privacy.differential_privacy",
                        None,
                        "this site has trained under a privacy budget; a round without noise would "
                        "make what it promised void",
                        "write differential_privacy = true in [privacy]; to give the promise up, "
                        "have a new key for this site put into the topology file",
                    )
                ]
            )
        return None
    known = KnownPast.of(store)
    try:
        ledger, damage = PrivacyLedger(store.journal, identity), None
    except DamagedLedgerError as error:
        ledger, damage = None, str(error)
        log.error("the privacy ledger is damaged; nothing is trained", reason=damage)  # noqa: TRY400
    return PrivateTraining(terms, ledger, identity, federation_id, trainer, known, damage=damage)
