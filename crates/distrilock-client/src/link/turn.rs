//! What the transports have in common.

/// The longest message of a daemon: the size of its outbox by default.
pub(super) const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// How many bytes one read takes from the socket.
pub(super) const READ_BYTES_MAX: usize = 16 * 1024;

/// How a turn of the socket ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// More may come.
    Open,
    /// The daemon has closed the connection.
    Closed,
}
