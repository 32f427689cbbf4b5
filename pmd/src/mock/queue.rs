//! The driver side of one ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vvu::memory::MemTable;
use vvu::notify::{Call, Kick};
use vvu::virtio::{RingAreas, Vring};

use super::packed::{self, PackedDriver};
use super::split::{self, SplitDriver};
use super::{MockGuest, call, kick, signal};
use crate::vring::feature;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Length.
    pub len: u32,
    /// Whether the device may write it (else read).
    pub writable: bool,
}

/// Where a chain goes on in an indirect table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Indirect {
    /// Guest address of the table.
    pub(super) table: u64,
    /// Buffers before it.
    pub(super) direct: usize,
}

#[derive(Debug)]
enum Driver {
    Split(SplitDriver),
    Packed(PackedDriver),
}

/// The driver side of a ring: a packed one if the features say so. See the [module](super).
#[derive(Debug)]
pub struct MockQueue {
    guest: MockGuest,
    size: u16,
    features: u64,
    /// Where it starts, for [`MockQueue::vring`].
    base: u16,
    driver: Driver,
    /// Our end of the kick, once the ring was handed over.
    kick: Option<OwnedFd>,
}

impl MockQueue {
    /// A ring of `size` entries in memory taken from `guest`, whose indices begin at `base`.
    pub fn new(guest: &mut MockGuest, size: u16, features: u64, base: u16) -> Self {
        let driver = if features & feature::RING_PACKED != 0 {
            Driver::Packed(PackedDriver::new(guest, size, features, base))
        } else {
            Driver::Split(SplitDriver::new(guest, size, features, base))
        };
        Self {
            guest: guest.clone(),
            size,
            features,
            base,
            driver,
            kick: None,
        }
    }

    /// Where the ring is.
    pub fn areas(&self) -> RingAreas {
        let entries = usize::from(self.size);
        let area = |at, len| self.guest.area(at, len);
        match &self.driver {
            Driver::Split(ring) => RingAreas {
                desc: area(ring.desc, 16 * entries),
                driver: area(ring.avail, 6 + 2 * entries),
                device: area(ring.used, 6 + 8 * entries),
            },
            Driver::Packed(ring) => RingAreas {
                desc: area(ring.desc, 16 * entries),
                driver: area(ring.driver, 4),
                device: area(ring.device, 4),
            },
        }
    }

    /// The ring as it is handed to a device as queue `index`, and the front-end's ends of its
    /// call and its error signal.
    pub fn vring(&mut self, index: u16) -> (Vring, OwnedFd, OwnedFd) {
        let (kick, ours) = kick();
        self.kick = Some(ours);
        self.vring_with(index, kick)
    }

    /// The same with another kick.
    pub fn vring_with(&mut self, index: u16, kick: Kick) -> (Vring, OwnedFd, OwnedFd) {
        let (call, called) = call();
        let (err, failed): (Call, _) = super::call();
        let vring = Vring {
            index,
            size: self.size,
            areas: self.areas(),
            base: match &self.driver {
                Driver::Split(_) => u32::from(self.base),
                Driver::Packed(ring) => ring.base(self.base),
            },
            features: self.features,
            enabled: true,
            kick,
            call,
            err,
            memory: self.guest.table(),
            inflight: None,
        };
        (vring, called, failed)
    }

    /// Another kick for the same ring: its back-end end.
    pub fn new_kick(&mut self) -> Kick {
        let (kick, ours) = kick();
        self.kick = Some(ours);
        kick
    }

    /// The ring goes on at `base`, with nothing in flight.
    pub fn restart(&mut self, base: u16) {
        self.base = base;
        match &mut self.driver {
            Driver::Split(ring) => ring.restart(&self.guest, base),
            Driver::Packed(ring) => ring.restart(&self.guest, base),
        }
    }

    /// The guest's memory is now elsewhere in this process. Returns the new place of the ring.
    pub fn move_to(&mut self, guest: &MockGuest) -> RingAreas {
        self.guest = guest.clone();
        self.areas()
    }

    /// The guest's memory.
    pub fn table(&self) -> Arc<MemTable> {
        self.guest.table()
    }

    /// Descriptors not in flight.
    pub fn free(&self) -> usize {
        match &self.driver {
            Driver::Split(ring) => ring.free.len(),
            Driver::Packed(ring) => ring.free.into(),
        }
    }

    /// Adds a chain of direct descriptors, unpublished. `None` if there are too few. Returns its
    /// head (split) or id (packed).
    pub fn add(&mut self, chain: &[Buffer]) -> Option<u16> {
        match &mut self.driver {
            Driver::Split(ring) => ring.add(&self.guest, chain, None),
            Driver::Packed(ring) => ring.add(&self.guest, chain, None),
        }
    }

    /// Adds a chain in an indirect table at guest address `table`, in split rings after `direct`
    /// buffers.
    pub fn add_indirect(&mut self, chain: &[Buffer], table: u64, direct: usize) -> Option<u16> {
        if direct >= chain.len() {
            return None;
        }
        let table = Some(Indirect { table, direct });
        match &mut self.driver {
            Driver::Split(ring) => ring.add(&self.guest, chain, table),
            Driver::Packed(ring) => ring.add(&self.guest, chain, table),
        }
    }

    /// Publishes all chains added. Returns whether the device wants a kick.
    pub fn publish(&mut self) -> bool {
        match &mut self.driver {
            Driver::Split(ring) => ring.publish(&self.guest),
            Driver::Packed(ring) => ring.publish(&self.guest),
        }
    }

    /// Publishes, and kicks if the device wants it.
    pub fn submit(&mut self) {
        if self.publish() {
            self.kick_now();
        }
    }

    /// Kicks, whether the device wants it or not.
    pub fn kick_now(&self) {
        if let Some(kick) = &self.kick {
            signal(kick);
        }
    }

    /// The next chain the device has used: its head or id, and the bytes it says to have written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        match &mut self.driver {
            Driver::Split(ring) => ring.used(&self.guest),
            Driver::Packed(ring) => ring.used(&self.guest),
        }
    }

    /// Asks for no calls, or for calls (without the event index).
    pub fn set_no_interrupt(&self, none: bool) {
        match &self.driver {
            Driver::Split(ring) => self.guest.store(ring.avail, u16::from(none)),
            Driver::Packed(ring) => self.guest.store(ring.driver + 2, u16::from(none)),
        }
    }

    /// Asks for a call when what is used passes `event`: an index in split rings, slot and wrap
    /// counter in packed ones (with the event index).
    pub fn set_used_event(&self, event: u16) {
        match &self.driver {
            Driver::Split(ring) => {
                let at = ring.avail + 4 + 2 * u64::from(self.size);
                self.guest.store(at, event);
            }
            Driver::Packed(ring) => {
                self.guest.store(ring.driver, event);
                self.guest.store(ring.driver + 2, 2);
            }
        }
    }

    /// Whether the device asked for no kicks (in split rings, without the event index).
    pub fn no_notify(&self) -> bool {
        match &self.driver {
            Driver::Split(ring) => self.guest.load(ring.used) & 1 != 0,
            Driver::Packed(ring) => self.guest.load(ring.device + 2) == 1,
        }
    }

    /// Writes descriptor `index` as it is; `link` is the next field or the id. Flags of packed
    /// rings have to say that it is available.
    pub fn write_desc(&self, index: u16, addr: u64, len: u32, flags: u16, link: u16) {
        match &self.driver {
            Driver::Split(ring) => {
                ring.write_desc(&self.guest, index, split::desc(addr, len, flags, link));
            }
            Driver::Packed(ring) => {
                ring.write_desc(&self.guest, index, packed::desc(addr, len, link, flags));
            }
        }
    }

    /// The next slot of a packed ring, and the flags that make it available.
    pub fn next_slot(&self) -> (u16, u16) {
        match &self.driver {
            Driver::Split(_) => panic!("a split ring has no such slots"),
            Driver::Packed(ring) => (ring.slot(), ring.available()),
        }
    }

    fn split(&self) -> &SplitDriver {
        match &self.driver {
            Driver::Split(ring) => ring,
            Driver::Packed(_) => panic!("only split rings have indices"),
        }
    }

    /// Writes `head` in the available ring of a split ring and counts it, unpublished.
    pub fn push_head(&mut self, head: u16) {
        match &mut self.driver {
            Driver::Split(ring) => ring.push_head(&self.guest, head),
            Driver::Packed(_) => panic!("only split rings have heads"),
        }
    }

    /// Publishes this available index of a split ring, true or not.
    pub fn publish_index(&self, index: u16) {
        self.guest.store(self.split().avail + 2, index);
    }

    /// The used index that the device has published in a split ring.
    pub fn used_index(&self) -> u16 {
        self.guest.load(self.split().used + 2)
    }
}
