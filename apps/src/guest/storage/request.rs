//! What is asked of a disk, whatever it is spoken in.

use std::fmt;

/// Bytes of a sector, the unit of virtio-blk whatever a disk's blocks are (VIRTIO 1.2, 5.2.6).
pub(super) const SECTOR: u64 = 512;

/// Whether blocks may have so many bytes: no disk that is in use has others.
pub(super) fn is_block(bytes: u64) -> bool {
    bytes.is_power_of_two() && (SECTOR..=4096).contains(&bytes)
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    /// What is there afterwards may be anything.
    Discard,
    /// With what was there given back, if the disk likes to.
    WriteZeroes,
}

/// A request: what, from which byte, how many. All are whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => return f.write_str("flush"),
            Kind::Discard => "discard",
            Kind::WriteZeroes => "zeroing",
        };
        write!(f, "{name} of {} bytes at {}", self.len, self.offset)
    }
}

/// A request as a device takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::guest) struct Message {
    /// What the device reads first.
    pub(in crate::guest) head: Vec<u8>,
    /// What it reads then, if that is not the caller's data.
    pub(in crate::guest) payload: Vec<u8>,
    /// Bytes that it reads behind the head.
    pub(in crate::guest) out: u32,
    /// Bytes of data that it writes.
    pub(in crate::guest) data_in: u32,
}

/// What a disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes.
    pub(super) capacity: u64,
    /// Bytes of a block; capacity and requests are multiples of it.
    pub(super) block: u64,
    /// Most pieces of a request's data.
    pub(super) segments: u32,
    /// Most bytes that are read or written at once.
    pub(super) transfer: u64,
    /// Most bytes that are discarded at once; 0 if none can be.
    pub(super) discard: u64,
    /// Most bytes that are zeroed at once; 0 if none can be.
    pub(super) zeroes: u64,
    /// Whether a flush is understood.
    pub(super) flush: bool,
    pub(super) read_only: bool,
}

/// Why a device did not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A virtio-blk status (VIRTIO 1.2, 5.2.6).
    Status(u8),
    /// A virtio-scsi response (VIRTIO 1.2, 5.6.6.1).
    Response(u8),
    /// A SCSI status, and of its sense data the key, the code and its qualifier.
    Sense(u8, [u8; 3]),
    /// It did less than it was asked for, by so many bytes.
    Short(u32),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Status(1) => f.write_str("status 1 (I/O error)"),
            Self::Status(2) => f.write_str("status 2 (not supported)"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Response(response) => write!(f, "response {response}"),
            Self::Sense(status, [key, code, qualifier]) => write!(
                f,
                "SCSI status {status:#04x}, sense {key:x}/{code:02x}/{qualifier:02x}"
            ),
            Self::Short(bytes) => write!(f, "{bytes} bytes less than asked for"),
        }
    }
}
