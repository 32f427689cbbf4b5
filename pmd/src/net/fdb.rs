//! Learned addresses: which port a MAC address was last seen at (IEEE 802.1Q, 8.8).
//!
//! One table for all workers, read and written without locks. An address and its port share one
//! 64-bit word, so nobody can see half an entry; two workers that race leave a table that is
//! right, or right again after the next frame. No port can have more than its share of the table,
//! nor push another port's addresses out.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::MAX_PORTS;

const BUCKETS: usize = 2048;
const WAYS: usize = 4;

/// Most addresses of one port.
pub(super) const SHARE: u32 = 1024;

#[derive(Debug, Default)]
struct Entry {
    /// Address in the upper 48 bits, port + 1 in the lower 16; 0 is empty.
    word: AtomicU64,
    /// Second in which it was last seen.
    seen: AtomicU32,
}

/// The table.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[[Entry; WAYS]]>,
    /// Addresses of each port.
    counts: Box<[AtomicU32]>,
    ageing: u32,
    swept: AtomicU32,
    /// Unpredictable, so that nobody can aim at a bucket.
    seed: u64,
}

fn port_of(word: u64) -> Option<u16> {
    (word as u16).checked_sub(1)
}

fn key(mac: [u8; 6]) -> u64 {
    mac.iter().fold(0, |key, &byte| key << 8 | u64::from(byte))
}

/// Whether an address belongs to a group (multicast, broadcast).
pub(super) fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}

impl Fdb {
    /// An empty table whose entries last `ageing` seconds after they were last seen.
    pub fn new(ageing: u32) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Default::default()).collect(),
            counts: (0..MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
            ageing,
            swept: AtomicU32::new(0),
            seed: RandomState::new().hash_one(BUCKETS),
        }
    }

    #[inline]
    fn bucket(&self, key: u64) -> &[Entry] {
        let hash = (key ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash =
            (hash ^ (hash >> 32) ^ self.seed.rotate_left(17)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let bucket = self.buckets.get((hash >> 32) as usize % BUCKETS);
        bucket.map_or(&[], |bucket| &bucket[..])
    }

    fn fresh(&self, entry: &Entry, now: u32) -> bool {
        now.saturating_sub(entry.seen.load(Relaxed)) <= self.ageing
    }

    /// The port where `mac` was last seen.
    #[inline]
    pub fn lookup(&self, mac: [u8; 6], now: u32) -> Option<u16> {
        let key = key(mac);
        self.bucket(key).iter().find_map(|entry| {
            let word = entry.word.load(Relaxed);
            (word >> 16 == key && word != 0 && self.fresh(entry, now)).then(|| port_of(word))?
        })
    }

    /// Notes that `mac` is at `port`. False if there was no place for it.
    #[inline]
    pub fn learn(&self, mac: [u8; 6], port: u16, now: u32) -> bool {
        let key = key(mac);
        let word = key << 16 | (u64::from(port) + 1);
        let bucket = self.bucket(key);
        for entry in bucket {
            if entry.word.load(Relaxed) == word {
                // Not written when unchanged, to leave the cache line shared.
                if entry.seen.load(Relaxed) != now {
                    entry.seen.store(now, Relaxed);
                }
                return true;
            }
        }
        self.learn_new(bucket, word, now)
    }

    #[cold]
    fn learn_new(&self, bucket: &[Entry], word: u64, now: u32) -> bool {
        let port = port_of(word);
        let count = port.and_then(|port| self.counts.get(usize::from(port)));
        let Some(count) = count else {
            return false;
        };
        // Best place first: the same address at another port, an empty or old entry, and at last
        // our own oldest entry.
        let may_grow = count.load(Relaxed) < SHARE;
        let place = |entry: &&Entry| {
            let old = entry.word.load(Relaxed);
            let own = port_of(old) == port;
            if old != 0 && old >> 16 == word >> 16 && may_grow {
                Some((0, 0))
            } else if (old == 0 || !self.fresh(entry, now)) && (may_grow || own) {
                Some((1, 0))
            } else {
                own.then(|| (2, entry.seen.load(Relaxed)))
            }
        };
        let best = bucket
            .iter()
            .filter_map(|entry| Some((place(&entry)?, entry)))
            .min_by_key(|(rank, _)| *rank);
        let Some((_, entry)) = best else {
            return false;
        };
        entry.seen.store(now, Relaxed);
        self.replace(entry, entry.word.load(Relaxed), word)
    }

    /// Replaces an entry's word, if it is still `old`, and keeps the counts right.
    fn replace(&self, entry: &Entry, old: u64, new: u64) -> bool {
        let won = entry
            .word
            .compare_exchange(old, new, Relaxed, Relaxed)
            .is_ok();
        let count = |word| self.counts.get(usize::from(port_of(word)?));
        if won {
            if let Some(count) = count(new) {
                count.fetch_add(1, Relaxed);
            }
            if let Some(count) = count(old) {
                count.fetch_sub(1, Relaxed);
            }
        }
        won
    }

    fn clear(&self, mut which: impl FnMut(&Entry, u64) -> bool) {
        for entry in self.buckets.iter().flatten() {
            let word = entry.word.load(Relaxed);
            if word != 0 && which(entry, word) {
                self.replace(entry, word, 0);
            }
        }
    }

    /// Forgets what was not seen for too long; at most once a second, whoever asks.
    pub fn sweep(&self, now: u32) {
        if self.swept.swap(now, Relaxed) != now {
            self.clear(|entry, _| !self.fresh(entry, now));
        }
    }

    /// Forgets everything learned at `port`.
    pub fn flush(&self, port: u16) {
        self.clear(|_, word| port_of(word) == Some(port));
    }

    /// Number of addresses known at `port`.
    pub fn len(&self, port: u16) -> usize {
        let count = self.counts.get(usize::from(port));
        count.map_or(0, |count| count.load(Relaxed) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> [u8; 6] {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn learns_moves_ages_and_flushes() {
        let fdb = Fdb::new(300);
        assert_eq!(fdb.lookup(mac(1), 0), None);
        assert!(fdb.learn(mac(1), 0, 10));
        assert!(fdb.learn(mac(2), 7, 10));
        assert_eq!(fdb.lookup(mac(1), 10), Some(0));
        assert_eq!(fdb.lookup(mac(2), 310), Some(7));
        assert_eq!(fdb.lookup(mac(2), 311), None);
        // Seen again: young again. Seen elsewhere: moved.
        assert!(fdb.learn(mac(1), 0, 200));
        assert_eq!(fdb.lookup(mac(1), 400), Some(0));
        assert!(fdb.learn(mac(1), 3, 401));
        assert_eq!(fdb.lookup(mac(1), 401), Some(3));
        assert_eq!((fdb.len(0), fdb.len(3)), (0, 1));
        fdb.sweep(401);
        assert_eq!(fdb.len(7), 0);
        fdb.flush(3);
        assert_eq!(fdb.lookup(mac(1), 401), None);
        assert_eq!(fdb.len(3), 0);
    }

    #[test]
    fn a_flood_of_addresses_hurts_only_its_port() {
        let fdb = Fdb::new(300);
        for n in 0..100 {
            assert!(fdb.learn(mac(n), 1, 0));
        }
        for n in 1000..100_000 {
            fdb.learn(mac(n), 2, 1);
        }
        assert!(fdb.len(2) <= SHARE as usize);
        for n in 0..100 {
            assert_eq!(fdb.lookup(mac(n), 2), Some(1));
        }
        // The flooded port is not stuck at its limit once its addresses are old.
        fdb.sweep(400);
        assert_eq!(fdb.len(2), 0);
        assert!(fdb.learn(mac(5), 2, 400));
    }

    #[test]
    fn group_addresses() {
        assert!(is_group([0xff; 6]));
        assert!(is_group([1, 0, 0x5e, 0, 0, 1]));
        assert!(!is_group(mac(1)));
    }
}
