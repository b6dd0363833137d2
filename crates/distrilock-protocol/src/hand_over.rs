//! The part of a connection's framing and dialect that is handed over to the next process of the
//! daemon. With it, that process understands a message of which only a part has come, or one that
//! depends on earlier definitions in its stream.

use serde::{Deserialize, Serialize};

use crate::codec::{Codec, Dialect, Framing};
use crate::gob;
use crate::websocket::{Partial, WebSocket};

/// A [`Codec`] on its way to the next process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandedCodec {
    framing: HandedFraming,
    dialect: Dialect,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum HandedFraming {
    Unknown,
    Lines { begun: bool },
    Gob { decoder: Box<gob::Decoder>, defined: bool },
    WebSocket { partial: Option<Partial> },
}

impl From<&Codec> for HandedCodec {
    fn from(codec: &Codec) -> Self {
        let framing = match &codec.framing {
            Framing::Unknown => HandedFraming::Unknown,
            Framing::Lines { searched: _, begun } => HandedFraming::Lines { begun: *begun },
            Framing::Gob { decoder, defined } => HandedFraming::Gob { decoder: decoder.clone(), defined: *defined },
            Framing::WebSocket(socket) => HandedFraming::WebSocket { partial: socket.partial().cloned() },
        };
        Self { framing, dialect: codec.dialect }
    }
}

impl From<HandedCodec> for Codec {
    fn from(handed: HandedCodec) -> Self {
        let framing = match handed.framing {
            HandedFraming::Unknown => Framing::Unknown,
            HandedFraming::Lines { begun } => Framing::Lines { searched: 0, begun },
            HandedFraming::Gob { decoder, defined } => Framing::Gob { decoder, defined },
            HandedFraming::WebSocket { partial } => Framing::WebSocket(Box::new(WebSocket::taken_over(partial))),
        };
        Self { framing, dialect: handed.dialect }
    }
}
