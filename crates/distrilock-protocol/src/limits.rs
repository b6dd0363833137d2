//! The limits of the wire, each with its reason. Clients find them in docs/protocol.md, chapter 7.

/// A line, a WebSocket message or a gob message: many times the size of any request, and small
/// enough that thousands of sessions that each send half a message do no harm.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The largest number as a request's `id`: 2^53-1, which every JSON library can represent (RFC
/// 8259, section 6).
pub const ID_NUMBER_MAX: u64 = (1 << 53) - 1;

/// The longest text as a request's `id`: a UUID with its punctuation and a prefix.
pub const ID_BYTES_MAX: usize = 64;

/// The longest `name` of a hello.
pub const HELLO_NAME_BYTES_MAX: usize = 128;

/// The longest `note` of a hello.
pub const HELLO_NOTE_BYTES_MAX: usize = 256;

/// The longest `host` of a hello: Linux allows a host name of 64 bytes (gethostname(2)).
pub const HELLO_HOST_BYTES_MAX: usize = 64;

/// The longest `command` of a hello: enough to tell one job from another. The client shortens a
/// longer one.
pub const HELLO_COMMAND_BYTES_MAX: usize = 256;

/// The longest `user` of a hello: useradd(8) accepts up to 32 bytes, user directories accept more.
pub const HELLO_USER_BYTES_MAX: usize = 64;

/// Locks in one reply to `list`.
pub const LIST_LOCKS_MAX: usize = 256;

/// Holders, or waiters, of a lock in one reply to `list` or `peek`.
pub const LIST_SESSIONS_MAX: usize = 64;

/// Slots that a name may have: more than anyone counts licences or machines in, and a reply that
/// lists them all stays short.
pub const SLOTS_MAX: u16 = 1024;

/// Locks that one request may ask for: as many as people list by hand. Even the longest names fit
/// into a message.
pub const LOCKS_PER_REQUEST_MAX: usize = 64;
