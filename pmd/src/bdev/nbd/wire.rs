//! What goes over the wire: numbers of the NBD protocol document, and requests in bytes.
//!
//! All numbers are big-endian.

use super::super::Op;

/// What a server begins with.
pub(super) const GREETING: u64 = 0x4e42_444d_4147_4943;
/// What follows in a new-style greeting, and what each option begins with.
pub(super) const OPTION: u64 = 0x4948_4156_454f_5054;
/// What follows in an old-style greeting.
pub(super) const OLD_STYLE: u64 = 0x0000_4202_8186_1253;
/// What the answer to an option begins with.
pub(super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// What a request begins with.
const REQUEST: u32 = 0x2560_9513;
/// What a simple reply begins with.
pub(super) const SIMPLE_REPLY: u32 = 0x6744_6698;
/// What a chunk of a structured reply begins with.
pub(super) const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// "Handshake flags" of the server, and of the client.
pub(super) mod handshake {
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    pub(in super::super) const NO_ZEROES: u16 = 1 << 1;
}

/// "Option types".
pub(super) mod option {
    pub(in super::super) const STARTTLS: u32 = 5;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;
}

/// "Option reply types".
pub(super) mod answer {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const INFO: u32 = 3;
    /// Set in all that are errors.
    pub(in super::super) const ERROR: u32 = 1 << 31;
    pub(in super::super) const UNSUPPORTED: u32 = ERROR + 1;
    pub(in super::super) const POLICY: u32 = ERROR + 2;
    pub(in super::super) const TLS_REQUIRED: u32 = ERROR + 5;
    pub(in super::super) const UNKNOWN: u32 = ERROR + 6;
    pub(in super::super) const SHUTDOWN: u32 = ERROR + 7;
    pub(in super::super) const BLOCK_SIZE_REQUIRED: u32 = ERROR + 8;
}

/// Kinds of information in an answer to GO.
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// "Transmission flags" of an export.
pub(super) mod transmission {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const FLUSH: u16 = 1 << 2;
    pub(in super::super) const FUA: u16 = 1 << 3;
    pub(in super::super) const TRIM: u16 = 1 << 5;
    pub(in super::super) const WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const MULTI_CONN: u16 = 1 << 8;
}

/// "Structured reply types".
pub(super) mod chunk {
    /// Flag: the last one of its reply.
    pub(in super::super) const DONE: u16 = 1;
    pub(in super::super) const NONE: u16 = 0;
    pub(in super::super) const DATA: u16 = 1;
    pub(in super::super) const HOLE: u16 = 2;
    /// Set in all that are errors.
    pub(in super::super) const ERROR: u16 = 1 << 15;
}

/// "Error values".
pub(super) mod error {
    pub(in super::super) const SHUTDOWN: u32 = 108;
}

/// Forced unit access.
const FUA: u16 = 1;
/// The range must stay allocated.
const NO_HOLE: u16 = 1 << 1;

/// A request's bytes, without what is written.
pub(super) fn request(op: Op, fua: bool, handle: u64, offset: u64, len: u32) -> [u8; 28] {
    let (command, flags): (u16, u16) = match op {
        Op::Read => (0, 0),
        Op::Write => (1, 0),
        Op::Flush => (3, 0),
        Op::Discard => (4, 0),
        Op::WriteZeroes { unmap: true } => (6, 0),
        Op::WriteZeroes { unmap: false } => (6, NO_HOLE),
    };
    header(
        command,
        flags | if fua { FUA } else { 0 },
        handle,
        offset,
        len,
    )
}

/// The request that ends a connection; it is not answered.
pub(super) fn goodbye() -> [u8; 28] {
    header(2, 0, 0, 0, 0)
}

fn header(command: u16, flags: u16, handle: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    let (magic, rest) = bytes.split_at_mut(4);
    magic.copy_from_slice(&REQUEST.to_be_bytes());
    let (words, numbers) = rest.split_at_mut(4);
    words.copy_from_slice(&(u32::from(flags) << 16 | u32::from(command)).to_be_bytes());
    let (places, length) = numbers.split_at_mut(16);
    places.copy_from_slice(&(u128::from(handle) << 64 | u128::from(offset)).to_be_bytes());
    length.copy_from_slice(&len.to_be_bytes());
    bytes
}

/// Reads numbers from bytes that came. After one that is not there none is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = match self.0.split_first_chunk() {
            Some((first, rest)) => (Some(*first), rest),
            None => (None, &[][..]),
        };
        self.0 = rest;
        first
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_in_the_protocols_order() {
        let bytes = request(
            Op::WriteZeroes { unmap: false },
            true,
            0x0102_0304_0506_0708,
            0x1112_1314_1516_1718,
            0x2122_2324,
        );
        let mut wanted = vec![0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6];
        wanted.extend(1..=8);
        wanted.extend(0x11..=0x18);
        wanted.extend(0x21..=0x24);
        assert_eq!(bytes[..], wanted);
        assert_eq!(goodbye()[4..8], [0, 0, 0, 2]);
    }
}
