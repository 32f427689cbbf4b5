//! The device side of one ring: take a burst of chains, walk them, return them, decide on the
//! call.
//!
//! A [`Ring`] is what becomes of a [`vvu::virtio::Vring`]. Its bytes are shared with a driver that
//! may be hostile: each number is read once into a private copy and judged there, every loop is
//! bounded by the ring's size. What a ring finds wrong is a [`RingError`]; the caller stops the
//! ring. The ring owns the whole subtle part of notification: publishing, the event index, and the
//! enable-and-look-again loop (VIRTIO 1.2, 2.7.7, 2.7.10 and 2.8.10).
//!
//! There are two formats, `split` and `packed`. Everything that is done with a ring is written
//! once, for `RingOf` a format, and compiled for each; which one it is, is asked once a burst
//! (`Ring::of_format`).
//!
//! Chains are given back within their burst, or kept and given back later, in any order
//! ([`Ring::keep_all`]), as devices need that answer when a disk does.
//!
//! This room knows no device: neither what a chain contains nor which way it goes. It does not
//! know who polls it.
//!
//! | file | what |
//! |---|---|
//! | `ring` | a ring in service |
//! | `format` | what a format must be able to do; `split` and `packed` do it |
//! | `cursor` | places in a packed ring, and the flags there |
//! | `chain` | what a chain may be made of, and the chains of a burst |
//! | `pieces` | their bytes |
//! | `access` | raw memory of the rings themselves |
//! | `inflight` | what is in flight, in a buffer that outlives us |
//! | `error` | what can be wrong |

mod access;
mod chain;
mod cursor;
mod error;
mod format;
mod inflight;
mod packed;
mod pieces;
mod ring;
mod split;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_packed;

use std::sync::Arc;

use vvu::memory::MemTable;
use vvu::notify::{Call, Kick};
use vvu::virtio::{RingAreas, Vring};

pub use chain::{Chain, Keep, MAX_CHAIN, Taken};
pub use error::{RingError, SetupError};
pub(crate) use format::Format;
use packed::Packed;
pub use pieces::Segments;
pub(crate) use ring::RingOf;
use split::Split;

/// Most entries of a ring (VIRTIO 1.2, 2.7).
pub const MAX_SIZE: u16 = 32768;

/// Features of the ring itself (VIRTIO 1.2, 6): what this room implements.
///
/// VIRTIO_F_NOTIFICATION_DATA is not among them: the kicks of vhost-user carry no data, and what a
/// driver would say is in the ring.
pub mod feature {
    /// VIRTIO_F_ANY_LAYOUT: no assumption is made about where a header ends (legacy 6.3).
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_RING_PACKED.
    pub const RING_PACKED: u64 = 1 << 34;
    /// VIRTIO_F_IN_ORDER: buffers are given back in the order in which they came.
    pub const IN_ORDER: u64 = 1 << 35;
    /// All of them.
    pub const OFFERED: u64 = OUT_OF_ORDER | IN_ORDER;
    /// All for devices that give chains back in the order in which they are done.
    pub const OUT_OF_ORDER: u64 = ANY_LAYOUT | INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED;
}

/// Places of a ring, by format.
#[derive(Debug)]
enum Places {
    Split(access::SplitMem),
    Packed(access::PackedMem),
}

impl Places {
    fn new(areas: RingAreas, size: u16, features: u64) -> Result<Self, SetupError> {
        Ok(if features & feature::RING_PACKED != 0 {
            Self::Packed(Packed::mem(areas, size, features)?)
        } else {
            Self::Split(Split::mem(areas, size, features)?)
        })
    }
}

/// The places of a ring in a new memory, checked: the first half of [`Ring::set_memory`], which
/// can fail and needs no quiet ring.
#[derive(Debug)]
pub struct Moved {
    memory: Arc<MemTable>,
    places: Places,
}

impl Moved {
    /// Checks that `areas` hold a ring of `size` entries with `features`.
    pub fn new(
        memory: Arc<MemTable>,
        areas: RingAreas,
        size: u16,
        features: u64,
    ) -> Result<Self, SetupError> {
        let places = Places::new(areas, size, features)?;
        Ok(Self { memory, places })
    }
}

/// A ring of one of the formats.
#[derive(Debug)]
pub(crate) enum AnyRing {
    Split(RingOf<Split>),
    Packed(RingOf<Packed>),
}

/// Does the same with a ring of whatever format.
macro_rules! with {
    ($any:expr, $ring:ident => $what:expr) => {
        match $any {
            AnyRing::Split($ring) => $what,
            AnyRing::Packed($ring) => $what,
        }
    };
}
pub(crate) use with;

/// The device side of a running ring. See the [module](self).
#[derive(Debug)]
pub struct Ring(AnyRing);

impl Ring {
    /// Begins to serve a ring; also returns its kick.
    pub fn new(ring: Vring) -> Result<(Self, Kick), SetupError> {
        fn of<F: Format>(format: F, memory: Arc<MemTable>, call: Call, err: Call) -> RingOf<F> {
            RingOf {
                format,
                taken: Taken::new(memory),
                failed: None,
                call,
                err,
            }
        }
        let Vring {
            index,
            size,
            areas,
            base,
            features,
            kick,
            call,
            err,
            memory,
            inflight,
            ..
        } = ring;
        let _span = tracing::info_span!("ring", index).entered();
        let ring = match Places::new(areas, size, features)? {
            Places::Split(mem) => {
                let format = Split::new(mem, base, features, inflight)?;
                AnyRing::Split(of(format, memory, call, err))
            }
            Places::Packed(mem) => {
                let format = Packed::new(mem, base, features, inflight)?;
                AnyRing::Packed(of(format, memory, call, err))
            }
        };
        Ok((Self(ring), kick))
    }

    /// The ring as one of its format, for a whole burst.
    #[inline]
    pub(crate) fn of_format(&mut self) -> &mut AnyRing {
        &mut self.0
    }

    /// Takes up to `max` more chains and returns how many were taken. Stops at the first bad
    /// chain, which [`Ring::failed`] then reports; the chains before it are good.
    pub fn take_burst(&mut self, max: usize) -> usize {
        with!(&mut self.0, ring => ring.take_burst(max))
    }

    /// What is wrong with the ring, if something is. Once set, nothing more is taken.
    #[inline]
    pub fn failed(&self) -> Option<RingError> {
        with!(&self.0, ring => ring.failed())
    }

    /// What was taken and not yet given back.
    pub fn taken(&self) -> &Taken {
        with!(&self.0, ring => ring.taken())
    }

    /// Chains taken and not yet given back, oldest first.
    pub fn chains(&self) -> &[Chain] {
        self.taken().chains()
    }

    /// The device-readable bytes of one of [`Ring::chains`].
    pub fn readable(&self, chain: &Chain) -> Segments<'_> {
        self.taken().readable(chain)
    }

    /// The device-writable bytes of one of [`Ring::chains`].
    pub fn writable(&self, chain: &Chain) -> Segments<'_> {
        self.taken().writable(chain)
    }

    /// Gives back the oldest of [`Ring::chains`], `len` bytes of it written. The driver sees it
    /// at the next [`Ring::finish`]. Not for rings that keep book of what is in flight: those keep
    /// their chains.
    pub fn give_back(&mut self, len: u32) {
        with!(&mut self.0, ring => ring.give_back(len));
    }

    /// Gives back all of [`Ring::chains`], nothing of them written. The driver sees it at the next
    /// [`Ring::publish`].
    pub fn give_back_read(&mut self) {
        with!(&mut self.0, ring => ring.give_back_read());
    }

    /// Ends a burst whose chains are kept: a copy of each, and what [`Taken::keep`] has of its
    /// bytes. Each is given back once, in any order, by [`Ring::give_back_kept`]. At most as many
    /// as the ring has entries may be kept at a time: who keeps them sees to it.
    pub fn keep_all(&mut self) {
        with!(&mut self.0, ring => ring.keep_all());
    }

    /// Gives back a chain that was kept, `len` bytes of it written. The driver sees it at the next
    /// [`Ring::publish`].
    pub fn give_back_kept(&mut self, chain: &Chain, len: u32) {
        with!(&mut self.0, ring => ring.give_back_kept(chain, len));
    }

    /// Ends a burst: chains not given back count as never taken, the others are published at
    /// once, and the driver is called if it wants to be.
    pub fn finish(&mut self) {
        with!(&mut self.0, ring => ring.finish());
    }

    /// Publishes what was given back, if anything, and calls the driver if it wants to be.
    pub fn publish(&mut self) {
        with!(&mut self.0, ring => ring.publish());
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        with!(&self.0, ring => ring.size())
    }

    /// Asks the driver for no kicks; it may send some all the same.
    pub fn disable_kicks(&mut self) {
        with!(&mut self.0, ring => ring.format.disable_kicks());
    }

    /// Asks the driver for a kick at the next chain, and looks again. True if there is a chain
    /// already: then no kick may come for it.
    pub fn enable_kicks(&mut self) -> bool {
        with!(&mut self.0, ring => ring.format.enable_kicks())
    }

    /// Moves the ring to a new memory. Returns the old one, for somebody with time to unmap it.
    /// Between bursts only: chains taken are forgotten, to be taken again.
    pub fn set_memory(&mut self, moved: Moved) -> Moved {
        let Moved { memory, places } = moved;
        match (&mut self.0, places) {
            (AnyRing::Split(ring), Places::Split(mem)) => {
                let (memory, mem) = ring.set_memory(memory, mem);
                Moved {
                    memory,
                    places: Places::Split(mem),
                }
            }
            (AnyRing::Packed(ring), Places::Packed(mem)) => {
                let (memory, mem) = ring.set_memory(memory, mem);
                Moved {
                    memory,
                    places: Places::Packed(mem),
                }
            }
            // Not the same ring: its features cannot change while it runs.
            (_, places) => Moved { memory, places },
        }
    }

    /// Whether chains that were in flight when the ring was left (by whoever kept its book before us)
    /// are still to be taken again: they come with the next bursts. A ring may stop only behind
    /// them.
    pub fn is_resuming(&self) -> bool {
        with!(&self.0, ring => ring.format.is_resuming())
    }

    /// A new way to call. It is rung at once, because the old one may have been lost.
    pub fn set_call(&mut self, call: Call) -> Call {
        call.ring();
        with!(&mut self.0, ring => std::mem::replace(&mut ring.call, call))
    }

    /// A new way to report errors.
    pub fn set_err(&mut self, err: Call) -> Call {
        with!(&mut self.0, ring => std::mem::replace(&mut ring.err, err))
    }

    /// Tells the front-end that the ring is broken.
    pub fn report(&self) {
        with!(&self.0, ring => ring.err.ring());
    }

    /// Where the ring would go on, in the form of [`Vring::base`].
    pub fn base(&self) -> u32 {
        with!(&self.0, ring => ring.format.base())
    }
}
