"""What to resume from where a stored vector or ciphertext was damaged.

A crash damages nothing that the journal names; a failing disk may. The rule that outranks all
others: a round that was published is never signed again.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from p2pfed.daemon.sendable import Sendable
from p2pfed.protocol.collecting import NO_HEADER
from p2pfed.protocol.digests import vector_hasher
from p2pfed.protocol.envelope import chunk_digest, sealed_chunk_bytes
from p2pfed.protocol.header import SignedHeader
from p2pfed.protocol.limits import DIGEST_BYTES

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Generation:
    """A point to resume from. ``model`` is the start of the round, or, once ``published``,
    the trained model whose delta went out. All three are vector digests. ``since_round``: in which
    the site joined; 0 for a founder."""

    round_number: int
    published: bool
    model: bytes
    replica: bytes
    site_state: bytes
    since_round: int = 0

    def vectors(self) -> tuple[bytes, bytes, bytes]:
        return self.model, self.replica, self.site_state


def vector_is_intact(path: Path, digest: bytes) -> bool:
    """Whether a file holds the vector that ``digest`` names.

    It is read, not mapped: a block that the disk cannot read is then an error, no signal.

    :raises OSError: it cannot be told.
    """
    hasher = vector_hasher()
    try:
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                hasher.update(part)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):
            return False
        raise
    return hasher.digest() == digest


def ciphertext_is_intact(item: Sendable) -> bool:
    """Whether a ciphertext is, chunk by chunk, the one that was announced.

    :raises OSError: it cannot be told.
    """
    header, digests = item.signed.header, item.chunk_digests
    try:
        with item.ciphertext.open("rb") as file:
            for index in range(header.chunk_count):
                sealed = file.read(sealed_chunk_bytes(header, index))
                announced = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
                if chunk_digest(sealed) != announced:
                    return False
            return not file.read(1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):
            return False
        raise


def stand_in(
    newest: Generation,
    before: Generation | None,
    genesis: bytes,
    is_intact: Callable[[bytes], bool],
    fresh_site_state: Callable[[], bytes],
) -> Generation | None:
    """What to resume from instead of ``newest``: itself where it is intact.

    :param genesis: the digest of the genesis model, which every site can make anew.
    :param is_intact: whether the vector of a digest is there, unharmed.
    :param fresh_site_state: the digest of a site state as of the first round, which every
        site can make anew as well.
    :returns: None where no model is left.
    """

    def replica_is_known(generation: Generation) -> bool:
        return generation.replica == genesis or is_intact(generation.replica)

    def is_whole(one: Generation) -> bool:
        return is_intact(one.model) and is_intact(one.site_state) and replica_is_known(one)

    if is_whole(newest):
        return newest
    if before is not None and before.published and not newest.published and is_whole(before):
        return before  # nothing of the newest round went out: the one before is closed again
    models = [newest.model, newest.replica]
    site_states = [newest.site_state]
    if before is not None:
        models += [before.model, before.replica]
        site_states.append(before.site_state)
    model = next(filter(is_intact, models), None)
    if model is None:
        return None
    site_state = next(filter(is_intact, site_states), None) or fresh_site_state()
    if replica_is_known(newest):
        # What the codec kept back is lost with the trained model, and nothing else.
        return replace(newest, model=model, site_state=site_state)
    # Nobody here knows any more what the neighbours hold. A delta may always build on the
    # genesis; the round that went out stands, and the next one is the first to be signed.
    following = newest.round_number + int(newest.published)
    return Generation(following, False, model, genesis, site_state, newest.since_round)


def start_of_round(
    newest: Generation,
    before: Generation | None = None,
    *,
    published: SignedHeader | None,
    genesis: bytes,
) -> bytes | None:
    """The digest of the model with which the round of ``newest`` began; None: no longer known.

    :param published: the newest own delta header.
    :param genesis: the digest of the genesis model, with which a site's first round begins.
    """
    if not newest.published:
        return newest.model
    if before is not None and not before.published:
        return before.model
    is_first = published is not None and published.header.previous == NO_HEADER
    return genesis if is_first else None
