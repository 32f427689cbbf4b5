//! Cursors of a split ring (VIRTIO 1.2, 2.7): available and used indices, and who wants to be
//! told what. Knows no chains.

use std::sync::atomic::{Ordering, fence};

use super::RingError;
use super::access::SplitMem;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.8).
const NO_NOTIFY: u16 = 1;

/// A split ring's memory and our cursors in it. Indices run freely and wrap at 65536.
#[derive(Debug)]
pub(super) struct Split {
    mem: SplitMem,
    event_idx: bool,
    /// Next entry of the available ring to look at.
    next_avail: u16,
    /// Next entry of the used ring to write.
    next_used: u16,
    /// The used index that the driver can see.
    published: u16,
    /// The used index at the last decision on a call; `None` until the first one, which is
    /// always in favour because nothing is known of what the driver was told before.
    called: Option<u16>,
}

impl Split {
    pub(super) fn new(mem: SplitMem, base: u16, event_idx: bool) -> Self {
        let used = mem.used_idx();
        let mut this = Self {
            mem,
            event_idx,
            next_avail: base,
            next_used: used,
            published: used,
            called: None,
        };
        this.disable_kicks();
        this
    }

    pub(super) fn mem(&self) -> &SplitMem {
        &self.mem
    }

    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// How many entries the driver made available beyond our cursor.
    #[inline]
    pub(super) fn pending(&self) -> Result<u16, RingError> {
        let index = self.mem.avail_idx();
        let pending = index.wrapping_sub(self.next_avail);
        if pending > self.mem.size() {
            return Err(RingError::AvailJump {
                from: self.next_avail,
                to: index,
                size: self.mem.size(),
            });
        }
        Ok(pending)
    }

    /// The head at the cursor. Only after [`Split::pending`] counted it.
    #[inline]
    pub(super) fn peek(&self) -> u16 {
        self.mem.avail_head(self.next_avail)
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    pub(super) fn rewind(&mut self, chains: u16) {
        self.next_avail = self.next_avail.wrapping_sub(chains);
    }

    #[inline]
    pub(super) fn push_used(&mut self, head: u16, len: u32) {
        self.mem.set_used(self.next_used, head, len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// How much was pushed since the driver was shown something.
    #[inline]
    pub(super) fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Shows the driver what was pushed. False if there was nothing.
    pub(super) fn publish(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        self.mem.publish_used_idx(self.next_used);
        self.published = self.next_used;
        true
    }

    /// Whether the driver wants to be told of what was published since the last time it was
    /// asked (2.7.7.2).
    pub(super) fn needs_call(&mut self) -> bool {
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

    pub(super) fn disable_kicks(&mut self) {
        // With the event index there is nothing to do: avail_event stays behind the cursor, and
        // the driver kicks only when it passes it, once in 65536 entries.
        if !self.event_idx {
            self.mem.set_used_flags(NO_NOTIFY);
        }
    }

    pub(super) fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.mem.set_avail_event(self.next_avail);
        } else {
            self.mem.set_used_flags(0);
        }
        // Pairs with the driver's full barrier between writing the available index and reading
        // avail_event (or the flags): either it sees our wish, or we see its index.
        fence(Ordering::SeqCst);
        self.mem.avail_idx() != self.next_avail
    }

    pub(super) fn replace_mem(&mut self, mem: SplitMem) -> SplitMem {
        std::mem::replace(&mut self.mem, mem)
    }
}

/// Whether going from `old` to `new` passes `event` (vring_need_event, 2.7.7.2 and 2.7.10.1).
pub(super) fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
