//! What is in flight, in a buffer that outlives us (vhost-user, "Inflight I/O tracking").
//!
//! The front-end keeps a region for each ring. A chain is noted there when it is taken, before
//! anything is done with it, and struck out when the driver has been shown that it is back.
//! Whoever serves the ring after us finds there what was taken and not given back, and does that
//! again, in the order in which it was taken. So a request is done at least once, and given back
//! exactly once, whichever instruction was our last.
//!
//! Two promises carry that. Stores are made in program order, as far as somebody can tell who looks
//! when we are dead. And between the store that shows the driver a batch, and the one that says so
//! here, the region names the batch: who comes next compares with the ring and finishes the work.
//!
//! The region is shared with the front-end. It is read when a ring starts, judged, and from then on
//! only written: everything that is decided meanwhile is decided on private copies.
//!
//! | file | what |
//! |---|---|
//! | `split`, `packed` | the book of each format |
//! | `killing` | tests that end us at each store |

#[cfg(test)]
pub(super) mod killing;
mod packed;
mod split;
#[cfg(test)]
mod tests;

pub(super) use packed::{PackedBook, Place};
pub(super) use split::SplitBook;

use super::SetupError;

/// Version of the regions' layout; zero in a buffer that nobody has used.
const VERSION: u16 = 1;

/// First word of a header: features, none of which there are.
const FEATURES: usize = 0;
/// Second word: version and number of descriptors in the low half; the rest is the format's.
const HEAD: usize = 8;

/// The low half of the second word.
fn head(size: u16) -> u64 {
    u64::from(VERSION) | u64::from(size) << 16
}

/// Whether a region has been used for a ring of `size` descriptors. `idle` tells whether nothing is
/// in flight in it, in which case it may have been for a ring of another size.
fn is_used(head: u64, size: u16, idle: impl Fn() -> bool) -> Result<bool, SetupError> {
    let (version, found) = (head as u16, (head >> 16) as u16);
    match version {
        0 => Ok(false),
        VERSION if found == size => Ok(true),
        VERSION if idle() => Ok(false),
        VERSION => Err(wrong("descriptors", found, size)),
        _ => Err(wrong("version", version, VERSION)),
    }
}

fn wrong(what: &'static str, found: impl Into<u64>, expected: impl Into<u64>) -> SetupError {
    SetupError::Inflight {
        what,
        found: found.into(),
        expected: expected.into(),
    }
}

/// Chains that were in flight when the ring was left, to be taken again. They have a burst of their
/// own: the ring itself has nothing to take back of it.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// The next one is the last.
    left: Vec<u16>,
    /// The chains of this burst are of these.
    lent: bool,
}

impl Again {
    /// From what was in flight, with the counter of each. Also returns the next counter.
    fn new(mut found: Vec<(u64, u16)>) -> (Self, u64) {
        if !found.is_empty() {
            tracing::info!(requests = found.len(), "taken again: left in flight");
        }
        found.sort_unstable();
        let next = found
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        let left = found.into_iter().rev().map(|(_, which)| which).collect();
        (Self { left, lent: false }, next)
    }

    /// Whether there are some.
    pub(super) fn is_some(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether the burst that has begun, if `open`, is theirs.
    pub(super) fn has_burst(&self, open: bool) -> bool {
        self.is_some() || self.lent && open
    }

    /// The next one, which is lent to this burst.
    pub(super) fn next(&mut self) -> Option<u16> {
        let which = self.left.pop()?;
        self.lent = true;
        Some(which)
    }

    /// It comes again, in another burst.
    pub(super) fn put_back(&mut self, which: u16) {
        self.left.push(which);
    }
}
