//! The driver side of a split ring (VIRTIO 1.2, 2.7.13 and 2.7.14).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{Ordering, fence};

use super::queue::Indirect;
use super::{Buffer, MockGuest};
use crate::vring::feature;

/// VIRTQ_DESC_F_NEXT, WRITE and INDIRECT.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A split ring and its driver's cursors.
#[derive(Debug)]
pub(super) struct SplitDriver {
    size: u16,
    event_idx: bool,
    in_order: bool,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) free: Vec<u16>,
    /// Descriptors of the chains in flight, by head.
    flying: HashMap<u16, Vec<u16>>,
    /// Heads in flight, oldest first.
    order: VecDeque<u16>,
    /// The last chain of the batch that is being taken back, and its length.
    batch: Option<(u16, u32)>,
    pub(super) next_avail: u16,
    kicked: u16,
    last_used: u16,
}

impl SplitDriver {
    pub(super) fn new(guest: &mut MockGuest, size: u16, features: u64, base: u16) -> Self {
        let entries = usize::from(size);
        let mut this = Self {
            size,
            event_idx: features & feature::EVENT_IDX != 0,
            in_order: features & feature::IN_ORDER != 0,
            desc: guest.alloc_whole(16 * entries, 16),
            avail: guest.alloc_whole(6 + 2 * entries, 2),
            used: guest.alloc_whole(6 + 8 * entries, 4),
            free: Vec::new(),
            flying: HashMap::new(),
            order: Default::default(),
            batch: None,
            next_avail: base,
            kicked: base,
            last_used: base,
        };
        this.restart(guest, base);
        this
    }

    pub(super) fn restart(&mut self, guest: &MockGuest, base: u16) {
        self.next_avail = base;
        self.kicked = base;
        self.last_used = base;
        self.flying.clear();
        self.order.clear();
        self.batch = None;
        self.free = (0..self.size).rev().collect();
        guest.store(self.avail + 2, base);
        guest.store(self.used + 2, base);
    }

    /// Writes descriptor `index` as it is.
    pub(super) fn write_desc(&self, guest: &MockGuest, index: u16, desc: [u8; 16]) {
        guest.write(self.desc + 16 * u64::from(index), &desc);
    }

    /// Writes `head` in the available ring and counts it, unpublished.
    pub(super) fn push_head(&mut self, guest: &MockGuest, head: u16) {
        let slot = u64::from(self.next_avail & (self.size - 1));
        guest.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    pub(super) fn add(
        &mut self,
        guest: &MockGuest,
        chain: &[Buffer],
        table: Option<Indirect>,
    ) -> Option<u16> {
        let (direct, inside) = chain.split_at(table.map_or(chain.len(), |table| table.direct));
        let needed = direct.len() + usize::from(table.is_some());
        if self.free.len() < needed || needed == 0 {
            return None;
        }
        let taken = self.free.split_off(self.free.len() - needed);
        for (n, buffer) in direct.iter().enumerate() {
            let next = taken.get(n + 1).copied();
            let flags = if next.is_some() { NEXT } else { 0 } | write_flag(buffer);
            let next = next.unwrap_or(0xdead);
            self.write_desc(guest, taken[n], desc(buffer.addr, buffer.len, flags, next));
        }
        if let Some(Indirect { table, .. }) = table {
            for (n, buffer) in inside.iter().enumerate() {
                let last = n + 1 == inside.len();
                let flags = if last { 0 } else { NEXT } | write_flag(buffer);
                let entry = desc(buffer.addr, buffer.len, flags, n as u16 + 1);
                guest.write(table + 16 * n as u64, &entry);
            }
            let outer = desc(table, 16 * inside.len() as u32, INDIRECT, 0xbeef);
            self.write_desc(guest, taken[direct.len()], outer);
        }
        let head = taken[0];
        self.flying.insert(head, taken);
        if self.in_order {
            self.order.push_back(head);
        }
        self.push_head(guest, head);
        Some(head)
    }

    pub(super) fn publish(&mut self, guest: &MockGuest) -> bool {
        let old = std::mem::replace(&mut self.kicked, self.next_avail);
        guest.store(self.avail + 2, self.next_avail);
        // Pairs with the device's fence between asking for kicks and looking again.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = guest.load(self.used + 4 + 8 * u64::from(self.size));
            let passed = self.next_avail.wrapping_sub(event).wrapping_sub(1);
            passed < self.next_avail.wrapping_sub(old)
        } else {
            guest.load(self.used) & 1 == 0
        }
    }

    pub(super) fn used(&mut self, guest: &MockGuest) -> Option<(u16, u32)> {
        let (head, len) = match self.batch {
            Some(last) => in_batch(&self.order, last)?,
            None => {
                if guest.load(self.used + 2) == self.last_used {
                    return None;
                }
                let slot = u64::from(self.last_used & (self.size - 1));
                let entry = guest.read(self.used + 4 + 8 * slot, 8);
                let head = u32::from_le_bytes(entry[..4].try_into().unwrap()) as u16;
                let last = (head, u32::from_le_bytes(entry[4..].try_into().unwrap()));
                if self.in_order {
                    self.batch = Some(last);
                    in_batch(&self.order, last)?
                } else {
                    last
                }
            }
        };
        if self.batch.is_some_and(|(last, _)| last == head) {
            self.batch = None;
        }
        self.last_used = self.last_used.wrapping_add(1);
        let descs = self
            .flying
            .remove(&head)
            .unwrap_or_else(|| panic!("the device used {head}, which was not in flight"));
        self.order.pop_front();
        self.free.extend(descs);
        Some((head, len))
    }
}

/// The oldest chain in flight, as one of a batch whose last one is known (2.7.9).
pub(super) fn in_batch(order: &VecDeque<u16>, last: (u16, u32)) -> Option<(u16, u32)> {
    let oldest = *order.front()?;
    assert!(order.contains(&last.0), "not in flight: {}", last.0);
    Some(if oldest == last.0 { last } else { (oldest, 0) })
}

pub(super) fn write_flag(buffer: &Buffer) -> u16 {
    if buffer.writable { WRITE } else { 0 }
}

pub(super) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let rest = u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
    (u128::from(addr) | rest).to_le_bytes()
}
