//! The limits of the wire, each with its reason; docs/protocol.md, chapter 7, tells clients about them.

/// A line, a WebSocket message or a gob message: room for any request many times over, and little enough that thousands of
/// sessions that send half a message each do not hurt.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The largest number as a request's `id`: 2^53-1, what every JSON library can carry (RFC 8259, section 6).
pub const ID_NUMBER_MAX: u64 = (1 << 53) - 1;

/// The longest text as a request's `id`: a UUID with its punctuation and a prefix.
pub const ID_BYTES_MAX: usize = 64;

/// The longest `name` of a hello.
pub const HELLO_NAME_BYTES_MAX: usize = 128;

/// The longest `note` of a hello.
pub const HELLO_NOTE_BYTES_MAX: usize = 256;

/// The longest `host` of a hello: Linux allows a host name of 64 bytes (gethostname(2)).
pub const HELLO_HOST_BYTES_MAX: usize = 64;

/// The longest `command` of a hello: enough to tell one job from another; what is longer is for its client to shorten.
pub const HELLO_COMMAND_BYTES_MAX: usize = 256;

/// The longest `user` of a hello: useradd(8) takes names of up to 32 bytes, directories of users longer ones.
pub const HELLO_USER_BYTES_MAX: usize = 64;

/// Locks in one reply to `list`.
pub const LIST_LOCKS_MAX: usize = 256;

/// Holders, or waiters, of a lock in one reply to `list` or `peek`.
pub const LIST_SESSIONS_MAX: usize = 64;

/// Slots that a name may have: more than licences or machines are counted in, and a reply that names them all stays short.
pub const SLOTS_MAX: u16 = 1024;

/// Locks that one request may ask for: as many as people list by hand, and more than enough of the longest names for a message.
pub const LOCKS_PER_REQUEST_MAX: usize = 64;
