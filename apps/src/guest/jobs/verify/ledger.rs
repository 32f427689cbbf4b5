//! Which of a sender's frames arrived, in which order, and how often. Pure.

use std::collections::BTreeSet;

/// Frames that are missed by number; what is missing beyond is only counted. The sender is not
/// trusted with our memory.
const REMEMBERED: usize = 1 << 16;

/// What is known of one sender's frames.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// How often the sender lost its connection, as far as heard.
    epoch: Option<u16>,
    /// The number that the next frame should have.
    expected: u64,
    missing: BTreeSet<u64>,
    /// Missing, too, without being remembered.
    forgotten: u64,
    /// Whether our connection broke and the sender was not heard of since.
    broken: bool,
    pub(super) received: u64,
    pub(super) bytes: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    pub(super) interrupted: u64,
}

/// Whether `epoch` comes after `known`, in a count that wraps.
fn is_after(epoch: u16, known: u16) -> bool {
    (1..1 << 15).contains(&epoch.wrapping_sub(known))
}

impl Ledger {
    /// Frame `sequence` of `len` bytes arrived.
    pub(super) fn arrived(&mut self, epoch: u16, sequence: u64, len: usize) {
        match self.epoch {
            Some(known) if known == epoch => {}
            Some(known) if is_after(known, epoch) => {
                // Sent before the connection broke, delivered after.
                self.interrupted += 1;
                return;
            }
            _ => {
                self.resync(epoch, sequence);
            }
        }
        if sequence >= self.expected {
            self.upto(sequence);
            self.expected = sequence.saturating_add(1);
        } else if self.missing.remove(&sequence) {
            self.reordered += 1;
        } else if self.broken {
            self.interrupted += 1;
            return;
        } else {
            self.duplicated += 1;
            return;
        }
        self.received += 1;
        self.bytes += len as u64;
    }

    /// All frames before `sequence` have been sent.
    pub(super) fn upto(&mut self, sequence: u64) {
        let room = REMEMBERED.saturating_sub(self.missing.len()) as u64;
        let end = sequence.min(self.expected.saturating_add(room));
        self.missing.extend(self.expected..end);
        self.forgotten += sequence.saturating_sub(end.max(self.expected));
        self.expected = self.expected.max(sequence);
    }

    /// The sender, or a back-end between us, lost its connection and goes on at `sequence`: what
    /// is missing before is nobody's fault. Returns whether that is news.
    pub(super) fn resync(&mut self, epoch: u16, sequence: u64) -> bool {
        if self.epoch.is_some_and(|known| !is_after(epoch, known)) {
            return false;
        }
        let first = self.epoch.replace(epoch).is_none();
        self.broken = false;
        self.interrupted += self.missing.len() as u64 + self.forgotten;
        if !first {
            self.interrupted += sequence.saturating_sub(self.expected);
        }
        self.missing.clear();
        self.forgotten = 0;
        self.expected = self.expected.max(sequence);
        !first
    }

    /// Our connection broke.
    pub(super) fn broke(&mut self) {
        self.broken = true;
    }

    /// The number that the next frame should have.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// Frames that did not arrive.
    pub(super) fn lost(&self) -> u64 {
        self.missing.len() as u64 + self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(sequences: &[u64]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.resync(0, 0);
        for sequence in sequences {
            ledger.arrived(0, *sequence, 100);
        }
        ledger
    }

    fn found(ledger: &Ledger) -> [u64; 5] {
        [
            ledger.received,
            ledger.lost(),
            ledger.duplicated,
            ledger.reordered,
            ledger.interrupted,
        ]
    }

    #[test]
    fn every_frame_has_one_fate() {
        for (sequences, expected) in [
            (&[0, 1, 2][..], [3, 0, 0, 0, 0]),
            (&[0, 2, 3], [3, 1, 0, 0, 0]),
            (&[0, 2, 1, 3], [4, 0, 0, 1, 0]),
            (&[0, 1, 1, 2, 0], [3, 0, 2, 0, 0]),
            (&[2, 1, 0, 1], [3, 0, 1, 2, 0]),
            (&[5], [1, 5, 0, 0, 0]),
        ] {
            let ledger = ledger(sequences);
            assert_eq!(found(&ledger), expected, "{sequences:?}");
            assert_eq!(ledger.bytes, expected[0] * 100);
        }
    }

    #[test]
    fn the_tail_is_missed_too() {
        let mut ledger = ledger(&[0, 1]);
        ledger.upto(2);
        assert_eq!(ledger.lost(), 0);
        ledger.upto(5);
        assert_eq!((ledger.lost(), ledger.expected()), (3, 5));
        ledger.arrived(0, 3, 1);
        assert_eq!(found(&ledger), [3, 2, 0, 1, 0]);
        ledger.upto(1);
        assert_eq!(ledger.expected(), 5);
    }

    #[test]
    fn a_liar_gets_no_memory() {
        let mut ledger = ledger(&[0, u64::MAX - 1]);
        assert_eq!(ledger.missing.len(), REMEMBERED);
        assert_eq!(ledger.lost(), u64::MAX - 2);
        ledger.arrived(0, u64::MAX, 1);
        assert_eq!(ledger.expected(), u64::MAX);
    }

    #[test]
    fn a_broken_connection_is_nobodys_fault() {
        let mut ledger = ledger(&[0, 1, 3]);
        ledger.broke();
        // Sent again by a back-end that does not know what its predecessor did.
        ledger.arrived(0, 3, 1);
        assert_eq!(found(&ledger), [3, 1, 0, 0, 1]);
        assert!(ledger.resync(1, 10));
        assert!(!ledger.resync(1, 10), "the same news twice");
        // 2 was missing, 4 to 9 never came.
        assert_eq!(found(&ledger), [3, 0, 0, 0, 8]);
        ledger.arrived(0, 9, 1);
        ledger.arrived(1, 10, 1);
        assert_eq!(found(&ledger), [4, 0, 0, 0, 9]);
        // From here on all counts again.
        ledger.arrived(1, 10, 1);
        ledger.arrived(1, 12, 1);
        assert_eq!(found(&ledger), [5, 1, 1, 0, 9]);
    }

    #[test]
    fn epochs_wrap() {
        assert!(is_after(0, u16::MAX) && !is_after(u16::MAX, 0));
        assert!(is_after(2, 1) && !is_after(1, 1) && !is_after(1, 2));
    }
}
