"""The privacy ledger: what this site's training has spent, each part before it was spent.

A table of the journal, so every entry is durable when :meth:`PrivacyLedger.reserve` returns. It
only ever grows. Each entry is sealed together with all before it by a key that follows from the
site's own, and the number of entries and the last seal stand beside them: an entry that was
changed or removed, by a fault or by hand, is found when the ledger is opened.

An entry says which mechanism was used (rate, noise, steps), not which epsilon that came to: a
site that changes its delta or its budget accounts for its whole past anew, and never from zero.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from p2pfed.daemon.journal import Journal
from p2pfed.errors import DamagedStateError
from p2pfed.keys import Identity
from p2pfed.protocol.canonical import pack

SEAL_DOMAIN = b"p2pfed/1 privacy ledger\x00"
SEAL_BYTES = 32
FIRST_SEAL = bytes(SEAL_BYTES)
NO_START = bytes(32)  # of a round that this state does not know to have been trained
HEAD_KEY = "privacy ledger"  # in the table meta: number of entries and the last seal

TABLE = """
CREATE TABLE IF NOT EXISTS privacy_ledger (
    entry INTEGER PRIMARY KEY,
    round_number INTEGER NOT NULL,
    start BLOB NOT NULL,
    sampling_rate REAL NOT NULL,
    noise_multiplier REAL NOT NULL,
    steps INTEGER NOT NULL,
    delta REAL NOT NULL,
    reserved_at_seconds INTEGER NOT NULL,
    state TEXT NOT NULL,
    seal BLOB NOT NULL
) STRICT
"""

State = Literal["reserved", "published", "assumed"]


class DamagedLedgerError(DamagedStateError):
    """The ledger is not what was written: nobody can say what this site has spent."""


@dataclass(frozen=True, slots=True)
class Charge:
    """One round's local steps.

    :ivar start: digest of the model that they began with.
    :ivar sampling_rate: probability with which each step drew a record.
    :ivar noise_multiplier: the noise's standard deviation over the clipping norm.
    :ivar delta: at which the site accounted then; it changes nothing in the charge.
    """

    round_number: int
    start: bytes
    sampling_rate: float
    noise_multiplier: float
    steps: int
    delta: float

    @property
    def release(self) -> tuple[object, ...]:
        """What the noise follows from: alike for a round that is done again after a crash."""
        return (
            self.round_number,
            self.start,
            self.sampling_rate,
            self.noise_multiplier,
            self.steps,
        )


def has_charges(journal: Journal) -> bool:
    """Whether the site of this journal has ever trained under a budget."""
    if not journal.rows("SELECT 1 FROM sqlite_master WHERE name = 'privacy_ledger'"):
        return bool(journal.rows("SELECT 1 FROM meta WHERE key = ?", HEAD_KEY))
    return bool(
        journal.rows("SELECT 1 FROM privacy_ledger LIMIT 1")
        or journal.rows("SELECT 1 FROM meta WHERE key = ?", HEAD_KEY)
    )


class PrivacyLedger:
    """The ledger of one site; one caller at a time, from any thread.

    :raises DamagedLedgerError: it is not what was written.
    :raises StoreError: the journal cannot be read.
    """

    def __init__(self, journal: Journal, identity: Identity) -> None:
        self._journal = journal
        self._identity = identity
        self._charges: list[Charge] = []
        self._releases: set[tuple[object, ...]] = set()
        self._seal = FIRST_SEAL
        with journal.transaction() as database:
            database.execute(TABLE)
        self._read()
        self._releases = {charge.release for charge in self._charges}

    def _read(self) -> None:
        rows = self._journal.rows(
            "SELECT entry, round_number, start, sampling_rate, noise_multiplier, steps, delta, "
            "reserved_at_seconds, seal FROM privacy_ledger ORDER BY entry"
        )
        for number, (entry, *columns, reserved_at_seconds, seal) in enumerate(rows, start=1):
            charge = Charge(*columns)
            self._seal = self._seal_of(number, charge, reserved_at_seconds)
            if entry != number or seal != self._seal:
                raise DamagedLedgerError(
                    f"entry {number} of the privacy ledger is missing, or not as it was written"
                )
            self._charges.append(charge)
        found = self._journal.rows("SELECT value FROM meta WHERE key = ?", HEAD_KEY)
        head = found[0][0] if found else self._head(0, FIRST_SEAL)
        if head != self._head(len(self._charges), self._seal):
            raise DamagedLedgerError(
                f"the privacy ledger holds {len(self._charges)} entries, and that is not how it "
                "was left"
            )

    def _seal_of(self, number: int, charge: Charge, reserved_at_seconds: int) -> bytes:
        fields = [
            number,
            charge.round_number,
            charge.start,
            charge.sampling_rate,
            charge.noise_multiplier,
            charge.steps,
            charge.delta,
            reserved_at_seconds,
        ]
        return self._identity.derive(SEAL_DOMAIN, self._seal + pack(fields), SEAL_BYTES)

    @staticmethod
    def _head(entries: int, seal: bytes) -> bytes:
        return pack([entries, seal])

    @property
    def entries(self) -> int:
        return len(self._charges)

    @property
    def last(self) -> Charge | None:
        return self._charges[-1] if self._charges else None

    @property
    def assumed(self) -> int:
        """How many rounds were charged though this state does not know them to be trained."""
        return sum(charge.start == NO_START for charge in self._charges)

    def spent(self) -> tuple[tuple[float, float, int], ...]:
        """Sampling rate, noise multiplier and steps of everything charged, alike parts summed."""
        steps: Counter[tuple[float, float]] = Counter()
        for charge in self._charges:
            steps[charge.sampling_rate, charge.noise_multiplier] += charge.steps
        return tuple((*mechanism, count) for mechanism, count in steps.items())

    def holds(self, charge: Charge) -> bool:
        """Whether the same steps, with the same noise, are charged already."""
        return charge.release in self._releases

    def reserve(self, charge: Charge) -> None:
        """Charge a round's steps, unless they are charged; durable when this returns.

        :raises StoreError: it could not be written; nothing is charged, and nothing may be spent.
        """
        if not self.holds(charge):
            self._add([charge], "reserved")

    def assume(self, rounds: Iterable[int], like: Charge) -> None:
        """Charge rounds that another copy of this state may have trained, as if they were.

        :param like: the mechanism that they are charged at.
        :raises StoreError: it could not be written; nothing is charged.
        """
        known = {charge.round_number for charge in self._charges if charge.start == NO_START}
        missing = [
            Charge(
                number,
                NO_START,
                like.sampling_rate,
                like.noise_multiplier,
                like.steps,
                like.delta,
            )
            for number in rounds
            if number not in known
        ]
        if missing:
            self._add(missing, "assumed")

    def _add(self, charges: list[Charge], state: State) -> None:
        now_seconds = int(time.time())
        before = self._seal
        try:
            with self._journal.transaction() as database:
                for number, charge in enumerate(charges, start=len(self._charges) + 1):
                    self._seal = self._seal_of(number, charge, now_seconds)
                    database.execute(
                        "INSERT INTO privacy_ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            number,
                            charge.round_number,
                            charge.start,
                            charge.sampling_rate,
                            charge.noise_multiplier,
                            charge.steps,
                            charge.delta,
                            now_seconds,
                            state,
                            self._seal,
                        ),
                    )
                head = self._head(len(self._charges) + len(charges), self._seal)
                database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (HEAD_KEY, head))
        except BaseException:
            self._seal = before
            raise
        self._charges.extend(charges)
        self._releases.update(charge.release for charge in charges)

    def mark_published(self) -> None:
        """Note that what was reserved last has left the site. For whoever reads the ledger: it
        was charged before."""
        with self._journal.transaction() as database:
            database.execute(
                "UPDATE privacy_ledger SET state = 'published' WHERE entry = "
                "(SELECT MAX(entry) FROM privacy_ledger) AND state = 'reserved'"
            )
