//! What can be wrong with a ring: at its set-up, and with what its driver writes.

use thiserror::Error;

use super::MAX_SIZE;

/// Why a ring cannot be served at all.
#[derive(Debug, Error)]
pub enum SetupError {
    /// Zero, too large, or not a power of two where it must be.
    #[error(
        "a ring cannot have {0} entries: expected a power of two up to {MAX_SIZE}, or any number \
         up to that in a packed ring"
    )]
    Size(u16),
    /// A packed ring shall go on outside itself.
    #[error("the ring shall begin at {index} but has {size} entries")]
    Base {
        /// Index asked for.
        index: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A part of the ring is too short or misaligned.
    #[error("the {part} has {len} bytes, needs {needed} aligned to {align}")]
    Area {
        /// Which part.
        part: &'static str,
        /// Its length.
        len: usize,
        /// The length that the ring's size asks for.
        needed: usize,
        /// The alignment that VIRTIO asks for.
        align: usize,
    },
    /// What the in-flight region says cannot be: somebody else wrote to it, or it is another ring's.
    #[error("the in-flight region is not this ring's: its {what} is {found}, expected {expected}")]
    Inflight {
        /// Which number of it.
        what: &'static str,
        /// The number.
        found: u64,
        /// What it must be, or the least that is too much.
        expected: u64,
    },
    /// The kick is of a kind that cannot be waited for.
    #[error("cannot wait for the kick: {0}")]
    Kick(std::io::Error),
}

/// What a driver did wrong. The ring must be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// The available index ran ahead by more than the ring holds.
    #[error("available index jumped from {from} to {to} in a ring of {size}")]
    AvailJump {
        /// Our cursor.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A head or a next field beyond the table.
    #[error("descriptor {index} is outside the table of {size}")]
    OutOfRange {
        /// The index found.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain with more descriptors (or pieces of memory) than can be: a loop, perhaps.
    #[error("the chain at {head} is longer than {limit}")]
    TooLong {
        /// Head of the chain.
        head: u16,
        /// The limit it met.
        limit: usize,
    },
    /// An indirect table of an impossible length.
    #[error("indirect table of {len} bytes")]
    IndirectLength {
        /// Length found.
        len: u32,
    },
    /// An indirect descriptor that VIRTIO forbids: inside a table, with a next flag, or not
    /// negotiated.
    #[error("indirect descriptor not allowed: flags {flags:#x}")]
    Indirect {
        /// Flags found.
        flags: u16,
    },
    /// A device-readable descriptor after a device-writable one.
    #[error("readable descriptor after a writable one in the chain at {head}")]
    Order {
        /// Head of the chain.
        head: u16,
    },
    /// The lengths of a chain do not fit 32 bits together.
    #[error("the chain at {head} is longer than 4 GiB")]
    Bytes {
        /// Head of the chain.
        head: u16,
    },
    /// An address that is nobody's.
    #[error("nothing is mapped at {addr:#x}+{len:#x}")]
    Unmapped {
        /// Guest address found.
        addr: u64,
        /// Length found.
        len: u32,
    },
    /// A buffer that was taken was made available once more. With it goes a chain that the
    /// in-flight region has spoilt.
    #[error("buffer {id} is in flight already, or what is known of it is no chain")]
    Flying {
        /// Head of the chain (split) or id of the buffer (packed).
        id: u16,
    },
}

impl RingError {
    /// Short names of all reasons, in the order of [`RingError::reason`].
    pub const REASONS: [&str; 9] = [
        "avail-jump",
        "out-of-range",
        "too-long",
        "indirect-length",
        "indirect",
        "order",
        "bytes",
        "unmapped",
        "flying",
    ];

    /// Which of [`RingError::REASONS`] this is.
    pub fn reason(&self) -> usize {
        match self {
            Self::AvailJump { .. } => 0,
            Self::OutOfRange { .. } => 1,
            Self::TooLong { .. } => 2,
            Self::IndirectLength { .. } => 3,
            Self::Indirect { .. } => 4,
            Self::Order { .. } => 5,
            Self::Bytes { .. } => 6,
            Self::Unmapped { .. } => 7,
            Self::Flying { .. } => 8,
        }
    }
}
