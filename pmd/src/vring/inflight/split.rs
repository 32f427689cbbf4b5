//! The book of a split ring.
//!
//! | header, at | bits | what |
//! |---|---|---|
//! | 0 | 64 | features |
//! | 8, 10 | 16, 16 | version, number of descriptors |
//! | 12 | 16 | head of the last chain of the batch that was given back last |
//! | 14 | 16 | the used index, as the driver was shown it |
//!
//! | entry of a head, at | bits | what |
//! |---|---|---|
//! | 0 | 8 | 1 while it is in flight |
//! | 6 | 16 | head of the chain given back before it |
//! | 8 | 64 | counts what is taken |

use vvu::memory::Area;
use vvu::virtio::inflight::{SPLIT, needed};

use super::{Again, FEATURES, HEAD, head, is_used, wrong};
use crate::vring::SetupError;
use crate::vring::access::RegionMem;
use crate::vring::chain::Chain;

/// Places in an entry.
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// What is in flight of a split ring. See the [module](super).
#[derive(Debug)]
pub(in crate::vring) struct SplitBook {
    mem: RegionMem,
    size: u16,
    /// Whether the chain at each head is in flight.
    flying: Box<[bool]>,
    /// Counts what is taken.
    counter: u64,
    /// Heads given back that the driver has not been shown.
    batch: Vec<u16>,
    last_batch_head: u16,
    used_idx: u16,
    again: Again,
}

fn entry(head: u16) -> usize {
    SPLIT + SPLIT * usize::from(head)
}

impl SplitBook {
    /// Opens the book of a ring of `size` descriptors whose used index is `used_idx`. Also returns
    /// where the ring goes on in the available ring; `base` if there is nothing in the book.
    pub(in crate::vring) fn open(
        area: Area,
        size: u16,
        base: u16,
        used_idx: u16,
    ) -> Result<(Self, u16), SetupError> {
        let mut book = Self {
            mem: RegionMem::new(area, needed(size, false))?,
            size,
            flying: vec![false; size.into()].into(),
            counter: 0,
            batch: Vec::with_capacity(size.into()),
            last_batch_head: 0,
            used_idx,
            again: Again::default(),
        };
        let word = book.mem.word(HEAD);
        let idle = || (0..size).all(|head| !book.is_noted(head));
        if !is_used(word, size, idle)? {
            book.begin();
            return Ok((book, base));
        }
        (book.last_batch_head, book.used_idx) = ((word >> 32) as u16, (word >> 48) as u16);
        book.finish_batch(used_idx)?;
        let found: Vec<_> = (0..size)
            .filter(|head| book.is_noted(*head))
            .map(|head| (book.mem.word(entry(head) + COUNTER), head))
            .collect();
        for (_, head) in &found {
            book.set_flying(*head, true);
        }
        // What was taken is back or in flight.
        let next = used_idx.wrapping_add(found.len() as u16);
        (book.again, book.counter) = Again::new(found);
        Ok((book, next))
    }

    /// A region that nobody has used.
    fn begin(&mut self) {
        // Not yet a book, should we be interrupted.
        self.mem.set_word(HEAD, 0);
        self.mem.set_word(FEATURES, 0);
        for head in 0..self.size {
            self.mem.set_word(entry(head), 0);
            self.mem.set_word(entry(head) + COUNTER, 0);
        }
        self.write_head();
    }

    /// The driver may have been shown a batch that was not struck out any more.
    fn finish_batch(&mut self, used_idx: u16) -> Result<(), SetupError> {
        let count = used_idx.wrapping_sub(self.used_idx);
        if count > self.size {
            // Of a ring that began anew. That is all right if nobody was left behind.
            if (0..self.size).any(|head| self.is_noted(head)) {
                return Err(wrong("used index", self.used_idx, used_idx));
            }
        } else {
            let mut head = self.last_batch_head;
            for _ in 0..count {
                if head >= self.size {
                    return Err(wrong("last batch head", head, self.size));
                }
                let next = (self.mem.word(entry(head)) >> 48) as u16;
                self.mem.set_byte(entry(head), 0);
                head = next;
            }
        }
        self.used_idx = used_idx;
        self.write_head();
        Ok(())
    }

    fn write_head(&self) {
        let batch = u64::from(self.last_batch_head) << 32 | u64::from(self.used_idx) << 48;
        self.mem.set_word(HEAD, head(self.size) | batch);
    }

    fn is_noted(&self, head: u16) -> bool {
        self.mem.word(entry(head)) as u8 == 1
    }

    #[inline]
    fn set_flying(&mut self, head: u16, flying: bool) -> bool {
        let place = self.flying.get_mut(usize::from(head));
        place.is_some_and(|place| std::mem::replace(place, flying) != flying)
    }

    /// Notes that `chains` were taken, in this order. Returns how many of them could have been: one
    /// that is in flight cannot.
    pub(in crate::vring) fn took(&mut self, chains: &[Chain]) -> usize {
        self.again.lent = false;
        for (done, chain) in chains.iter().enumerate() {
            let head = chain.id();
            if !self.set_flying(head, true) {
                return done;
            }
            self.mem.set_word(entry(head) + COUNTER, self.counter);
            self.mem.set_byte(entry(head), 1);
            self.counter = self.counter.wrapping_add(1);
        }
        chains.len()
    }

    /// Takes back that `chains`, the last ones, were taken. False if they were of those that were
    /// in flight before, and the ring itself has nothing to take back.
    pub(in crate::vring) fn untake(&mut self, chains: &[Chain]) -> bool {
        for chain in chains.iter().rev() {
            if self.again.lent {
                self.again.left.push(chain.id());
            } else if self.set_flying(chain.id(), false) {
                self.mem.set_byte(entry(chain.id()), 0);
            }
        }
        !self.again.lent
    }

    /// The chain at `head` will be shown to the driver.
    #[inline]
    pub(in crate::vring) fn used(&mut self, head: u16) {
        if self.flying.get(usize::from(head)) == Some(&true) {
            self.batch.push(head);
        }
    }

    /// Before the driver is shown what was given back: says what that is.
    pub(in crate::vring) fn before_publish(&mut self) {
        for head in &self.batch {
            self.mem.set_half(entry(*head) + NEXT, self.last_batch_head);
            self.last_batch_head = *head;
        }
        self.write_head();
    }

    /// After it: strikes it out.
    pub(in crate::vring) fn after_publish(&mut self, used_idx: u16) {
        let mut batch = std::mem::take(&mut self.batch);
        for head in batch.drain(..) {
            self.mem.set_byte(entry(head), 0);
            self.set_flying(head, false);
        }
        self.batch = batch;
        self.used_idx = used_idx;
        self.write_head();
    }

    /// Whether something is still to be taken again.
    pub(in crate::vring) fn is_resuming(&self) -> bool {
        self.again.is_some()
    }

    /// What is to be taken again.
    pub(in crate::vring) fn again(&mut self) -> &mut Again {
        &mut self.again
    }
}
