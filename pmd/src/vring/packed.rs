//! Packed rings (VIRTIO 1.2, 2.8): one ring of descriptors that both sides write, chains that lie
//! one behind the other.

use std::sync::atomic::{Ordering, fence};

use vvu::memory::Area;
use vvu::virtio::RingAreas;

use super::access::PackedMem;
use super::chain::{Chain, Desc, INDIRECT, LINKED, MAX_CHAIN, NEXT, Taken, WRITE, Walk};
use super::cursor::{AVAIL, Cursor, USED};
use super::format::{Failed, Format, crossed};
use super::inflight::{PackedBook, Place};
use super::{RingError, SetupError, feature};

/// RING_EVENT_FLAGS_ENABLE (2.8.10): tell of everything.
const ENABLE: u16 = 0;
/// RING_EVENT_FLAGS_DISABLE: tell of nothing.
const DISABLE: u16 = 1;
/// RING_EVENT_FLAGS_DESC: tell of one descriptor.
const ONE: u16 = 2;

/// A packed ring's memory and our cursors in it.
#[derive(Debug)]
pub(crate) struct Packed {
    mem: PackedMem,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
    avail: Cursor,
    used: Cursor,
    /// The first descriptor given back that the driver cannot see, unless it is `used`. As long as
    /// it is missing, the driver does not look at those behind it.
    shown: Cursor,
    /// Its length, id and flags.
    held: u64,
    /// Slots shown since the last decision on a call; `None` until the first one, which is always
    /// in favour because nothing is known of what the driver was told before.
    since_call: Option<u16>,
    /// What is in flight, if that is to outlive us.
    book: Option<Box<PackedBook>>,
}

impl Packed {
    /// Descriptor `index`, in whatever state.
    #[inline]
    fn desc(&self, index: u16) -> Result<Desc, RingError> {
        let size = self.mem.size();
        let halves = self.mem.desc(index);
        halves
            .map(Desc::packed)
            .ok_or(RingError::OutOfRange { index, size })
    }

    /// Takes up to `most` chains of one descriptor each, and returns how many there were before
    /// the end or another one.
    #[inline]
    fn take_simple(&mut self, most: usize, taken: &mut Taken) -> usize {
        let mut done = 0;
        loop {
            // Up to the end of the ring: there the flags that mean available change.
            let Cursor { index, .. } = self.avail;
            let run = (most - done).min(usize::from(self.mem.size() - index));
            let added = self.take_run(run, taken);
            self.avail.forward(added as u16, self.mem.size());
            done += added;
            if added < run || done == most {
                return done;
            }
        }
    }

    /// The same without the cursor, before the end of the ring, all to be read or all to be written.
    #[inline]
    fn take_run(&self, most: usize, taken: &mut Taken) -> usize {
        let Cursor { index, .. } = self.avail;
        let available = self.avail.available();
        let at = |n: u16| self.mem.desc(index + n).map(Desc::packed);
        if at(0).is_some_and(|desc| desc.flags & WRITE != 0) {
            let flags = available | WRITE;
            taken.add_simple(most, true, |n| simple(at(n as u16)?, flags))
        } else {
            taken.add_simple(most, false, |n| simple(at(n as u16)?, available))
        }
    }

    /// Descriptors that the driver may still make available: those not taken, or given back.
    #[inline]
    fn left(&self) -> u16 {
        let size = self.mem.size();
        size - self.avail.ahead_of(self.used, size)
    }

    /// Takes the next chain, of whatever form. False if there is none, or no room for one as long
    /// as it may be.
    #[inline(never)]
    fn take_any(&mut self, taken: &mut Taken) -> Result<bool, RingError> {
        let mut place = self.avail;
        let head = place.index;
        let mut desc = self.desc(head)?;
        // What is taken must be given back before it can be made available again.
        let limit = usize::from(self.left()).min(MAX_CHAIN);
        if limit == 0 || !place.is_available(desc.flags) {
            return Ok(false);
        }
        let Some(mut walk) = taken.begin(head) else {
            return Ok(false);
        };
        for slots in 1..=limit {
            if desc.flags & INDIRECT != 0 {
                if !self.indirect || desc.flags & NEXT != 0 || slots > 1 {
                    return Err(RingError::Indirect { flags: desc.flags });
                }
                walk.count_table();
                table(desc, &mut walk)?;
            } else {
                walk.push(desc)?;
            }
            if desc.flags & NEXT == 0 {
                // The last descriptor names the buffer (2.8.6).
                walk.end(desc.link, slots);
                place.forward(1, self.mem.size());
                self.avail = place;
                return Ok(true);
            }
            place.forward(1, self.mem.size());
            desc = self.desc(place.index)?;
        }
        Err(RingError::TooLong { head, limit })
    }

    /// Takes chains that were in flight when the ring was left, from the book's descriptors.
    fn take_again(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed> {
        let Some(book) = &mut self.book else {
            return Ok(0);
        };
        let mut done = 0;
        while done < max
            && let Some(first) = book.again().next()
        {
            match take_kept(book, self.indirect, first, taken) {
                Ok(true) => done += 1,
                Ok(false) => {
                    book.again().put_back(first);
                    break;
                }
                Err(error) => return Err((done, error)),
            }
        }
        Ok(done)
    }

    /// Makes all descriptors that were taken and are not used look as they were: somebody who was
    /// killed may have filled them in, behind one that the driver has not been shown.
    fn hide_unpublished(&self, used: Cursor, avail: Cursor) {
        let mut place = used;
        while place != avail {
            if let Some((_, rest)) = self.mem.desc(place.index)
                && !place.is_available((rest >> 48) as u16)
            {
                let flags = if place.wrap { AVAIL } else { USED };
                let rest = rest & !(0xffff << 48) | u64::from(flags) << 48;
                self.mem.set_rest(place.index, rest);
            }
            place.forward(1, self.mem.size());
        }
    }

    /// Gives back the buffer `id`, `len` bytes of it written, with an entry at `place` (2.8.4).
    #[inline]
    fn put(&mut self, place: Cursor, id: u16, len: u32) {
        let mut flags = if place.wrap { AVAIL | USED } else { 0 };
        flags |= if len > 0 { WRITE } else { 0 };
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        if place == self.shown {
            self.held = rest;
        } else {
            self.mem.set_rest(place.index, rest);
        }
    }
}

/// Id, address and length of a chain of one descriptor, if it is one with these flags.
#[inline]
fn simple(desc: Desc, flags: u16) -> Option<(u16, u64, u32)> {
    let found = desc.flags & (AVAIL | USED | LINKED | WRITE);
    (found == flags).then_some((desc.link, desc.addr, desc.len))
}

/// Descriptors of the indirect table that `outer` names: all of them, in order (2.8.7).
fn table(outer: Desc, walk: &mut Walk<'_>) -> Result<(), RingError> {
    let entries = walk.entries(outer)?;
    for index in 0..entries as u16 {
        let desc = Desc::packed(walk.entry(outer, index)?);
        if desc.flags & INDIRECT != 0 {
            return Err(RingError::Indirect { flags: desc.flags });
        }
        walk.push(desc)?;
    }
    Ok(())
}

/// Takes the chain that begins at an entry of the book. False if there is no room for it.
fn take_kept(
    book: &PackedBook,
    indirect: bool,
    first: u16,
    taken: &mut Taken,
) -> Result<bool, RingError> {
    let (id, slots) = book.chain(first);
    let Some(mut walk) = taken.begin(id) else {
        return Ok(false);
    };
    let mut which = first;
    for slot in 1..=slots {
        let (halves, next) = book.desc(which);
        let desc = Desc::packed(halves);
        if (desc.flags & NEXT == 0) != (slot == slots) {
            return Err(RingError::Flying { id });
        }
        if desc.flags & INDIRECT != 0 {
            if !indirect || slots > 1 {
                return Err(RingError::Indirect { flags: desc.flags });
            }
            walk.count_table();
            table(desc, &mut walk)?;
        } else {
            walk.push(desc)?;
        }
        which = next;
    }
    walk.end(id, slots.into());
    Ok(true)
}

impl Format for Packed {
    type Mem = PackedMem;

    fn mem(areas: RingAreas, size: u16, _features: u64) -> Result<PackedMem, SetupError> {
        PackedMem::new(areas, size)
    }

    fn new(
        mem: PackedMem,
        base: u32,
        features: u64,
        inflight: Option<Area>,
    ) -> Result<Self, SetupError> {
        let avail = Cursor::from_bits(base as u16);
        if avail.index >= mem.size() {
            return Err(SetupError::Base {
                index: avail.index,
                size: mem.size(),
            });
        }
        // A ring that stops gives everything back, so both cursors are the same where it goes on.
        // Some front-ends leave the used half of the base at zero.
        let (mut used, mut next) = (avail, avail);
        let mut book = None;
        if let Some(area) = inflight {
            let was_used = |place: Place| {
                let place = Cursor::from_place(place);
                let desc = mem.desc(place.index).map(Desc::packed);
                desc.is_none_or(|desc| !place.is_available(desc.flags))
            };
            let opened = PackedBook::open(area, mem.size(), avail.place(), was_used)?;
            (next, used) = (Cursor::from_place(opened.1), Cursor::from_place(opened.2));
            book = Some(Box::new(opened.0));
        }
        let mut this = Self {
            mem,
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            in_order: features & feature::IN_ORDER != 0,
            avail: next,
            used,
            shown: used,
            held: 0,
            since_call: None,
            book,
        };
        this.hide_unpublished(used, next);
        this.disable_kicks();
        Ok(this)
    }

    #[inline]
    fn expect(&self, chains: usize) {
        let size = self.mem.size();
        let mut index = self.avail.index;
        for _ in 0..chains.div_ceil(4) {
            self.mem.prefetch(index);
            index += 4;
            if index >= size {
                index -= size;
            }
        }
    }

    #[inline]
    fn next(&self) -> Option<u64> {
        let desc = Desc::packed(self.mem.desc(self.avail.index)?);
        self.avail.is_available(desc.flags).then_some(desc.addr)
    }

    #[inline]
    fn take(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed> {
        let wanted = max.min(taken.room());
        let mut done = 0;
        loop {
            let most = (wanted - done).min(self.left().into());
            done += self.take_simple(most, taken);
            if done == wanted {
                return Ok(done);
            }
            match self.take_any(taken) {
                Ok(true) => done += 1,
                Ok(false) => return Ok(done),
                Err(error) => return Err((done, error)),
            }
        }
    }

    #[inline]
    fn keeps_book(&self) -> bool {
        self.book.is_some()
    }

    fn take_noted(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed> {
        let open = !taken.is_empty();
        let book = self.book.as_mut();
        if book.is_some_and(|book| book.again().has_burst(open)) {
            return self.take_again(max, taken);
        }
        let mut place = self.avail;
        let (count, error) = match self.take(max, taken) {
            Ok(count) => (count, None),
            Err((count, error)) => (count, Some(error)),
        };
        let size = self.mem.size();
        let mut noted = 0;
        if let Some(book) = &mut self.book {
            for chain in taken.last(count) {
                // Once more, for whoever comes after us, who will judge what is found here.
                let descs = (0..chain.slots()).map(|_| {
                    let halves = self.mem.desc(place.index).unwrap_or_default();
                    place.forward(1, size);
                    halves
                });
                if !book.took(chain.id(), chain.slots(), descs) {
                    break;
                }
                noted += 1;
            }
        }
        let rest = taken.last(count).get(noted..).unwrap_or(&[]);
        if let Some(id) = rest.first().map(Chain::id) {
            for chain in rest {
                self.avail.back(chain.slots(), size);
            }
            taken.drop_last(count - noted);
            return Err((noted, RingError::Flying { id }));
        }
        error.map_or(Ok(count), |error| Err((count, error)))
    }

    #[inline]
    fn note_used(&mut self, chain: &Chain) {
        if let Some(book) = &mut self.book {
            book.used(chain.id());
        }
    }

    #[inline]
    fn untake(&mut self, chains: &[Chain]) {
        if let Some(book) = &mut self.book
            && !book.untake(chains.iter().rev().map(Chain::id))
        {
            return;
        }
        for chain in chains {
            self.avail.back(chain.slots(), self.mem.size());
        }
    }

    #[inline]
    fn give_back(
        &mut self,
        chains: &[Chain],
        mut written: impl FnMut(&Chain) -> Option<u32>,
    ) -> usize {
        let size = self.mem.size();
        let mut place = self.used;
        let mut done = 0;
        for chain in chains {
            let Some(len) = written(chain) else {
                break;
            };
            self.put(place, chain.id(), len);
            place.forward(chain.slots(), size);
            done += 1;
        }
        self.used = place;
        done
    }

    #[inline]
    fn give_back_read(&mut self, chains: &[Chain]) {
        if !self.in_order {
            self.give_back(chains, |_| Some(0));
        } else if let Some(last) = chains.last() {
            // One entry, which names the last chain, is enough for all that the driver has not been
            // shown (2.8.9): nothing is written where it goes on meanwhile.
            self.put(self.shown, last.id(), 0);
            let slots = chains.iter().map(Chain::slots).sum();
            self.used.forward(slots, self.mem.size());
        }
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        self.used.ahead_of(self.shown, self.mem.size())
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let slots = self.unpublished();
        if slots == 0 {
            return false;
        }
        match &mut self.book {
            None => self.mem.publish_rest(self.shown.index, self.held),
            Some(book) => {
                book.before_publish(self.used.place());
                self.mem.publish_rest(self.shown.index, self.held);
                book.after_publish();
            }
        }
        self.shown = self.used;
        if let Some(since) = &mut self.since_call {
            *since = since.saturating_add(slots);
        }
        true
    }

    #[inline]
    fn needs_call(&mut self) -> bool {
        // Pairs with the driver's full barrier between writing its event structure and looking
        // at the ring again: either it sees our descriptor, or we see its wish.
        fence(Ordering::SeqCst);
        let since = self.since_call.replace(0);
        let event = self.mem.driver_event();
        match ((event >> 16) as u16 & 3, since) {
            (DISABLE, _) => false,
            (ONE, Some(since)) if self.event_idx && since < self.mem.size() => {
                let wish = Cursor::from_bits(event as u16);
                let mut wanted = wish.index;
                if wish.wrap != self.used.wrap {
                    // In the round before.
                    wanted = wanted.wrapping_sub(self.mem.size());
                }
                let new = self.used.index;
                crossed(wanted, new, new.wrapping_sub(since))
            }
            _ => true,
        }
    }

    fn disable_kicks(&mut self) {
        self.mem.set_device_event(u32::from(DISABLE) << 16);
    }

    fn enable_kicks(&mut self) -> bool {
        let (place, flags) = if self.event_idx {
            (self.avail.bits(), ONE)
        } else {
            (0, ENABLE)
        };
        self.mem
            .set_device_event(u32::from(place) | u32::from(flags) << 16);
        // Pairs with the driver's full barrier between making a descriptor available and reading
        // our event structure: either it sees our wish, or we see its descriptor.
        fence(Ordering::SeqCst);
        self.desc(self.avail.index)
            .is_ok_and(|desc| self.avail.is_available(desc.flags))
            || self.is_resuming()
    }

    #[inline]
    fn size(&self) -> u16 {
        self.mem.size()
    }

    fn base(&self) -> u32 {
        u32::from(self.avail.bits()) | u32::from(self.used.bits()) << 16
    }

    fn is_resuming(&self) -> bool {
        self.book.as_ref().is_some_and(|book| book.is_resuming())
    }

    fn replace_mem(&mut self, mem: PackedMem) -> PackedMem {
        std::mem::replace(&mut self.mem, mem)
    }
}
