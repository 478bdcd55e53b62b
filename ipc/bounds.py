"""Holds every bound of the local protocol. `docs/protocol.md` repeats them; a test holds the two together."""

PROTOCOL_VERSION = 1

HEADER_BYTES = 4
"""Length prefix of a frame: unsigned, big-endian."""

MAX_FRAME_BYTES = 64 * 1024
"""Largest body of a frame, in bytes, without its header."""

MAX_TOKEN_CHARS = 16 * 1024
"""Longest license token, in characters (ASCII)."""

MAX_FEATURE_CHARS = 64
"""Longest feature in `require`, as in the claims of a license."""
MAX_BUSY_UNTIL = 253_402_300_799
"""The end of year 9999: no moment beyond it can be written as a date."""
MAX_PRODUCT_CHARS = 256
"""Longest product in `require`, as a value of a license's metadata."""
MAX_LICENSE_ID_CHARS = 128
"""Longest id of a license, and so of `after` in `licenses`."""
LICENSES_PER_PAGE = 32
"""Licenses in one reply to `licenses`; fewer where a frame has no room for so many."""

MAX_METER_CHARS = 48
"""Longest name of a meter in `count_usage`."""
MAX_AMOUNT = 2**32 - 1
"""Largest amount of one count."""
COUNT_ID_BYTES = 16
"""Size of the id of a count."""
COUNTS_KNOWN = 8192
"""Counts of a machine whose ids the agent knows: the last ones."""
COUNT_KNOWN_S = 120
"""Seconds for which the id of a count stays known, however many counts follow."""
COUNTS_PER_S = 20
"""Counts a second that one UID may make, sustained."""
COUNTS_BURST = 1000
"""Counts that one UID may make at once."""
MAX_COUNTERS = 64
"""Pairs of license and meter that a machine counts at once."""

NONCE_BYTES = 16
MAX_ID = 2**53 - 1
"""Largest request id: what every language, JavaScript included, holds exactly."""

NONCE_WINDOW_S = 120
"""Seconds for which a nonce stays used, at least."""
NONCES_PER_UID = 32_768
"""Fresh nonces that one UID may use within a window."""

DEFAULT_RATE_PER_S = 200
"""Requests a second that one UID may send, sustained; the burst is as large as one second's worth."""
THROTTLE_S = 0.1
"""A connection whose user is over the rate is answered once, and then not read from for so long."""
MIN_CONNECTS_PER_S = 50
"""New connections a second that one UID may make at least, on each socket; on the POS socket as many as requests, if that is
more. The burst is one second's worth. Each of its processes may use half of that."""
UNAUTHORIZED_CONNECTS_PER_S = 50
"""As above, for a UID that is not on the allow-list. What exceeds it is closed without an answer and counted."""
BACKLOG = 64
"""Connections that may wait to be accepted. The next connect waits in the kernel, or gets EAGAIN if it does not block."""
DEFAULT_CONNECTIONS_PER_UID = 64
MAX_CONNECTIONS = 1024
IDLE_TIMEOUT_S = 300
"""A connection without a request for this long is closed."""
PARTIAL_FRAME_TIMEOUT_S = 5
"""A frame that has begun must be complete after this many seconds."""
MAX_UNSENT_BYTES = 256 * 1024
"""Replies the peer has not taken; above it the daemon reads no more from that peer."""
UNSENT_TIMEOUT_S = 30
"""A peer that takes nothing for this long while replies wait is cut off."""

MAX_ADMIN_CERTIFICATES = 2
"""Certificates in `signed`: an administrator's own, and the one between it and the admin CA."""
MAX_ADMIN_CERTIFICATE_BYTES = 4096
"""Largest certificate in `signed`, DER."""
MAX_ADMIN_SIGNATURE_BYTES = 72
"""Largest signature in `signed`: ES256 in DER."""
MAX_SIGNED_REQUEST_BYTES = 48 * 1024
"""Largest request inside `signed`."""
ADMIN_CHALLENGE_S = 60
"""Seconds for which a challenge of the admin socket can be answered."""
ADMIN_SESSION_S = 900
"""Seconds for which a connection may read after `session_begin`."""
ADMIN_SETBACK_S = 5
"""Longest delay, in seconds, after requests that were refused for their certificate."""

DEFAULT_DEADLINE_S = 2.0
"""How long the client library tries before it reports that the agent is unavailable."""
