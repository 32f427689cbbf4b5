//! The driver side of a packed ring (VIRTIO 1.2, 2.8.15 to 2.8.22).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{Ordering, fence};

use super::queue::Indirect;
use super::split::{in_batch, write_flag};
use super::{Buffer, MockGuest};
use crate::vring::feature;

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A packed ring and its driver's cursors.
#[derive(Debug)]
pub(super) struct PackedDriver {
    size: u16,
    event_idx: bool,
    in_order: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    pub(super) free: u16,
    ids: Vec<u16>,
    /// Slots of the chains in flight, by id.
    flying: HashMap<u16, u16>,
    order: VecDeque<u16>,
    batch: Option<(u16, u32)>,
    /// Next slot to make available, and its wrap counter.
    next: (u16, bool),
    /// Next slot to be used, and its wrap counter.
    done: (u16, bool),
    /// The first descriptor that is not published: its slot and flags.
    held: Option<(u16, u16)>,
    /// Slots made available since the last look at the device's wish.
    fresh: u16,
}

impl PackedDriver {
    pub(super) fn new(guest: &mut MockGuest, size: u16, features: u64, base: u16) -> Self {
        let mut this = Self {
            size,
            event_idx: features & feature::EVENT_IDX != 0,
            in_order: features & feature::IN_ORDER != 0,
            desc: guest.alloc_whole(16 * usize::from(size), 16),
            driver: guest.alloc_whole(4, 4),
            device: guest.alloc_whole(4, 4),
            free: 0,
            ids: Vec::new(),
            flying: HashMap::new(),
            order: VecDeque::new(),
            batch: None,
            next: (0, true),
            done: (0, true),
            held: None,
            fresh: 0,
        };
        this.restart(guest, base);
        this
    }

    /// Where a ring begins that would be at `base` if it were a split one.
    fn start(&self, base: u16) -> (u16, bool) {
        (base % self.size, base & 0x8000 == 0)
    }

    /// The base in its 32 bits (SET_VRING_BASE).
    pub(super) fn base(&self, base: u16) -> u32 {
        let (index, wrap) = self.start(base);
        let half = u32::from(index) | u32::from(wrap) << 15;
        half | half << 16
    }

    pub(super) fn restart(&mut self, guest: &MockGuest, base: u16) {
        self.next = self.start(base);
        self.done = self.next;
        self.free = self.size;
        self.ids = (0..self.size).rev().collect();
        self.flying.clear();
        self.order.clear();
        (self.batch, self.held, self.fresh) = (None, None, 0);
        // Slots that are neither available nor used: of this round before the start, of the
        // round before behind it.
        for slot in 0..self.size {
            let wrap = self.next.1 == (slot < self.next.0);
            self.set_flags(guest, slot, if wrap { AVAIL | USED } else { 0 });
        }
    }

    fn set_flags(&self, guest: &MockGuest, slot: u16, flags: u16) {
        guest.store(self.desc + 16 * u64::from(slot) + 14, flags);
    }

    /// Writes all of slot `index`, flags as they are.
    pub(super) fn write_desc(&self, guest: &MockGuest, index: u16, desc: [u8; 16]) {
        guest.write(self.desc + 16 * u64::from(index), &desc);
    }

    /// Flags that make the next slot available.
    pub(super) fn available(&self) -> u16 {
        if self.next.1 { AVAIL } else { USED }
    }

    /// The slot that is made available next.
    pub(super) fn slot(&self) -> u16 {
        self.next.0
    }

    /// Puts a descriptor in the next slot; the first one since the last time stays hidden.
    fn put(&mut self, guest: &MockGuest, addr: u64, len: u32, id: u16, flags: u16) {
        let (slot, _) = self.next;
        let flags = flags | self.available();
        let mut bytes = desc(addr, len, id, 0);
        if self.held.is_none() {
            self.held = Some((slot, flags));
            let old = guest.load(self.desc + 16 * u64::from(slot) + 14);
            bytes[14..].copy_from_slice(&old.to_le_bytes());
        } else {
            bytes[14..].copy_from_slice(&flags.to_le_bytes());
        }
        self.write_desc(guest, slot, bytes);
        self.next = forward(self.next, 1, self.size);
    }

    pub(super) fn add(
        &mut self,
        guest: &MockGuest,
        chain: &[Buffer],
        table: Option<Indirect>,
    ) -> Option<u16> {
        // A packed chain has its buffers in the table or in the ring, never both (2.8.7).
        let slots = if table.is_some() {
            1
        } else {
            chain.len() as u16
        };
        if self.free < slots || slots == 0 {
            return None;
        }
        let id = self.ids.pop()?;
        self.free -= slots;
        if let Some(Indirect { table, .. }) = table {
            for (n, buffer) in chain.iter().enumerate() {
                // The id and the next flag mean nothing here.
                let entry = desc(buffer.addr, buffer.len, 0x7777, write_flag(buffer) | NEXT);
                guest.write(table + 16 * n as u64, &entry);
            }
            self.put(guest, table, 16 * chain.len() as u32, id, INDIRECT);
        } else {
            for (n, buffer) in chain.iter().enumerate() {
                let last = n + 1 == chain.len();
                let (id, next) = if last { (id, 0) } else { (0xdead, NEXT) };
                self.put(
                    guest,
                    buffer.addr,
                    buffer.len,
                    id,
                    write_flag(buffer) | next,
                );
            }
        }
        self.fresh += slots;
        self.flying.insert(id, slots);
        if self.in_order {
            self.order.push_back(id);
        }
        Some(id)
    }

    pub(super) fn publish(&mut self, guest: &MockGuest) -> bool {
        let Some((slot, flags)) = self.held.take() else {
            return false;
        };
        self.set_flags(guest, slot, flags);
        // Pairs with the device's fence between asking for kicks and looking again.
        fence(Ordering::SeqCst);
        let fresh = std::mem::take(&mut self.fresh);
        match guest.load(self.device + 2) {
            1 => false,
            2 if self.event_idx => {
                let event = guest.load(self.device);
                let mut wanted = i32::from(event & 0x7fff);
                if (event & 0x8000 != 0) != self.next.1 {
                    wanted -= i32::from(self.size);
                }
                let new = i32::from(self.next.0);
                (new - i32::from(fresh)..new).contains(&wanted)
            }
            _ => true,
        }
    }

    pub(super) fn used(&mut self, guest: &MockGuest) -> Option<(u16, u32)> {
        let (id, len) = match self.batch {
            Some(last) => in_batch(&self.order, last)?,
            None => {
                let at = self.desc + 16 * u64::from(self.done.0);
                let flags = guest.load(at + 14);
                let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
                if avail != used || used != self.done.1 {
                    return None;
                }
                let bytes = guest.read(at, 16);
                let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
                let last = (u16::from_le_bytes(bytes[12..14].try_into().unwrap()), len);
                if self.in_order {
                    self.batch = Some(last);
                    in_batch(&self.order, last)?
                } else {
                    last
                }
            }
        };
        if self.batch.is_some_and(|(last, _)| last == id) {
            self.batch = None;
        }
        let slots = self
            .flying
            .remove(&id)
            .unwrap_or_else(|| panic!("the device used {id}, which was not in flight"));
        self.order.pop_front();
        self.ids.push(id);
        self.free += slots;
        self.done = forward(self.done, slots, self.size);
        Some((id, len))
    }
}

fn forward((slot, wrap): (u16, bool), slots: u16, size: u16) -> (u16, bool) {
    match slot + slots {
        slot if slot >= size => (slot - size, !wrap),
        slot => (slot, wrap),
    }
}

pub(super) fn desc(addr: u64, len: u32, id: u16, flags: u16) -> [u8; 16] {
    let rest = u128::from(len) << 64 | u128::from(id) << 96 | u128::from(flags) << 112;
    (u128::from(addr) | rest).to_le_bytes()
}
