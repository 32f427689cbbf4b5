//! One ring in service, whatever its format: what was taken, what was given back, what failed.

use std::sync::Arc;

use vvu::memory::{MemTable, VolatileSlice};
use vvu::notify::Call;

use super::RingError;
use super::chain::{Chain, Taken};
use super::format::Format;

/// The device side of a ring of format `F`.
#[derive(Debug)]
pub(crate) struct RingOf<F> {
    pub(super) format: F,
    /// The memory that addresses mean, and the chains taken and not yet given back.
    pub(super) taken: Taken,
    pub(super) failed: Option<RingError>,
    pub(super) call: Call,
    pub(super) err: Call,
}

impl<F: Format> RingOf<F> {
    /// Takes up to `max` more chains and returns how many were taken. Stops at the first bad
    /// chain, which [`RingOf::failed`] then reports; the chains before it are good.
    #[inline]
    pub(crate) fn take_burst(&mut self, max: usize) -> usize {
        if self.failed.is_some() {
            return 0;
        }
        let taken = match self.format.keeps_book() {
            false => self.format.take(max, &mut self.taken),
            true => self.format.take_noted(max, &mut self.taken),
        };
        match taken {
            Ok(taken) => taken,
            Err((taken, error)) => {
                self.failed = Some(error);
                taken
            }
        }
    }

    /// Says that so many chains will be taken, written and given back soon.
    #[inline]
    pub(crate) fn expect(&mut self, chains: usize) {
        self.format.expect(chains);
    }

    /// Says that the next chain will be taken, written and given back some time.
    #[inline]
    pub(crate) fn look_ahead(&self) {
        if let Some(addr) = self.format.next() {
            self.taken.prefetch(addr);
        }
    }

    /// What is wrong with the ring, if something is. Once set, nothing more is taken.
    #[inline]
    pub(crate) fn failed(&self) -> Option<RingError> {
        self.failed
    }

    /// What was taken and not yet given back.
    #[inline]
    pub(crate) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// Chains taken and not yet given back, oldest first.
    #[inline]
    pub(crate) fn chains(&self) -> &[Chain] {
        self.taken.chains()
    }

    /// Gives back the oldest chain, `len` bytes of it written. The driver sees it when it is
    /// published. Like all that give back within a burst, only for rings that keep no book.
    #[inline]
    pub(crate) fn give_back(&mut self, len: u32) {
        debug_assert!(!self.format.keeps_book());
        let next = self.taken.chains().get(..1).unwrap_or(&[]);
        let given = self.format.give_back(next, |_| Some(len));
        self.taken.skip(given);
    }

    /// Shows `fill` the next chains, as long as each is one piece of memory, and gives back those of
    /// which it says how much it has written.
    #[inline]
    pub(crate) fn fill_each(&mut self, mut fill: impl FnMut(VolatileSlice<'_>) -> Option<u32>) {
        let Self { format, taken, .. } = self;
        let filled = format.give_back(taken.chains(), |chain| {
            taken.writable_whole(chain).and_then(&mut fill)
        });
        taken.skip(filled);
    }

    /// Gives back all chains, nothing of them written, and ends the burst without telling the
    /// driver: it hears of it at the next [`RingOf::publish`].
    #[inline]
    pub(crate) fn give_back_read(&mut self) {
        self.format.give_back_read(self.taken.chains());
        self.taken.clear();
    }

    /// The chains taken are kept: whoever copied them gives each back when it is done, in any
    /// order, by [`RingOf::give_back_kept`]. Ends the burst.
    #[inline]
    pub(crate) fn keep_all(&mut self) {
        self.taken.clear();
    }

    /// Gives back a chain that was kept, `len` bytes of it written. The driver sees it when it is
    /// published.
    #[inline]
    pub(crate) fn give_back_kept(&mut self, chain: &Chain, len: u32) {
        self.format.note_used(chain);
        self.format
            .give_back(std::slice::from_ref(chain), |_| Some(len));
    }

    /// Whether something of this burst was given back.
    #[inline]
    pub(crate) fn has_used(&self) -> bool {
        self.taken.used() > 0
    }

    /// Ends a burst: chains not given back count as never taken, the others are published at
    /// once, and the driver is called if it wants to be.
    #[inline]
    pub(crate) fn finish(&mut self) {
        self.settle();
        self.publish();
    }

    /// Ends a burst without telling the driver: it hears of it at the next [`RingOf::publish`].
    #[inline]
    pub(crate) fn settle(&mut self) {
        self.format.untake(self.taken.chains());
        self.taken.clear();
    }

    /// Publishes what was given back, if anything, and calls the driver if it wants to be.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.format.publish() && self.format.needs_call() {
            self.call.ring();
        }
    }

    /// Entries of the ring given back that the driver has not been shown.
    #[inline]
    pub(crate) fn unpublished(&self) -> u16 {
        self.format.unpublished()
    }

    /// Number of entries.
    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.format.size()
    }

    /// Moves the ring to a new memory; chains taken are forgotten, to be taken again. Returns the
    /// old one.
    pub(super) fn set_memory(
        &mut self,
        memory: Arc<MemTable>,
        mem: F::Mem,
    ) -> (Arc<MemTable>, F::Mem) {
        self.finish();
        let mem = self.format.replace_mem(mem);
        (self.taken.set_memory(memory), mem)
    }
}
