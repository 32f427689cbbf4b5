//! vhost-user messages: parse, emit, validity, feature bits. Pure: no I/O, no unsafe.
//!
//! A [`Message`] is what travels. A [`Request`] is one that a front-end sent, understood and
//! checked; a [`Reply`] is what goes back. [`REQUESTS`] is the table of all requests: number,
//! name, what answers it, which file descriptors come with it and which feature bit it needs.
//! Parsing and emitting are twins: what was emitted parses to the same value.
//!
//! This room does not know who sends, how, or what a message does. Integers are little-endian on
//! the wire: VVU says so, and AF_UNIX speaks the machine's order, which is the same on every
//! machine this runs on.

mod describe;
mod features;
mod payload;
mod reply;
mod request;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use describe::describe;
pub use features::{Features, ProtocolFeatures};
pub use payload::{
    ConfigSpace, DeviceState, Inflight, Iotlb, LogArea, MemRegion, VringAddr, VringFd, VringState,
};
pub use reply::Reply;
pub use request::Request;
pub use table::{Answer, Fds, Gate, REQUESTS, RequestInfo, Unheard, info};

use thiserror::Error;

/// Length of a message's header: request, flags, size, 4 bytes each.
pub const HEADER_LEN: usize = 12;

/// Version of the protocol, in bits 0-1 of the flags.
pub const VERSION: u32 = 1;

/// The bits of the flags that hold the version.
pub const VERSION_MASK: u32 = 3;

/// Flag: this is a reply (bit 2).
pub const FLAG_REPLY: u32 = 1 << 2;

/// Flag: the sender wants to know the outcome (bit 3, with REPLY_ACK negotiated).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Regions that SET_MEM_TABLE can name.
pub const MAX_TABLE_REGIONS: usize = 8;

/// A message as it travels: header fields and payload, nothing interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Request number.
    pub request: u32,
    /// Version (bits 0-1), reply (bit 2), need-reply (bit 3).
    pub flags: u32,
    /// Everything after the header.
    pub payload: Vec<u8>,
}

impl Message {
    /// The message as bytes: header, then payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        for word in [self.request, self.flags, self.payload.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Request number, flags and payload size from a header's bytes.
    pub fn parse_header(header: &[u8; HEADER_LEN]) -> (u32, u32, u32) {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *header;
        (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
            u32::from_le_bytes([i, j, k, l]),
        )
    }

    /// Whether the sender asks for the outcome.
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Whether this answers a request.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }
}

/// Why a message is not a valid request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// Not version 1.
    #[error("{name} says protocol version {version}, not {VERSION}")]
    Version {
        /// Name of the request.
        name: &'static str,
        /// Version found.
        version: u32,
    },
    /// A reply where a request was due.
    #[error("a reply to {0} arrived where a request was due")]
    Reply(&'static str),
    /// The payload is too long or too short.
    #[error("{name} has {found} bytes of payload instead of {expected}")]
    Size {
        /// Name of the request.
        name: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes that it must have.
        expected: usize,
    },
    /// More regions than a message may name.
    #[error("{name} names {found} memory regions, {MAX_TABLE_REGIONS} are the limit")]
    Regions {
        /// Name of the request.
        name: &'static str,
        /// Regions found.
        found: u32,
    },
    /// Bits that mean nothing are set.
    #[error("{name} has reserved bits set: {bits:#x}")]
    Reserved {
        /// Name of the request.
        name: &'static str,
        /// The bits that must be zero and are not.
        bits: u64,
    },
}
