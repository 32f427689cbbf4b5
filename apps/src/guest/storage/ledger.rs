//! What each block of a disk must hold, and who is at it.

use super::content::{self, Found};

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Whatever it was, and from the first reading on the same.
    Unknown,
    /// Something with this digest, which is not ours.
    Seen(u64),
    Zeroes,
    /// What was written as this generation.
    Written(u64),
}

/// Who is at a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    Readers(u16),
    Writer,
}

/// The blocks of an area, by their number in it.
pub(super) struct Ledger {
    seed: u64,
    block: usize,
    held: Vec<Held>,
    users: Vec<Users>,
    generation: u64,
}

impl Ledger {
    pub(super) fn new(seed: u64, block: usize, count: usize) -> Self {
        Self {
            seed,
            block,
            held: vec![Held::Unknown; count],
            users: vec![Users::Readers(0); count],
            generation: 0,
        }
    }

    pub(super) fn blocks(&self) -> usize {
        self.held.len()
    }

    /// Notes that somebody reads these blocks, or changes them; `false` if that would meet others
    /// there, so that nobody could tell what comes of it.
    pub(super) fn enter(&mut self, first: usize, count: usize, writes: bool) -> bool {
        let users = self.users.get_mut(first..first + count).unwrap_or_default();
        let free = users.iter().all(|one| match one {
            Users::Readers(readers) => *readers == 0 || !writes && *readers < u16::MAX,
            Users::Writer => false,
        });
        if free {
            for one in users {
                *one = match *one {
                    Users::Readers(readers) if !writes => Users::Readers(readers + 1),
                    _ => Users::Writer,
                };
            }
        }
        free
    }

    fn leave(&mut self, first: usize, count: usize) {
        let users = self.users.get_mut(first..first + count);
        for one in users.unwrap_or_default() {
            *one = match *one {
                Users::Readers(readers) => Users::Readers(readers.saturating_sub(1)),
                Users::Writer => Users::Readers(0),
            };
        }
    }

    /// What the next write writes: its generation, and the bytes.
    pub(super) fn write(&mut self, first: usize, count: usize) -> (u64, Vec<u8>) {
        self.generation += 1;
        let mut bytes = vec![0; count * self.block];
        for (number, block) in (first as u64..).zip(bytes.chunks_mut(self.block)) {
            content::fill(self.seed, number, self.generation, block);
        }
        (self.generation, bytes)
    }

    fn set(&mut self, first: usize, count: usize, now: Held) {
        let held = self.held.get_mut(first..first + count);
        held.unwrap_or_default().fill(now);
        self.leave(first, count);
    }

    pub(super) fn written(&mut self, first: usize, count: usize, generation: u64) {
        self.set(first, count, Held::Written(generation));
    }

    pub(super) fn zeroed(&mut self, first: usize, count: usize) {
        self.set(first, count, Held::Zeroes);
    }

    /// They may hold anything now.
    pub(super) fn forgotten(&mut self, first: usize, count: usize) {
        self.set(first, count, Held::Unknown);
    }

    /// Nothing was learnt.
    pub(super) fn unread(&mut self, first: usize, count: usize) {
        self.leave(first, count);
    }

    /// Compares what was read with what must be there; what is wrong with the first block that
    /// is, and how many are.
    pub(super) fn read(&mut self, first: usize, bytes: &[u8]) -> (u64, Option<String>) {
        let (mut wrong, mut why) = (0, None);
        let mut expected = vec![0; self.block];
        for (number, block) in (first..).zip(bytes.chunks(self.block)) {
            let Some(held) = self.held.get_mut(number) else {
                break;
            };
            let should = match *held {
                Held::Unknown => {
                    *held = Held::Seen(content::digest(block));
                    continue;
                }
                Held::Seen(digest) if digest == content::digest(block) => continue,
                Held::Seen(_) => "what it held before".to_owned(),
                Held::Zeroes => {
                    expected.fill(0);
                    "zeroes".to_owned()
                }
                Held::Written(generation) => {
                    content::fill(self.seed, number as u64, generation, &mut expected);
                    format!("write {generation}")
                }
            };
            if matches!(held, Held::Seen(_)) || block != expected {
                wrong += 1;
                let found = Found::of(self.seed, block, &expected);
                why.get_or_insert_with(|| {
                    format!("block {number} should hold {should}; it holds {found}")
                });
            }
        }
        self.leave(first, bytes.len() / self.block);
        (wrong, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_meets_a_writer() {
        let mut ledger = Ledger::new(1, 512, 10);
        assert!(ledger.enter(0, 4, false));
        assert!(ledger.enter(2, 4, false));
        assert!(!ledger.enter(5, 1, true));
        assert!(ledger.enter(6, 2, true));
        assert!(!ledger.enter(7, 1, false));
        ledger.unread(2, 4);
        assert!(!ledger.enter(3, 1, true));
        ledger.unread(0, 4);
        assert!(ledger.enter(0, 6, true));
    }

    #[test]
    fn what_is_read_is_what_was_written_last() {
        let mut ledger = Ledger::new(1, 512, 10);
        let (first, bytes) = ledger.write(2, 2);
        let (second, other) = ledger.write(2, 2);
        ledger.written(2, 2, first);
        assert_eq!(ledger.read(2, &bytes), (0, None));
        let (wrong, why) = ledger.read(2, &other);
        assert_eq!(wrong, 2);
        let why = why.expect("a reason");
        assert!(
            why.contains("block 2 should hold write 1") && why.contains("as write 2"),
            "{why}"
        );
        ledger.written(3, 1, second);
        assert_eq!(
            ledger.read(2, &[&bytes[..512], &other[512..]].concat()),
            (0, None)
        );
        // The neighbour's.
        assert_eq!(ledger.read(3, &bytes[..512]).0, 1);
        ledger.zeroed(2, 1);
        assert_eq!(ledger.read(2, &[0; 512]), (0, None));
        assert_eq!(ledger.read(2, &[1; 512]).0, 1);
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let mut ledger = Ledger::new(1, 512, 10);
        assert_eq!(ledger.read(0, &[5; 1024]), (0, None));
        assert_eq!(ledger.read(1, &[5; 512]), (0, None));
        assert_eq!(ledger.read(1, &[6; 512]).0, 1);
        ledger.forgotten(1, 1);
        assert_eq!(ledger.read(1, &[6; 512]), (0, None));
    }
}
