//! vhost-user messages: parse, emit, validity, feature bits. Pure: no I/O, no unsafe.

/// Length of a message's header: request, flags, size, 4 bytes each.
pub const HEADER_LEN: usize = 12;

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
