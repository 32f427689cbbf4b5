//! The device side of one ring: take a burst of chains, walk them, return them, decide on the
//! call.
//!
//! A [`Ring`] is what becomes of a [`vvu::virtio::Vring`]. Its bytes are shared with a driver that
//! may be hostile: each number is read once into a private copy and judged there, every loop is
//! bounded by the ring's size. What a ring finds wrong is a [`RingError`]; the caller stops the
//! ring. The ring owns the whole subtle part of notification: publishing an index, the event
//! index, and the enable-and-look-again loop (VIRTIO 1.2, 2.7.7 and 2.7.10).
//!
//! This room knows no device: neither what a chain contains nor which way it goes. It does not
//! know who polls it. Cursor handling is in `split`, chains in `chain`, raw memory in `access`;
//! another ring format replaces `split` and `access` below the same [`Ring`].

mod access;
mod chain;
mod split;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use thiserror::Error;
use vvu::memory::MemTable;
use vvu::notify::Call;
use vvu::virtio::{RingAreas, Vring};

pub use access::Segments;
use chain::Taken;
pub use chain::{Chain, MAX_CHAIN};
use split::Split;

/// Most entries of a ring (VIRTIO 1.2, 2.7).
pub const MAX_SIZE: u16 = 32768;

/// Features of the ring itself (VIRTIO 1.2, 6): what this room implements.
pub mod feature {
    /// VIRTIO_F_ANY_LAYOUT: no assumption is made about where a header ends (legacy 6.3).
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
    /// All of them.
    pub const OFFERED: u64 = ANY_LAYOUT | INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Why a ring cannot be served at all.
#[derive(Debug, Error)]
pub enum SetupError {
    /// Not a power of two, or too large.
    #[error("{0} is no size for a split ring: expected a power of two up to {MAX_SIZE}")]
    Size(u16),
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
}

impl RingError {
    /// Short names of all reasons, in the order of [`RingError::reason`].
    pub const REASONS: [&str; 8] = [
        "avail-jump",
        "out-of-range",
        "too-long",
        "indirect-length",
        "indirect",
        "order",
        "bytes",
        "unmapped",
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
        }
    }
}

/// The places of a ring in a new memory, checked: the first half of [`Ring::set_memory`], which
/// can fail and needs no quiet ring.
#[derive(Debug)]
pub struct Moved {
    memory: Arc<MemTable>,
    mem: access::SplitMem,
}

impl Moved {
    /// Checks that `areas` hold a ring of `size` entries with `features`.
    pub fn new(
        memory: Arc<MemTable>,
        areas: RingAreas,
        size: u16,
        features: u64,
    ) -> Result<Self, SetupError> {
        let event_idx = features & feature::EVENT_IDX != 0;
        let mem = access::SplitMem::new(areas, size, event_idx)?;
        Ok(Self { memory, mem })
    }
}

/// The device side of a running ring. See the [module](self).
#[derive(Debug)]
pub struct Ring {
    format: Split,
    /// The memory that addresses mean, and the chains taken and not yet given back.
    taken: Taken,
    /// How many of the taken chains were given back.
    used: usize,
    indirect: bool,
    failed: Option<RingError>,
    call: Call,
    err: Call,
}

impl Ring {
    /// Begins to serve a ring; also returns its kick.
    pub fn new(ring: Vring) -> Result<(Self, vvu::notify::Kick), SetupError> {
        let event_idx = ring.features & feature::EVENT_IDX != 0;
        let mem = access::SplitMem::new(ring.areas, ring.size, event_idx)?;
        let this = Self {
            format: Split::new(mem, ring.base as u16, event_idx),
            taken: Taken::new(ring.memory),
            used: 0,
            indirect: ring.features & feature::INDIRECT_DESC != 0,
            failed: None,
            call: ring.call,
            err: ring.err,
        };
        Ok((this, ring.kick))
    }

    /// Takes up to `max` more chains and returns how many were taken. Looks at the driver's index
    /// once. Stops at the first bad chain, which [`Ring::failed`] then reports; the chains before
    /// it are good.
    #[inline]
    pub fn take_burst(&mut self, max: usize) -> usize {
        if self.failed.is_some() {
            return 0;
        }
        match self.try_take(max) {
            Ok(taken) => taken,
            Err((taken, error)) => {
                self.failed = Some(error);
                taken
            }
        }
    }

    fn try_take(&mut self, max: usize) -> Result<usize, (usize, RingError)> {
        let pending = self.format.pending().map_err(|error| (0, error))?;
        let wanted = usize::from(pending).min(max);
        for done in 0..wanted {
            if !self.taken.has_room() {
                return Ok(done);
            }
            let head = self.format.peek();
            let walk = chain::Walk {
                table: self.format.mem(),
                indirect: self.indirect,
            };
            walk.take(head, &mut self.taken)
                .map_err(|error| (done, error))?;
            self.format.advance();
        }
        Ok(wanted)
    }

    /// What is wrong with the ring, if something is. Once set, nothing more is taken.
    pub fn failed(&self) -> Option<RingError> {
        self.failed
    }

    /// Chains taken and not yet given back or returned untouched, oldest first.
    pub fn chains(&self) -> &[Chain] {
        self.taken.chains.get(self.used..).unwrap_or(&[])
    }

    /// The device-readable bytes of one of [`Ring::chains`].
    #[inline]
    pub fn readable(&self, chain: &Chain) -> Segments<'_> {
        self.taken.segments(chain.readable())
    }

    /// The device-writable bytes of one of [`Ring::chains`].
    #[inline]
    pub fn writable(&self, chain: &Chain) -> Segments<'_> {
        self.taken.segments(chain.writable())
    }

    /// Gives back the oldest of [`Ring::chains`], `len` bytes of it written. The driver sees it
    /// at the next [`Ring::finish`].
    #[inline]
    pub fn give_back(&mut self, len: u32) {
        if let Some(chain) = self.taken.chains.get(self.used) {
            self.format.push_used(chain.head(), len);
            self.used += 1;
        }
    }

    /// Whether something was given back that [`Ring::finish`] has yet to show.
    pub fn has_used(&self) -> bool {
        self.used > 0
    }

    /// Ends a burst: chains not given back count as never taken, the used index is published
    /// once, and the driver is called if it wants to be.
    pub fn finish(&mut self) {
        self.settle();
        self.publish();
    }

    /// Ends a burst without telling the driver: it hears of it at the next [`Ring::publish`].
    #[inline]
    pub fn settle(&mut self) {
        let untouched = self.taken.chains.len() - self.used;
        self.format.rewind(untouched as u16);
        self.taken.clear();
        self.used = 0;
    }

    /// Publishes the used index, if it moved, and calls the driver if it wants to be.
    #[inline]
    pub fn publish(&mut self) {
        if self.format.publish() && self.format.needs_call() {
            self.call.ring();
        }
    }

    /// Chains given back that the driver has not been told of.
    #[inline]
    pub fn unpublished(&self) -> u16 {
        self.format.unpublished()
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.format.mem().size()
    }

    /// Asks the driver for no kicks; it may send some all the same.
    pub fn disable_kicks(&mut self) {
        self.format.disable_kicks();
    }

    /// Asks the driver for a kick at the next chain, and looks again. True if there is a chain
    /// already: then no kick may come for it.
    pub fn enable_kicks(&mut self) -> bool {
        self.format.enable_kicks()
    }

    /// Moves the ring to a new memory. Returns the old one, for somebody with time to unmap it.
    /// Between bursts only: chains taken are forgotten, to be taken again.
    pub fn set_memory(&mut self, moved: Moved) -> Moved {
        self.finish();
        let mem = self.format.replace_mem(moved.mem);
        let memory = self.taken.set_memory(moved.memory);
        Moved { memory, mem }
    }

    /// A new way to call. It is rung at once, because the old one may have been lost.
    pub fn set_call(&mut self, call: Call) -> Call {
        call.ring();
        std::mem::replace(&mut self.call, call)
    }

    /// A new way to report errors.
    pub fn set_err(&mut self, err: Call) -> Call {
        std::mem::replace(&mut self.err, err)
    }

    /// Tells the front-end that the ring is broken.
    pub fn report(&self) {
        self.err.ring();
    }

    /// Where the ring would go on, in the form of [`Vring::base`].
    pub fn base(&self) -> u32 {
        u32::from(self.format.next_avail())
    }
}
