//! The book of a packed ring.
//!
//! Descriptors of a packed ring are overwritten by whatever is given back first, so the book has a
//! copy of those in flight. Chains of entries hold them; the others are in a list of free ones.
//! Cursors are kept twice, as the driver was last shown them ("old") and as they will be.
//!
//! | header, at | bits | what |
//! |---|---|---|
//! | 0 | 64 | features |
//! | 8, 10 | 16, 16 | version, number of descriptors |
//! | 12, 14 | 16, 16 | first free entry; the old one |
//! | 16, 18 | 16, 16 | where the ring is used next; the old place |
//! | 20, 21 | 8, 8 | its wrap counter; the old one |
//!
//! | entry, at | bits | what |
//! |---|---|---|
//! | 0 | 8 | 1 while the chain that begins here is in flight |
//! | 2 | 16 | the next entry, of the chain or of the free ones |
//! | 4, 6 | 16, 16 | the chain's last entry; how many it has |
//! | 8 | 64 | counts what is taken |
//! | 16, 18, 20 | 16, 16, 32 | id, flags and length of the descriptor |
//! | 24 | 64 | its address |
//!
//! What belongs together is one word, and written at once.

use vvu::memory::Area;
use vvu::virtio::inflight::{PACKED, needed};

use super::{Again, FEATURES, HEAD, head, is_used, wrong};
use crate::vring::SetupError;
use crate::vring::access::RegionMem;

/// Third word of the header: cursors.
const CURSORS: usize = 16;

/// Words of an entry. The first has its state and its links.
const COUNTER: usize = 8;
const DESC: usize = 16;
const ADDR: usize = 24;
/// Within the first.
const NEXT: usize = 2;

/// A place in the ring, and its wrap counter.
pub(in crate::vring) type Place = (u16, bool);

/// A chain that was taken, as its entries have it.
#[derive(Debug, Clone, Copy)]
struct Kept {
    id: u16,
    first: u16,
    last: u16,
    /// How many entries, which is how many descriptors of the ring. Zero: none.
    slots: u16,
}

const NOTHING: Kept = Kept {
    id: 0,
    first: 0,
    last: 0,
    slots: 0,
};

/// What is in flight of a packed ring. See the [module](super).
#[derive(Debug)]
pub(in crate::vring) struct PackedBook {
    mem: RegionMem,
    size: u16,
    /// Where the list goes on behind each entry, free or not.
    next: Box<[u16]>,
    /// First free entry, and how many there are.
    free: u16,
    room: u16,
    /// The entries of what is in flight, by id; the numbers of entries are one higher.
    by_id: Vec<u16>,
    /// Chains in flight, by their first entry.
    kept: Box<[Kept]>,
    counter: u64,
    /// First entries of what was given back and the driver has not been shown.
    batch: Vec<u16>,
    used: Place,
    again: Again,
}

fn entry(which: u16) -> usize {
    PACKED + PACKED * usize::from(which)
}

/// State and links, as the first word of an entry has them.
fn links(flying: bool, next: u16, last: u16, slots: u16) -> u64 {
    u64::from(flying) | u64::from(next) << 16 | u64::from(last) << 32 | u64::from(slots) << 48
}

impl PackedBook {
    /// Opens the book of a ring of `size` descriptors. Also returns where the ring goes on: the
    /// places of what is available and of what is used next, both of which are `base` if there is
    /// nothing in the book. `is_taken` tells whether the driver was shown that a place of the ring
    /// is used.
    pub(in crate::vring) fn open(
        area: Area,
        size: u16,
        base: Place,
        was_used: impl Fn(Place) -> bool,
    ) -> Result<(Self, Place, Place), SetupError> {
        let mut book = Self {
            mem: RegionMem::new(area, needed(size, true))?,
            size,
            next: (1..=size).collect(),
            free: 0,
            room: size,
            by_id: vec![0; 1 << 16],
            kept: vec![NOTHING; size.into()].into(),
            counter: 0,
            batch: Vec::with_capacity(size.into()),
            used: base,
            again: Again::default(),
        };
        let word = book.mem.word(HEAD);
        let idle = || (0..size).all(|which| !book.is_noted(which));
        if !is_used(word, size, idle)? {
            book.begin();
            return Ok((book, base, base));
        }
        let free = book.settle_cursors(word, was_used)?;
        book.find_chains(free)?;
        book.write_free();
        let taken = size - book.room;
        let (index, wrap) = book.used;
        let next = match index + taken {
            next if next >= size => (next - size, !wrap),
            next => (next, wrap),
        };
        let used = book.used;
        Ok((book, next, used))
    }

    /// A region that nobody has used.
    fn begin(&mut self) {
        // Not yet a book, should we be interrupted.
        self.mem.set_word(HEAD, 0);
        self.mem.set_word(FEATURES, 0);
        for which in 0..self.size {
            self.mem
                .set_word(entry(which), links(false, which + 1, 0, 0));
            self.mem.set_word(entry(which) + COUNTER, 0);
        }
        self.write_used(self.used);
        self.write_free_head(self.free);
    }

    /// Where the ring is used next, and which entry was free then: the driver may have been shown a
    /// batch that was not struck out any more, or not been shown one that was about to be.
    fn settle_cursors(
        &mut self,
        word: u64,
        was_used: impl Fn(Place) -> bool,
    ) -> Result<u16, SetupError> {
        let cursors = self.mem.word(CURSORS);
        let (new, old) = (cursors as u16, (cursors >> 16) as u16);
        let (new_wrap, old_wrap) = (cursors >> 32 & 0xff, cursors >> 40 & 0xff);
        let (free, old_free) = ((word >> 32) as u16, (word >> 48) as u16);
        for (what, index) in [("used index", new), ("old used index", old)] {
            if index >= self.size {
                return Err(wrong(what, index, self.size));
            }
        }
        for (what, index) in [("free head", free), ("old free head", old_free)] {
            if index > self.size {
                return Err(wrong(what, index, self.size + 1));
            }
        }
        let (new, old) = ((new, new_wrap != 0), (old, old_wrap != 0));
        let done = new != old && was_used(old);
        self.used = if done { new } else { old };
        Ok(if done { free } else { old_free })
    }

    /// Finds the chains in flight; all other entries become free ones.
    fn find_chains(&mut self, free: u16) -> Result<(), SetupError> {
        let mut is_free = vec![false; self.size.into()];
        let mut which = free;
        // Round and round, if somebody spoilt it.
        for _ in 0..self.size {
            let Some(place) = is_free.get_mut(usize::from(which)) else {
                break;
            };
            *place = true;
            which = (self.mem.word(entry(which)) >> 16) as u16;
        }
        let mut owner = vec![false; self.size.into()];
        let mut found = Vec::new();
        for first in 0..self.size {
            if is_free.get(usize::from(first)) == Some(&false) && self.is_noted(first) {
                self.find_chain(first, &is_free, &mut owner)?;
                found.push((self.mem.word(entry(first) + COUNTER), first));
            }
        }
        (self.again, self.counter) = Again::new(found);
        // No free entry may look as if it were in flight when it is in no list.
        for which in (0..self.size).filter(|which| owner.get(usize::from(*which)) == Some(&false)) {
            self.mem.set_byte(entry(which), 0);
        }
        (self.free, self.room) = (self.size, 0);
        for which in (0..self.size).rev() {
            if owner.get(usize::from(which)) == Some(&false) {
                self.link(which, self.free);
                (self.free, self.room) = (which, self.room + 1);
            }
        }
        Ok(())
    }

    fn find_chain(
        &mut self,
        first: u16,
        is_free: &[bool],
        owner: &mut [bool],
    ) -> Result<(), SetupError> {
        let slots = (self.mem.word(entry(first)) >> 48) as u16;
        if slots == 0 || slots > self.size {
            return Err(wrong("number of entries of a chain", slots, self.size));
        }
        let mut last = first;
        for slot in 0..slots {
            if slot > 0 {
                let next = (self.mem.word(entry(last)) >> 16) as u16;
                self.set_next(last, next);
                last = next;
            }
            let place = usize::from(last);
            let mine = owner.get_mut(place).filter(|mine| !**mine);
            match (mine, is_free.get(place)) {
                (Some(mine), Some(false)) => *mine = true,
                _ => return Err(wrong("entry of a chain", last, self.size)),
            }
        }
        let id = (self.mem.word(entry(last) + DESC)) as u16;
        let kept = Kept {
            id,
            first,
            last,
            slots,
        };
        match self.keep(kept) {
            true => Ok(()),
            false => Err(wrong("id of a chain, which another one has,", id, id)),
        }
    }

    fn is_noted(&self, which: u16) -> bool {
        self.mem.word(entry(which)) as u8 == 1
    }

    fn set_next(&mut self, which: u16, next: u16) {
        if let Some(place) = self.next.get_mut(usize::from(which)) {
            *place = next;
        }
    }

    /// Writes where a list goes on behind an entry.
    fn link(&mut self, which: u16, next: u16) {
        self.set_next(which, next);
        self.mem.set_half(entry(which) + NEXT, next);
    }

    fn behind(&self, which: u16) -> u16 {
        let next = self.next.get(usize::from(which));
        next.copied().unwrap_or(self.size)
    }

    /// Remembers a chain by its id. False if there is one of that id.
    fn keep(&mut self, kept: Kept) -> bool {
        let (Some(place), Some(by_id)) = (
            self.kept.get_mut(usize::from(kept.first)),
            self.by_id
                .get_mut(usize::from(kept.id))
                .filter(|by_id| **by_id == 0),
        ) else {
            return false;
        };
        (*place, *by_id) = (kept, kept.first + 1);
        true
    }

    /// The chain in flight with this id.
    fn find(&self, id: u16) -> Option<Kept> {
        let first = self.by_id.get(usize::from(id))?.checked_sub(1)?;
        self.kept.get(usize::from(first)).copied()
    }

    fn forget(&mut self, id: u16) {
        if let Some(by_id) = self.by_id.get_mut(usize::from(id)) {
            *by_id = 0;
        }
    }

    /// Writes which entry is the first free one; `old` is the one that counts, should we end here.
    fn write_free_head(&self, old: u16) {
        let free = u64::from(self.free) << 32 | u64::from(old) << 48;
        self.mem.set_word(HEAD, head(self.size) | free);
    }

    /// The same for the place that is used next.
    fn write_used(&self, old: Place) {
        let ((new, new_wrap), (old, old_wrap)) = (self.used, old);
        let wraps = u64::from(new_wrap) << 32 | u64::from(old_wrap) << 40;
        let word = u64::from(new) | u64::from(old) << 16 | wraps;
        self.mem.set_word(CURSORS, word);
    }

    /// Both, for good.
    fn write_free(&self) {
        self.write_free_head(self.free);
        self.write_used(self.used);
    }

    /// Notes that a chain was taken: its `id`, and each of its descriptors. False if that cannot
    /// be: there is one of that id in flight, or no room.
    pub(in crate::vring) fn took(
        &mut self,
        id: u16,
        slots: u16,
        mut descs: impl Iterator<Item = (u64, u64)>,
    ) -> bool {
        self.again.lent = false;
        let first = self.free;
        if slots == 0 || slots > self.room || self.find(id).is_some() {
            return false;
        }
        let mut last = first;
        for slot in 0..slots {
            last = if slot == 0 { first } else { self.behind(last) };
            let (addr, rest) = descs.next().unwrap_or_default();
            // The ring has its length first, the book has it last.
            let mut rest = rest.rotate_left(32);
            if slot + 1 == slots {
                // Whatever the ring has by now.
                rest = rest & !0xffff | u64::from(id);
            }
            self.mem.set_word(entry(last) + DESC, rest);
            self.mem.set_word(entry(last) + ADDR, addr);
        }
        self.mem.set_word(entry(first) + COUNTER, self.counter);
        let word = links(true, self.behind(first), last, slots);
        self.mem.set_word(entry(first), word);
        self.counter = self.counter.wrapping_add(1);
        self.keep(Kept {
            id,
            first,
            last,
            slots,
        });
        (self.free, self.room) = (self.behind(last), self.room - slots);
        // From here on it is taken.
        self.write_free_head(self.free);
        true
    }

    /// Takes back that chains were taken, the last first, whose ids these are. False if they were
    /// of those that were in flight before, and the ring itself has nothing to take back.
    pub(in crate::vring) fn untake(&mut self, ids: impl Iterator<Item = u16>) -> bool {
        for id in ids {
            let Some(kept) = self.find(id) else { continue };
            if self.again.lent {
                self.again.put_back(kept.first);
                continue;
            }
            self.forget(id);
            self.give_up(kept);
            self.write_free_head(self.free);
            self.mem.set_byte(entry(kept.first), 0);
        }
        !self.again.lent
    }

    /// The entries of a chain are free.
    fn give_up(&mut self, kept: Kept) {
        self.link(kept.last, self.free);
        (self.free, self.room) = (kept.first, self.room + kept.slots);
    }

    /// The chain with this id will be shown to the driver.
    #[inline]
    pub(in crate::vring) fn used(&mut self, id: u16) {
        if let Some(kept) = self.find(id)
            && self.batch.len() < self.batch.capacity()
        {
            self.forget(id);
            self.batch.push(kept.first);
        }
    }

    /// Before the driver is shown what was given back: says what that is, and where the ring will
    /// be used next.
    pub(in crate::vring) fn before_publish(&mut self, used: Place) {
        let old = self.free;
        for place in 0..self.batch.len() {
            let first = self.batch.get(place).copied().unwrap_or_default();
            if let Some(kept) = self.kept.get(usize::from(first)).copied() {
                self.give_up(kept);
            }
        }
        self.write_free_head(old);
        let old = std::mem::replace(&mut self.used, used);
        self.write_used(old);
    }

    /// After it: strikes it out.
    pub(in crate::vring) fn after_publish(&mut self) {
        for first in self.batch.drain(..) {
            self.mem.set_byte(entry(first), 0);
        }
        self.write_free();
    }

    /// Whether something is still to be taken again.
    pub(in crate::vring) fn is_resuming(&self) -> bool {
        self.again.is_some()
    }

    /// What is to be taken again.
    pub(in crate::vring) fn again(&mut self) -> &mut Again {
        &mut self.again
    }

    /// A chain that is to be taken again: its id, and how many descriptors it has.
    pub(in crate::vring) fn chain(&self, first: u16) -> (u16, u16) {
        let kept = self.kept.get(usize::from(first)).copied();
        let Kept { id, slots, .. } = kept.unwrap_or(NOTHING);
        (id, slots)
    }

    /// The two halves of a descriptor as it was in the ring, and the entry behind it.
    pub(in crate::vring) fn desc(&self, which: u16) -> ((u64, u64), u16) {
        let rest = self.mem.word(entry(which) + DESC).rotate_right(32);
        let addr = self.mem.word(entry(which) + ADDR);
        ((addr, rest), self.behind(which))
    }
}
