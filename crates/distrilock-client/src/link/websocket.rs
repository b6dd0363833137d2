//! Text messages over WebSocket (RFC 6455), through tokio-tungstenite.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Sink, Stream};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::turn::{MESSAGE_BYTES_MAX, READ_BYTES_MAX, Turn};
use crate::address::Server;
use crate::error::{DisconnectedError, Excerpt, ServerError, shown};

/// The address without the zone of an IPv6 address, which means something on this host only and has
/// no place in a request (RFC 6874, section 4).
fn without_zone(address: &str) -> String {
    match (address.find('%'), address.find(']')) {
        (Some(zone), Some(end)) if zone < end && address.starts_with("ws://[") => {
            format!("{}{}", &address[..zone], &address[end..])
        }
        _ => address.to_owned(),
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct WebSocket {
    stream: Box<WebSocketStream<TcpStream>>,
    /// Whether something may wait to be sent.
    unsent: bool,
}

impl WebSocket {
    /// The handshake (RFC 6455, section 4.1).
    pub(super) async fn open(stream: TcpStream, server: &Server) -> Result<Self, ServerError> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .read_buffer_size(READ_BYTES_MAX);
        match client_async_with_config(without_zone(&server.to_string()), stream, Some(config)).await {
            Ok((stream, _)) => Ok(Self { stream: Box::new(stream), unsent: false }),
            Err(Error::Io(error)) => Err(ServerError::Io(error)),
            Err(Error::ConnectionClosed | Error::Protocol(ProtocolError::HandshakeIncomplete)) => {
                Err(ServerError::Ended(DisconnectedError::Closed))
            }
            Err(error) => Err(ServerError::Stranger { what: shown(&error.to_string()) }),
        }
    }

    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.stream.get_ref().as_fd().try_clone_to_owned()
    }

    pub(super) fn push(&mut self, lines: &mut Vec<u8>) -> Result<(), DisconnectedError> {
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let text = String::from_utf8_lossy(line).into_owned();
            // A full socket is no error here: tungstenite keeps the message, without a limit.
            Pin::new(&mut *self.stream).start_send(Message::text(text)).map_err(|error| disconnected(&error))?;
            self.unsent = true;
        }
        lines.clear();
        Ok(())
    }

    pub(super) async fn turn(&mut self, take: &mut (dyn FnMut(&[u8]) + Send)) -> Result<Turn, DisconnectedError> {
        poll_fn(|context| self.poll_turn(context, take)).await
    }

    /// Sends what waits, and takes every message that is there.
    fn poll_turn(
        &mut self,
        context: &mut Context<'_>,
        take: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Poll<Result<Turn, DisconnectedError>> {
        if self.unsent
            && let Poll::Ready(flushed) = Pin::new(&mut *self.stream).poll_flush(context)
        {
            flushed.map_err(|error| disconnected(&error))?;
            self.unsent = false;
        }
        let mut taken = false;
        loop {
            let next = Pin::new(&mut *self.stream).poll_next(context);
            if taken && next.is_pending() {
                return Poll::Ready(Ok(Turn::Open));
            }
            match ready!(next) {
                Some(Ok(Message::Text(text))) => {
                    take(text.as_bytes());
                    taken = true;
                }
                Some(Ok(Message::Binary(bytes))) => {
                    let what = format!("a binary message: {}", Excerpt(&bytes));
                    return Poll::Ready(Err(DisconnectedError::Garbage { what }));
                }
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(Turn::Closed)),
                // The next read answers a ping.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(disconnected(&error))),
            }
        }
    }
}

fn disconnected(error: &Error) -> DisconnectedError {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => DisconnectedError::Closed,
        // The daemon is gone without a close frame, as over TCP.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => DisconnectedError::Closed,
        Error::Io(error) => DisconnectedError::Broken { kind: error.kind(), message: error.to_string() },
        error => DisconnectedError::Garbage { what: shown(&error.to_string()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zone is for this host only; the rest of the address is as it was.
    #[test]
    fn zones_stay_here() {
        assert_eq!(without_zone("ws://[fe80::1%eth0]:40801/distrilock"), "ws://[fe80::1]:40801/distrilock");
        assert_eq!(without_zone("ws://db1:40801/a%20b]"), "ws://db1:40801/a%20b]");
    }
}
