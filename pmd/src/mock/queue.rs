//! The driver side of one split ring (VIRTIO 1.2, 2.7.13 and 2.7.14).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::Bytes;
use vvu::memory::MemTable;
use vvu::notify::{Call, Kick};
use vvu::virtio::{RingAreas, Vring};

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

/// The driver side of a split ring. See the [module](super).
#[derive(Debug)]
pub struct MockQueue {
    guest: MockGuest,
    size: u16,
    features: u64,
    /// Where it starts, for [`MockQueue::vring`].
    base: u16,
    desc: u64,
    avail: u64,
    used: u64,
    free: Vec<u16>,
    /// Descriptors of the chains in flight, by head.
    flying: HashMap<u16, Vec<u16>>,
    next_avail: u16,
    kicked: u16,
    last_used: u16,
    /// Our end of the kick, once the ring was handed over.
    kick: Option<OwnedFd>,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

impl MockQueue {
    /// A ring of `size` entries in memory taken from `guest`, whose indices begin at `base`.
    pub fn new(guest: &mut MockGuest, size: u16, features: u64, base: u16) -> Self {
        let entries = usize::from(size);
        let desc = guest.alloc_whole(16 * entries, 16);
        let avail = guest.alloc_whole(6 + 2 * entries, 2);
        let used = guest.alloc_whole(6 + 8 * entries, 4);
        let this = Self {
            guest: guest.clone(),
            size,
            features,
            base,
            desc,
            avail,
            used,
            free: (0..size).rev().collect(),
            flying: HashMap::new(),
            next_avail: base,
            kicked: base,
            last_used: base,
            kick: None,
        };
        this.store(avail + 2, base);
        this.store(used + 2, base);
        this
    }

    fn store(&self, addr: u64, value: u16) {
        let place = self.guest.table.guest(addr, 2).unwrap();
        place.store(value.to_le(), 0, Ordering::Release).unwrap();
    }

    fn load(&self, addr: u64) -> u16 {
        let place = self.guest.table.guest(addr, 2).unwrap();
        u16::from_le(place.load(0, Ordering::Acquire).unwrap())
    }

    fn event_idx(&self) -> bool {
        self.features & feature::EVENT_IDX != 0
    }

    /// Where the ring is.
    pub fn areas(&self) -> RingAreas {
        let entries = usize::from(self.size);
        RingAreas {
            desc: self.guest.area(self.desc, 16 * entries),
            driver: self.guest.area(self.avail, 6 + 2 * entries),
            device: self.guest.area(self.used, 6 + 8 * entries),
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
            base: u32::from(self.base),
            features: self.features,
            enabled: true,
            kick,
            call,
            err,
            memory: self.guest.table(),
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
        self.next_avail = base;
        self.kicked = base;
        self.last_used = base;
        self.flying.clear();
        self.free = (0..self.size).rev().collect();
        self.store(self.avail + 2, base);
        self.store(self.used + 2, base);
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
        self.free.len()
    }

    /// Writes descriptor `index` as it is.
    pub fn write_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.desc + 16 * u64::from(index);
        self.guest.write(at, &desc(addr, len, flags, next));
    }

    /// Writes `head` in the available ring and counts it, unpublished.
    pub fn push_head(&mut self, head: u16) {
        let slot = u64::from(self.next_avail & (self.size - 1));
        self.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes this available index, true or not.
    pub fn publish_index(&self, index: u16) {
        self.store(self.avail + 2, index);
    }

    /// Adds a chain of direct descriptors, unpublished. `None` if there are too few.
    pub fn add(&mut self, chain: &[Buffer]) -> Option<u16> {
        if self.free.len() < chain.len() || chain.is_empty() {
            return None;
        }
        let taken = self.free.split_off(self.free.len() - chain.len());
        for (n, buffer) in chain.iter().enumerate() {
            let next = taken.get(n + 1).copied();
            let mut flags = if next.is_some() { NEXT } else { 0 };
            flags |= if buffer.writable { WRITE } else { 0 };
            self.write_desc(
                taken[n],
                buffer.addr,
                buffer.len,
                flags,
                next.unwrap_or(0xdead),
            );
        }
        let head = taken[0];
        self.flying.insert(head, taken);
        self.push_head(head);
        Some(head)
    }

    /// Adds a chain in an indirect table at guest address `table`, after `direct` buffers.
    pub fn add_indirect(&mut self, chain: &[Buffer], table: u64, direct: usize) -> Option<u16> {
        if self.free.len() <= direct || direct >= chain.len() {
            return None;
        }
        let (before, inside) = chain.split_at(direct);
        for (n, buffer) in inside.iter().enumerate() {
            let last = n + 1 == inside.len();
            let flags = if last { 0 } else { NEXT } | if buffer.writable { WRITE } else { 0 };
            let at = table + 16 * n as u64;
            self.guest
                .write(at, &desc(buffer.addr, buffer.len, flags, n as u16 + 1));
        }
        let taken = self.free.split_off(self.free.len() - direct - 1);
        for (n, buffer) in before.iter().enumerate() {
            let flags = NEXT | if buffer.writable { WRITE } else { 0 };
            self.write_desc(taken[n], buffer.addr, buffer.len, flags, taken[n + 1]);
        }
        let len = 16 * inside.len() as u32;
        self.write_desc(taken[direct], table, len, INDIRECT, 0xbeef);
        let head = taken[0];
        self.flying.insert(head, taken);
        self.push_head(head);
        Some(head)
    }

    /// Publishes all chains added. Returns whether the device wants a kick.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.kicked, self.next_avail);
        self.store(self.avail + 2, self.next_avail);
        // Pairs with the device's fence between asking for kicks and looking again.
        fence(Ordering::SeqCst);
        if self.event_idx() {
            let event = self.load(self.used + 4 + 8 * u64::from(self.size));
            let passed = self.next_avail.wrapping_sub(event).wrapping_sub(1);
            passed < self.next_avail.wrapping_sub(old)
        } else {
            self.load(self.used) & 1 == 0
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

    /// The next chain the device has used: its head and the bytes it says to have written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used + 2) == self.last_used {
            return None;
        }
        let slot = u64::from(self.last_used & (self.size - 1));
        let entry = self.guest.read(self.used + 4 + 8 * slot, 8);
        let head = u32::from_le_bytes(entry[..4].try_into().unwrap()) as u16;
        let len = u32::from_le_bytes(entry[4..].try_into().unwrap());
        self.last_used = self.last_used.wrapping_add(1);
        let descs = self
            .flying
            .remove(&head)
            .unwrap_or_else(|| panic!("the device used {head}, which was not in flight"));
        self.free.extend(descs);
        Some((head, len))
    }

    /// The used index that the device has published.
    pub fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// Asks for a call when the used index passes `event` (with the event index).
    pub fn set_used_event(&self, event: u16) {
        self.store(self.avail + 4 + 2 * u64::from(self.size), event);
    }

    /// Asks for no calls, or for calls (without the event index).
    pub fn set_no_interrupt(&self, none: bool) {
        self.store(self.avail, u16::from(none));
    }

    /// Whether the device asked for no kicks (without the event index).
    pub fn no_notify(&self) -> bool {
        self.load(self.used) & 1 != 0
    }

    /// Where the device wants the next kick (with the event index).
    pub fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
