//! Split rings (VIRTIO 1.2, 2.7): available and used indices, chains by next fields.

use std::sync::atomic::{Ordering, fence};

use vvu::memory::Area;
use vvu::virtio::RingAreas;

use super::access::SplitMem;
use super::chain::{Chain, Desc, INDIRECT, LINKED, MAX_CHAIN, NEXT, Taken, WRITE, Walk};
use super::format::{Failed, Format, crossed};
use super::inflight::SplitBook;
use super::{RingError, SetupError, feature};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.8).
const NO_NOTIFY: u16 = 1;

/// A split ring's memory and our cursors in it. Indices run freely and wrap at 65536.
#[derive(Debug)]
pub(crate) struct Split {
    mem: SplitMem,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
    /// Next entry of the available ring to look at.
    next_avail: u16,
    /// The driver's index when it was read last. Read again only when more is wanted: the driver
    /// writes the same line.
    seen_avail: u16,
    /// Next entry of the used ring to write.
    next_used: u16,
    /// The used index that the driver can see.
    published: u16,
    /// The used index at the last decision on a call; `None` until the first one, which is
    /// always in favour because nothing is known of what the driver was told before.
    called: Option<u16>,
    /// What is in flight, if that is to outlive us.
    book: Option<Box<SplitBook>>,
}

impl Split {
    /// How many entries the driver made available beyond our cursor; perhaps more than known, if
    /// there are as many as `wanted`.
    #[inline]
    fn pending(&mut self, wanted: usize) -> Result<u16, RingError> {
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        if usize::from(known) >= wanted {
            return Ok(known);
        }
        let index = self.mem.avail_idx();
        let pending = index.wrapping_sub(self.next_avail);
        if pending > self.mem.size() {
            return Err(RingError::AvailJump {
                from: self.next_avail,
                to: index,
                size: self.mem.size(),
            });
        }
        self.seen_avail = index;
        Ok(pending)
    }

    #[inline]
    fn desc(&self, index: u16) -> Result<Desc, RingError> {
        let size = self.mem.size();
        let halves = self.mem.desc(index);
        halves
            .map(Desc::split)
            .ok_or(RingError::OutOfRange { index, size })
    }

    /// Takes up to `most` chains of one descriptor each, all to be read or all to be written, and
    /// returns how many there were before another one.
    #[inline]
    fn take_simple(&mut self, most: usize, taken: &mut Taken) -> usize {
        let first = self.next_avail;
        let at = |n: u16| {
            let head = self.mem.avail_head(first.wrapping_add(n));
            Some((head, Desc::split(self.mem.desc(head)?)))
        };
        let writable = at(0).is_some_and(|(_, desc)| desc.flags & WRITE != 0);
        let added = if writable {
            taken.add_simple(most, true, |n| simple(at(n as u16)?, WRITE))
        } else {
            taken.add_simple(most, false, |n| simple(at(n as u16)?, 0))
        };
        self.next_avail = first.wrapping_add(added as u16);
        added
    }

    /// Takes the next chain, of whatever form. False if there is no room for one as long as it may
    /// be.
    #[inline(never)]
    fn take_any(&mut self, taken: &mut Taken) -> Result<bool, RingError> {
        let head = self.mem.avail_head(self.next_avail);
        let taken = self.take_at(head, taken)?;
        self.next_avail = self.next_avail.wrapping_add(u16::from(taken));
        Ok(taken)
    }

    /// Takes the chain at `head`. False if there is no room for one as long as it may be.
    fn take_at(&self, head: u16, taken: &mut Taken) -> Result<bool, RingError> {
        let Some(mut walk) = taken.begin(head) else {
            return Ok(false);
        };
        let limit = usize::from(self.mem.size()).min(MAX_CHAIN);
        let mut index = head;
        for seen in 1..=limit {
            let desc = self.desc(index)?;
            if desc.flags & INDIRECT != 0 {
                if !self.indirect || desc.flags & NEXT != 0 {
                    return Err(RingError::Indirect { flags: desc.flags });
                }
                walk.count_table();
                table(desc, &mut walk, head)?;
                walk.end(head, seen);
                return Ok(true);
            }
            walk.push(desc)?;
            if desc.flags & NEXT == 0 {
                walk.end(head, seen);
                return Ok(true);
            }
            index = desc.link;
        }
        Err(RingError::TooLong { head, limit })
    }

    /// Takes chains that were in flight when the ring was left.
    fn take_again(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed> {
        let mut done = 0;
        while done < max
            && let Some(head) = self.book.as_mut().and_then(|book| book.again().next())
        {
            match self.take_at(head, taken) {
                Ok(true) => done += 1,
                Ok(false) => {
                    if let Some(book) = &mut self.book {
                        book.again().put_back(head);
                    }
                    break;
                }
                Err(error) => return Err((done, error)),
            }
        }
        Ok(done)
    }
}

/// Head, address and length of a chain of one descriptor, if it is one with these flags.
#[inline]
fn simple((head, desc): (u16, Desc), flags: u16) -> Option<(u16, u64, u32)> {
    (desc.flags & (LINKED | WRITE) == flags).then_some((head, desc.addr, desc.len))
}

/// Descriptors of the indirect table that `outer` names (2.7.5.3).
fn table(outer: Desc, walk: &mut Walk<'_>, head: u16) -> Result<(), RingError> {
    let entries = walk.entries(outer)?;
    // The ring's size does not bound this: Linux fills tables larger than small rings.
    let limit = entries.min(MAX_CHAIN.saturating_sub(walk.walked()));
    let mut index = 0;
    for _ in 0..limit {
        let desc = Desc::split(walk.entry(outer, index)?);
        if desc.flags & INDIRECT != 0 {
            return Err(RingError::Indirect { flags: desc.flags });
        }
        walk.push(desc)?;
        if desc.flags & NEXT == 0 {
            return Ok(());
        }
        index = desc.link;
        if usize::from(index) >= entries {
            return Err(RingError::OutOfRange {
                index,
                size: entries as u16,
            });
        }
    }
    Err(RingError::TooLong { head, limit })
}

impl Format for Split {
    type Mem = SplitMem;

    fn mem(areas: RingAreas, size: u16, features: u64) -> Result<SplitMem, SetupError> {
        SplitMem::new(areas, size, features & feature::EVENT_IDX != 0)
    }

    fn new(
        mem: SplitMem,
        base: u32,
        features: u64,
        inflight: Option<Area>,
    ) -> Result<Self, SetupError> {
        let used = mem.used_idx();
        let mut next_avail = base as u16;
        let mut book = None;
        if let Some(area) = inflight {
            let (opened, next) = SplitBook::open(area, mem.size(), next_avail, used)?;
            next_avail = next;
            book = Some(Box::new(opened));
        }
        let mut this = Self {
            mem,
            indirect: features & feature::INDIRECT_DESC != 0,
            event_idx: features & feature::EVENT_IDX != 0,
            in_order: features & feature::IN_ORDER != 0,
            next_avail,
            seen_avail: next_avail,
            next_used: used,
            published: used,
            called: None,
            book,
        };
        this.disable_kicks();
        Ok(this)
    }

    #[inline]
    fn expect(&self, chains: usize) {
        // Lines of the used ring.
        let mut index = self.next_used;
        for _ in 0..chains.div_ceil(8) {
            self.mem.prefetch_used(index);
            index = index.wrapping_add(8);
        }
    }

    #[inline]
    fn next(&self) -> Option<u64> {
        if self.seen_avail == self.next_avail {
            return None;
        }
        let (addr, _) = self.mem.desc(self.mem.avail_head(self.next_avail))?;
        Some(addr)
    }

    #[inline]
    fn take(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed> {
        let pending = self.pending(max).map_err(|error| (0, error))?;
        let wanted = usize::from(pending).min(max).min(taken.room());
        let mut done = 0;
        loop {
            done += self.take_simple(wanted - done, taken);
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
        let (count, error) = match self.take(max, taken) {
            Ok(count) => (count, None),
            Err((count, error)) => (count, Some(error)),
        };
        let book = self.book.as_mut();
        let noted = book.map_or(count, |book| book.took(taken.last(count)));
        if let Some(chain) = taken.last(count).get(noted) {
            let id = chain.id();
            let rest = count - noted;
            taken.drop_last(rest);
            self.next_avail = self.next_avail.wrapping_sub(rest as u16);
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
            && !book.untake(chains)
        {
            return;
        }
        self.next_avail = self.next_avail.wrapping_sub(chains.len() as u16);
    }

    #[inline]
    fn give_back(
        &mut self,
        chains: &[Chain],
        mut written: impl FnMut(&Chain) -> Option<u32>,
    ) -> usize {
        let first = self.next_used;
        let mut next = first;
        for chain in chains {
            let Some(len) = written(chain) else {
                break;
            };
            self.mem.set_used(next, chain.id(), len);
            next = next.wrapping_add(1);
        }
        self.next_used = next;
        next.wrapping_sub(first).into()
    }

    #[inline]
    fn give_back_read(&mut self, chains: &[Chain]) {
        if !self.in_order {
            self.give_back(chains, |_| Some(0));
        } else if let Some(last) = chains.last() {
            // One entry, which names the last chain, is enough for all (2.7.9).
            self.mem.set_used(self.next_used, last.id(), 0);
            self.next_used = self.next_used.wrapping_add(chains.len() as u16);
        }
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        match &mut self.book {
            None => self.mem.publish_used_idx(self.next_used),
            Some(book) => {
                book.before_publish();
                self.mem.publish_used_idx(self.next_used);
                book.after_publish(self.next_used);
            }
        }
        self.published = self.next_used;
        true
    }

    #[inline]
    fn needs_call(&mut self) -> bool {
        // Pairs with the driver's full barrier between writing used_event (or the flags) and
        // looking at the used index again: either it sees our index, or we see its wish.
        fence(Ordering::SeqCst);
        let new = self.published;
        let old = self.called.replace(new);
        if !self.event_idx {
            return self.mem.avail_flags() & NO_INTERRUPT == 0;
        }
        old.is_none_or(|old| crossed(self.mem.used_event(), new, old))
    }

    fn disable_kicks(&mut self) {
        // With the event index there is nothing to do: avail_event stays behind the cursor, and
        // the driver kicks only when it passes it, once in 65536 entries.
        if !self.event_idx {
            self.mem.set_used_flags(NO_NOTIFY);
        }
    }

    fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.mem.set_avail_event(self.next_avail);
        } else {
            self.mem.set_used_flags(0);
        }
        // Pairs with the driver's full barrier between writing the available index and reading
        // avail_event (or the flags): either it sees our wish, or we see its index.
        fence(Ordering::SeqCst);
        self.mem.avail_idx() != self.next_avail || self.is_resuming()
    }

    #[inline]
    fn size(&self) -> u16 {
        self.mem.size()
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    fn is_resuming(&self) -> bool {
        self.book.as_ref().is_some_and(|book| book.is_resuming())
    }

    fn replace_mem(&mut self, mem: SplitMem) -> SplitMem {
        self.seen_avail = self.next_avail;
        std::mem::replace(&mut self.mem, mem)
    }
}
