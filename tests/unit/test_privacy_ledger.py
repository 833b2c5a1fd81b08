"""The ledger only grows, says when it was tampered with, and decides whether a round is trained."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import topology_documents

from p2pfed.config import Site, load_site
from p2pfed.daemon.privacy_ledger import (
    Charge,
    DamagedLedgerError,
    PrivacyLedger,
    has_charges,
)
from p2pfed.daemon.private_training import KnownPast, PrivateTraining, private_training
from p2pfed.daemon.store import Store
from p2pfed.errors import ConfigurationError, StoreError, TrainingError
from p2pfed.keys import Identity
from p2pfed.privacy_terms import PrivacyTerms, privacy_terms
from p2pfed.topology import Topology
from p2pfed.training import frames
from p2pfed.training.privacy.accountant import epsilon_of

IDENTITY = Identity(b"\x01" * 32, b"\x02" * 32)
TERMS = PrivacyTerms(epsilon=2.0, delta=1e-3, noise_multiplier=1.5, clip_norm=1.0)
RATE, STEPS = 0.2, 2
NOTHING_BEFORE = KnownPast(0, False, 0.0)
ROUNDS_WITHIN = 5  # of STEPS steps at RATE and TERMS' noise, under TERMS' budget


def charge_of(number: int, start: bytes = b"a" * 32, **changes: Any) -> Charge:
    return replace(Charge(number, start, RATE, 1.5, STEPS, 1e-3), **changes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "state")) as opened:
        yield opened


def reopened(store: Store, identity: Identity = IDENTITY) -> PrivacyLedger:
    return PrivacyLedger(store.journal, identity)


def test_what_is_charged_is_there_after_a_restart_in_its_order(store: Store) -> None:
    ledger = reopened(store)
    assert (ledger.entries, ledger.spent(), ledger.last) == (0, (), None)
    charges = [charge_of(0), charge_of(1), charge_of(1, b"b" * 32), charge_of(2, steps=7)]
    for charge in charges:
        ledger.reserve(charge)
    for found in (ledger, reopened(store)):
        assert found.entries == 4
        assert found.last == charges[-1]
        assert found.spent() == ((RATE, 1.5, 3 * STEPS + 7),)


def test_the_same_steps_with_the_same_noise_are_charged_once(store: Store) -> None:
    ledger = reopened(store)
    ledger.reserve(charge_of(3))
    ledger.reserve(charge_of(3))
    again = reopened(store)
    again.reserve(charge_of(3))
    again.reserve(charge_of(3, delta=1e-6))  # accounts otherwise, trains the same
    assert again.entries == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"start": b"b" * 32},
        {"round_number": 4},
        {"sampling_rate": 0.3},
        {"noise_multiplier": 1.6},
        {"steps": 3},
    ],
)
def test_whatever_changes_the_noise_is_charged_again(store: Store, changes: dict[str, Any]) -> None:
    ledger = reopened(store)
    ledger.reserve(charge_of(3))
    ledger.reserve(charge_of(3, **changes))
    assert ledger.entries == 2


def test_assumed_rounds_are_charged_once_beside_those_that_are_known(store: Store) -> None:
    ledger = reopened(store)
    ledger.reserve(charge_of(5))
    ledger.assume(range(4, 7), charge_of(9))
    reopened(store).assume(range(3, 7), charge_of(9))
    found = reopened(store)
    assert (found.entries, found.assumed) == (5, 4)
    assert found.spent() == ((RATE, 1.5, 5 * STEPS),)


def execute(store: Store, *statements: str) -> None:
    with store.journal.transaction() as database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM privacy_ledger WHERE entry = 1",
        "DELETE FROM privacy_ledger WHERE entry = 2",
        "DELETE FROM privacy_ledger WHERE entry = 3",
        "DELETE FROM privacy_ledger",
        "DROP TABLE privacy_ledger",
        "UPDATE privacy_ledger SET steps = 1 WHERE entry = 2",
        "UPDATE privacy_ledger SET noise_multiplier = 9.0",
        "UPDATE privacy_ledger SET sampling_rate = 0.01 WHERE entry = 3",
        "UPDATE privacy_ledger SET entry = 7 WHERE entry = 3",
        "UPDATE privacy_ledger SET round_number = 0 WHERE entry = 2",
        "DELETE FROM meta WHERE key = 'privacy ledger'",
        "UPDATE meta SET value = X'9200C420' WHERE key = 'privacy ledger'",
        "INSERT INTO privacy_ledger SELECT 4, round_number, start, sampling_rate, "
        "noise_multiplier, steps, delta, reserved_at_seconds, state, seal "
        "FROM privacy_ledger WHERE entry = 3",
    ],
)
def test_an_entry_that_was_changed_or_removed_is_found(store: Store, statement: str) -> None:
    ledger = reopened(store)
    for number in range(3):
        ledger.reserve(charge_of(number))
    execute(store, statement)
    with pytest.raises(DamagedLedgerError, match="privacy ledger"):
        reopened(store)
    assert has_charges(store.journal)


def test_another_sites_ledger_is_not_taken_for_the_own_one(store: Store) -> None:
    reopened(store).reserve(charge_of(0))
    with pytest.raises(DamagedLedgerError):
        reopened(store, Identity(b"\x07" * 32, b"\x08" * 32))


def test_what_left_the_site_is_marked_and_the_seals_still_hold(store: Store) -> None:
    ledger = reopened(store)
    ledger.reserve(charge_of(0))
    ledger.mark_published()
    ledger.reserve(charge_of(1))
    ledger.assume([2], charge_of(2))
    ledger.mark_published()
    rows = store.journal.rows("SELECT state FROM privacy_ledger ORDER BY entry")
    assert rows == [("published",), ("reserved",), ("assumed",)]
    assert reopened(store).entries == 3


def test_a_charge_that_cannot_be_written_is_not_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = reopened(store)
    ledger.reserve(charge_of(0))
    execute(
        store,
        "CREATE TRIGGER full_disk BEFORE INSERT ON privacy_ledger "
        "BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    with pytest.raises(StoreError, match="disk full"):
        ledger.reserve(charge_of(1))
    assert not ledger.holds(charge_of(1))
    execute(store, "DROP TRIGGER full_disk")
    ledger.reserve(charge_of(1))
    assert reopened(store).entries == 2


@dataclass
class PricingTrainer:
    """Prices as the trainer process does."""

    noise_multiplier: float = 1.5
    fails: bool = False
    asked: list[frames.Price] = field(default_factory=list)

    @property
    def ready(self) -> Any:
        return SimpleNamespace(sampling_rate=RATE)

    async def price(self, request: frames.Price) -> frames.Priced:
        if self.fails:
            raise TrainingError("no answer")
        self.asked.append(request)
        spend = (RATE, self.noise_multiplier, request.local_steps)
        return frames.Priced(
            epsilon_of(request.spent, request.delta),
            spend,
            epsilon_of((*request.spent, spend), request.delta),
        )


async def at_once(job: Callable[[], None]) -> None:
    job()


def elsewhere(round_number: int, epsilon: float) -> Any:
    header = SimpleNamespace(round_number=round_number, privacy_spend=epsilon)
    return SimpleNamespace(header=header)


class Budget:
    """A site's budget, over as many starts of its daemon as are asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.trainer = PricingTrainer()
        self.training: PrivateTraining
        self.start()

    def start(
        self, terms: PrivacyTerms = TERMS, known: KnownPast = NOTHING_BEFORE
    ) -> PrivateTraining:
        self.trainer.noise_multiplier = terms.noise_multiplier
        self.training = PrivateTraining(
            terms, reopened(self.store), IDENTITY, b"F" * 32, self.trainer, known
        )
        return self.training

    async def grant(
        self, number: int, start: bytes = b"a" * 32, seen: Any = None, steps: int = STEPS
    ) -> bytes | None:
        return await self.training.grant(number, steps, start, seen, at_once)

    async def use_up(self) -> int:
        """Train until it is refused; how many rounds that were."""
        number = 0
        while await self.grant(number) is not None:
            number += 1
        return number


@pytest.fixture
def budget(store: Store) -> Budget:
    return Budget(store)


async def test_rounds_are_granted_up_to_the_budget_and_never_beyond(budget: Budget) -> None:
    spent = [0.0]
    for number in range(ROUNDS_WITHIN):
        assert await budget.grant(number) is not None
        assert spent[-1] < budget.training.epsilon_spent <= TERMS.epsilon
        assert budget.training.epsilon_spent == pytest.approx(
            epsilon_of([(RATE, 1.5, STEPS * (number + 1))], TERMS.delta)
        )
        assert budget.training.declared == budget.training.epsilon_spent
        spent.append(budget.training.epsilon_spent)
    for number in range(ROUNDS_WITHIN, ROUNDS_WITHIN + 3):
        assert await budget.grant(number) is None
        assert budget.training.epsilon_spent == spent[-1]
        assert "another round would make it 2.0" in (budget.training.stopped or "")
    assert reopened(budget.store).entries == ROUNDS_WITHIN


async def test_no_restart_begins_the_count_again(budget: Budget) -> None:
    for number in range(ROUNDS_WITHIN):
        training = budget.start()
        await training.reckon()
        assert await budget.grant(number) is not None
    assert await budget.start().grant(99, STEPS, b"z" * 32, None, at_once) is None


async def test_the_charge_is_durable_before_the_secret_is_given(budget: Budget) -> None:
    order: list[str] = []

    async def until_stored(job: Callable[[], None]) -> None:
        job()
        order.append(f"stored {reopened(budget.store).entries}")

    secret = await budget.training.grant(0, STEPS, b"a" * 32, None, until_stored)
    assert secret is not None
    assert order == ["stored 1"]

    async def full_disk(job: Callable[[], None]) -> None:
        raise StoreError("disk full")

    with pytest.raises(StoreError):
        await budget.training.grant(1, STEPS, b"a" * 32, None, full_disk)
    assert reopened(budget.store).entries == 1


async def test_a_round_done_again_gets_the_same_noise_and_any_other_another(
    budget: Budget,
) -> None:
    first = await budget.grant(0)
    assert first is not None
    assert len(first) == 32
    budget.start()
    assert await budget.grant(0) == first
    secrets = {
        first,
        await budget.grant(0, b"b" * 32),
        await budget.grant(1),
        await budget.grant(0, steps=STEPS + 1),
    }
    budget.start(replace(TERMS, clip_norm=0.5))
    secrets.add(await budget.grant(0))
    other = PrivateTraining(
        TERMS,
        reopened(budget.store),
        IDENTITY,
        b"G" * 32,  # another federation
        budget.trainer,
        NOTHING_BEFORE,
    )
    secrets.add(await other.grant(0, STEPS, b"a" * 32, None, at_once))
    assert None not in secrets
    assert len(secrets) == 6


async def test_a_round_that_was_charged_before_a_crash_is_granted_at_the_limit(
    budget: Budget,
) -> None:
    rounds = await budget.use_up()
    budget.start()
    assert await budget.grant(rounds - 1) is not None
    assert await budget.grant(rounds - 1, b"b" * 32) is None


async def test_changing_delta_or_noise_accounts_for_the_whole_past(budget: Budget) -> None:
    rounds = await budget.use_up()
    stricter = budget.start(replace(TERMS, delta=1e-6))
    await stricter.reckon()
    assert stricter.epsilon_spent == pytest.approx(epsilon_of([(RATE, 1.5, STEPS * rounds)], 1e-6))
    assert await budget.grant(rounds) is None
    louder = budget.start(replace(TERMS, noise_multiplier=2.0, epsilon=2.2))
    assert await budget.grant(rounds) is not None
    assert louder.epsilon_spent == pytest.approx(
        epsilon_of([(RATE, 1.5, STEPS * rounds), (RATE, 2.0, STEPS)], TERMS.delta)
    )


async def test_a_smaller_budget_stops_what_a_larger_one_allowed(budget: Budget) -> None:
    assert await budget.grant(0) is not None
    training = budget.start(replace(TERMS, epsilon=0.5))
    assert await budget.grant(0) is None
    assert training.stopped is not None


async def test_a_larger_budget_goes_on_from_what_was_spent(budget: Budget) -> None:
    rounds = await budget.use_up()
    training = budget.start(replace(TERMS, epsilon=3.0))
    assert await budget.grant(rounds) is not None
    assert training.stopped is None
    assert training.epsilon_spent > TERMS.epsilon


async def test_a_restored_state_pays_for_every_round_since_its_backup(budget: Budget) -> None:
    assert await budget.grant(0) is not None
    budget.start(known=KnownPast(1, True, 0.0))
    assert await budget.grant(4) is not None
    ledger = reopened(budget.store)
    assert (ledger.entries, ledger.assumed) == (5, 3)  # rounds 1 to 3, and round 4
    assert await budget.grant(5) is None
    budget.start(known=KnownPast(1, True, 0.0))  # killed before anything was published
    assert await budget.grant(6) is None
    assert reopened(budget.store).assumed == 5


async def test_a_restored_state_with_more_behind_it_than_the_budget_trains_no_more(
    budget: Budget,
) -> None:
    budget.start(known=KnownPast(0, True, 0.0))
    assert await budget.grant(ROUNDS_WITHIN) is None
    assert budget.training.stopped is not None
    assert reopened(budget.store).assumed == ROUNDS_WITHIN


async def test_rounds_that_neighbours_hold_of_another_copy_are_charged(budget: Budget) -> None:
    assert await budget.grant(0) is not None
    two = epsilon_of([(RATE, 1.5, 2 * STEPS)], TERMS.delta)
    seen = elsewhere(1, two)
    assert await budget.grant(2, seen=seen) is not None
    assert reopened(budget.store).assumed == 2
    assert await budget.grant(3, seen=seen) is not None
    assert reopened(budget.store).assumed == 2


async def test_what_was_trained_meanwhile_is_withheld_where_the_past_used_up_the_budget(
    budget: Budget,
) -> None:
    assert await budget.grant(0) is not None
    assert not await budget.training.withholds(None, at_once)
    assert await budget.grant(1) is not None
    seen = elsewhere(ROUNDS_WITHIN, 0.0)
    assert await budget.training.withholds(seen, at_once)
    assert budget.training.stopped is not None
    assert await budget.grant(2, seen=seen) is None


async def test_a_ledger_that_accounts_for_less_than_was_declared_stops_training(
    budget: Budget,
) -> None:
    assert await budget.grant(0) is not None
    budget.start(known=KnownPast(1, False, budget.training.declared))
    assert await budget.grant(1) is not None
    training = budget.start(known=KnownPast(2, False, 1.9))
    assert await budget.grant(2) is None
    assert training.is_damaged
    assert "entries are lost" in (training.stopped or "")
    training = budget.start()
    assert await budget.grant(2, seen=elsewhere(1, 1.9)) is None
    assert training.is_damaged


async def test_a_round_without_steps_costs_nothing(budget: Budget) -> None:
    assert await budget.grant(0, steps=0) is not None
    assert reopened(budget.store).entries == 0
    assert budget.training.epsilon_spent == 0.0


async def test_a_trainer_that_does_not_answer_charges_nothing(budget: Budget) -> None:
    budget.trainer.fails = True
    with pytest.raises(TrainingError):
        await budget.grant(0)
    assert reopened(budget.store).entries == 0


def site_and_topology(
    directory: Path, own: dict[str, Any], common: dict[str, Any]
) -> tuple[Site, Topology]:
    topology = topology_documents.load(
        directory, topology_documents.document("abcd", privacy=common)
    )
    path = directory / "site.toml"
    path.write_text(tomli_w.dumps({"schema_version": 1, "name": "a", "privacy": own}))
    return load_site(path), topology


def test_what_a_site_leaves_out_is_the_federations(tmp_path: Path) -> None:
    on = {"differential_privacy": True, "maximum_epsilon": 5}
    assert privacy_terms(*site_and_topology(tmp_path, {}, on)) == PrivacyTerms(5.0, 1e-5, 1.0, 1.0)
    own = {"epsilon": 1, "delta": 1e-6, "noise_multiplier": 2, "clip_norm": 0.5}
    found = privacy_terms(*site_and_topology(tmp_path, own, on))
    assert found == PrivacyTerms(1.0, 1e-6, 2.0, 0.5)
    assert privacy_terms(*site_and_topology(tmp_path, own, {})) is None
    chosen = {"differential_privacy": True, **own}
    assert privacy_terms(*site_and_topology(tmp_path, chosen, {})) == found


def test_everything_that_is_weaker_than_the_federation_is_refused_at_once(tmp_path: Path) -> None:
    own = {"epsilon": 9.0, "delta": 1e-4, "noise_multiplier": 0.5, "clip_norm": 2.0}
    site, topology = site_and_topology(tmp_path, own, {"differential_privacy": True})
    with pytest.raises(ConfigurationError) as caught:
        privacy_terms(site, topology)
    found = {p.key: (p.value, p.reason, p.remedy or "") for p in caught.value.problems}
    assert set(found) == {
        "privacy.epsilon",
        "privacy.delta",
        "privacy.noise_multiplier",
        "privacy.clip_norm",
    }
    value, reason, remedy = found["privacy.delta"]
    assert value == "0.0001"
    assert "privacy.maximum_delta = 1e-05" in reason
    assert "write delta = 1e-05" in remedy


def test_a_site_cannot_opt_out_of_what_the_federation_demands(tmp_path: Path) -> None:
    off, on = {"differential_privacy": False}, {"differential_privacy": True}
    with pytest.raises(ConfigurationError, match="only be stricter"):
        privacy_terms(*site_and_topology(tmp_path, off, on))


def test_privacy_cannot_be_switched_off_where_something_was_promised(
    tmp_path: Path, store: Store
) -> None:
    site, topology = site_and_topology(tmp_path, {}, {})
    arguments = (site, topology, IDENTITY, store, b"F" * 32, PricingTrainer())
    assert private_training(*arguments) is None
    reopened(store)
    assert private_training(*arguments) is None
    reopened(store).reserve(charge_of(0))
    with pytest.raises(ConfigurationError, match="would make what it promised void"):
        private_training(*arguments)


async def test_a_damaged_ledger_stops_training_and_not_the_daemon(
    tmp_path: Path, store: Store
) -> None:
    reopened(store).reserve(charge_of(0))
    execute(store, "DELETE FROM privacy_ledger")
    site, topology = site_and_topology(tmp_path, {}, {"differential_privacy": True})
    training = private_training(site, topology, IDENTITY, store, b"F" * 32, PricingTrainer())
    assert training is not None
    assert training.is_damaged
    assert "0 entries" in (training.stopped or "")
    await training.reckon()
    assert await training.grant(1, STEPS, b"a" * 32, None, at_once) is None
    with closing(sqlite3.connect(tmp_path / "state" / "journal.sqlite")) as journal:
        assert journal.execute("SELECT COUNT(*) FROM privacy_ledger").fetchone() == (0,)
