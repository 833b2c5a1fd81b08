"""Every limit of the protocol, with its unit and its reason.

A peer that exceeds one is refused before memory is allocated for what it claims.
"""

PROTOCOL_VERSION = 1
CONTROL_PROTOCOL = "/p2pfed/control/1"  # one long-lived stream a link
DELTA_PROTOCOL = "/p2pfed/delta/1"  # one stream a transfer

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32

MAX_HEADER_BYTES = 4096  # a header is about 500 bytes; headers are flooded, so they stay small
MAX_MESSAGE_BYTES = 64 * 1024  # a control message; the largest carries two headers
MAX_OFFER_BYTES = 256 * 1024  # a header and the digest of every chunk
MAX_WRAPPED_KEY_BYTES = 256
MAX_TEXT_CHARACTERS = 512  # a reason or a detail, shown to an operator
MAX_NAME_CHARACTERS = 64
MAX_ADDRESSES = 8  # of one peer
MAX_ADDRESS_CHARACTERS = 256
MAX_RECORD_BYTES = 4096  # a signed address record or key certificate

CHUNK_BYTES = 1024 * 1024  # plaintext of one sealed chunk; the most that is held unverified
SEAL_BYTES = 16  # Poly1305 tag
MAX_CHUNKS = 7680  # what fits an offer, 32 bytes a digest
MAX_PAYLOAD_BYTES = MAX_CHUNKS * CHUNK_BYTES
MAX_PARAMETERS = MAX_PAYLOAD_BYTES // 4
CODEC_BLOCK_PARAMETERS = 4096  # parameters that share one scale

ROUND_WINDOW = 2  # rounds ahead of the federation's median from which a delta is taken
MAX_PENDING_PER_NEIGHBOUR = 2  # received deltas that wait for their round
ABSENT_ROUNDS = 2  # a neighbour that was left out for so many in a row is returning afterwards,
RETURNING_ROUNDS = 64  # for so many at most,
RETURNING_COST = 8  # each of which takes so many ordinary rounds to be allowed again
RAMP_ROUNDS = 4  # in which the weight of a peer that joined grows to what it is due
RETAINED_DELTAS = 8  # own envelopes kept on disk for neighbours that missed one
RELAYED_SITES = 64  # members whose headers a peer passes on: the nearest in the topology
HEADER_LOG_ROUNDS = 64  # the newest of each member; older deltas are applied by nobody
HEADER_LOG_ENTRIES = 8192  # of all members together

MAX_ROUND_NUMBER = 2**40
MAX_SEQUENCE = 2**40
MAX_TIME_SECONDS = 2**40
MAX_HEARD_MILLISECONDS = 2**32  # since a neighbour was heard: seven weeks

MAX_MSGPACK_DEPTH_ITEMS = 64  # items of any array in a control message or header
MAX_NESTING = 4  # arrays within arrays; an address record takes 2
