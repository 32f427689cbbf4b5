//! Learned addresses: which port a MAC address was last seen at, in each VLAN by itself (IEEE
//! 802.1Q, 8.8).
//!
//! One table for all workers, read and written without locks. An entry is one 64-bit word, so
//! nobody can see half of it; two workers that race leave a table that is right, or right again
//! after the next frame. No port can push another port's addresses out.
//!
//! Address, VLAN and port would not fit into a word. They need not: address and VLAN, 60 bits, go
//! through a permutation of 60-bit numbers that nobody outside knows. Of the result the low bits
//! choose a bucket, and only the others are stored; which bucket an entry is in says the rest.
//! Each address has two buckets to choose from, and makes room in one of them for another address,
//! which is why all of [`CAPACITY`] finds room.

use std::hash::{BuildHasher, RandomState};
use std::hint::select_unpredictable;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use vvu::memory::copy::prefetch;

use super::MAX_PORTS;
use super::rules::number;

/// Low bits of a permuted key that choose a bucket.
const BUCKET_BITS: u32 = 15;
const BUCKETS: usize = 1 << BUCKET_BITS;
/// Entries of a bucket: as many as a cache line holds.
const WAYS: usize = 5;
/// Addresses to be had in all: 4/5 of the entries.
const CAPACITY: u32 = (BUCKETS * 4) as u32;
/// A bucket with fewer entries than this takes an address that could go elsewhere too.
const SPARSE: usize = 3;
/// Seconds in which all of the table is swept.
const SWEEP: u32 = 8;

/// Bits of an address and a VLAN.
const KEY_BITS: u32 = 60;
const KEY: u64 = (1 << KEY_BITS) - 1;
/// Where the rest of a permuted key begins in a word.
const TAG_SHIFT: u32 = 64 - (KEY_BITS - BUCKET_BITS);
/// The entry is in the second bucket of its address.
const SECOND: u64 = 1 << 16;
/// The entry was not learned: it neither ages nor moves, and does not count.
const STATIC: u64 = 1 << 17;
/// What tells addresses in one bucket apart.
const IDENTITY: u64 = !0 << TAG_SHIFT | SECOND;

/// A MAC address as a number, its first byte in the lowest bits.
pub(super) type Mac = u64;

/// Whether an address belongs to a group (multicast, broadcast).
#[inline]
pub(super) fn is_group(mac: Mac) -> bool {
    mac & 1 != 0
}

/// A cache line of entries.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// Rest of the permuted key, [`STATIC`], [`SECOND`], and in the lower 16 bits port + 1; 0 is empty.
    words: [AtomicU64; WAYS],
    /// Seconds in which they were last seen.
    seen: [AtomicU32; WAYS],
}

/// Where an address would be.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spot {
    /// A word in the first bucket, without a port.
    tag: u64,
    first: u32,
    second: u32,
}

/// What came of learning an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learned {
    /// The table has it.
    Yes,
    /// There was no place for it.
    NoRoom,
    /// Its port has as many as it was allowed.
    Limit,
    /// It is at another port for good.
    Held,
}

/// The table.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket; BUCKETS]>,
    /// Addresses of each port, and of all.
    counts: Box<[AtomicU32]>,
    total: AtomicU32,
    /// Most addresses of each port.
    limits: Box<[AtomicU32]>,
    ageing: u32,
    swept: AtomicU32,
    /// Which permutation: unpredictable, so that nobody can aim at a bucket.
    secret: [u64; 3],
}

#[inline]
fn port_of(word: u64) -> Option<u16> {
    (word as u16).checked_sub(1)
}

/// The other bucket of an address that has one in `bucket`.
#[inline]
fn other(bucket: u32, rest: u64) -> u32 {
    bucket ^ ((rest as u32 % BUCKETS as u32) | 1)
}

/// Where in the table an entry is.
type Slot<'a> = (&'a AtomicU64, &'a AtomicU32);

impl Fdb {
    /// An empty table whose entries last `ageing` seconds after they were last seen.
    pub fn new(ageing: u32) -> Self {
        let buckets: Box<[Bucket]> = (0..BUCKETS).map(|_| Bucket::default()).collect();
        let random = RandomState::new();
        Self {
            buckets: buckets
                .try_into()
                .unwrap_or_else(|_| unreachable!("there are {BUCKETS}")),
            counts: (0..MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
            total: AtomicU32::new(0),
            limits: (0..MAX_PORTS).map(|_| AtomicU32::new(u32::MAX)).collect(),
            ageing,
            swept: AtomicU32::new(0),
            secret: [0, 1, 2].map(|n| random.hash_one(n)),
        }
    }

    /// Where `mac` in VLAN `vid` would be. Each step can be undone, so two keys never meet in the
    /// same bucket with the same rest.
    #[inline]
    pub(super) fn spot(&self, mac: Mac, vid: u16) -> Spot {
        let [mask, first, second] = self.secret;
        let mut key = (mac | u64::from(vid) << 48) ^ mask;
        key &= KEY;
        key ^= key >> 31;
        key = key.wrapping_mul(first | 1) & KEY;
        key ^= key >> 29;
        key = key.wrapping_mul(second | 1) & KEY;
        key ^= key >> 32;
        let bucket = key as u32 % BUCKETS as u32;
        let rest = key >> BUCKET_BITS;
        Spot {
            tag: rest << TAG_SHIFT,
            first: bucket,
            second: other(bucket, rest),
        }
    }

    #[inline]
    fn bucket(&self, number: u32) -> &Bucket {
        &self.buckets[number as usize % BUCKETS]
    }

    /// Brings the line where an address probably is nearer, so that the misses of a burst overlap.
    #[inline]
    pub(super) fn touch(&self, spot: &Spot) {
        prefetch(std::ptr::from_ref(self.bucket(spot.first)).cast());
    }

    #[inline]
    fn fresh(&self, seen: &AtomicU32, now: u32) -> bool {
        now.saturating_sub(seen.load(Relaxed)) <= self.ageing
    }

    /// The port of an entry that counts and is not too old.
    #[inline]
    fn current(&self, word: u64, seen: &AtomicU32, now: u32) -> Option<u16> {
        (self.fresh(seen, now) || word & STATIC != 0).then(|| port_of(word))?
    }

    /// All entries of an address: usually none or one.
    fn entries(&self, spot: &Spot) -> impl Iterator<Item = (u64, Slot<'_>)> {
        let Spot { tag, first, second } = *spot;
        let both = [(first, tag), (second, tag | SECOND)];
        both.into_iter().flat_map(move |(bucket, wanted)| {
            let bucket = self.bucket(bucket);
            let slots = bucket.words.iter().zip(&bucket.seen);
            slots.filter_map(move |slot| {
                let word = slot.0.load(Relaxed);
                (word & IDENTITY == wanted && port_of(word).is_some()).then_some((word, slot))
            })
        })
    }

    /// The first of them.
    #[inline]
    fn first(&self, spot: &Spot) -> Option<(u64, Slot<'_>)> {
        // Which way it is nobody can guess, so all are looked at rather than branched on.
        let look = |bucket: u32, wanted: u64| {
            let bucket = self.bucket(bucket);
            let mut way = WAYS;
            for (at, word) in bucket.words.iter().enumerate().rev() {
                let differs = (word.load(Relaxed) ^ wanted) & IDENTITY;
                way = select_unpredictable(differs == 0, at, way);
            }
            let slot = (bucket.words.get(way)?, bucket.seen.get(way)?);
            let word = slot.0.load(Relaxed);
            (word & IDENTITY == wanted && port_of(word).is_some()).then_some((word, slot))
        };
        let found = look(spot.first, spot.tag).or_else(|| look(spot.second, spot.tag | SECOND));
        // One whose rest of the key is 0 looks like an empty slot.
        match found {
            None if spot.tag == 0 => self.entries(spot).next(),
            found => found,
        }
    }

    /// The port where the address was last seen.
    #[inline]
    pub(super) fn lookup(&self, spot: &Spot, now: u32) -> Option<u16> {
        let (word, (_, seen)) = self.first(spot)?;
        let port = self.current(word, seen, now);
        // There may be a younger one behind it.
        port.or_else(|| self.lookup_all(spot, now))
    }

    #[cold]
    fn lookup_all(&self, spot: &Spot, now: u32) -> Option<u16> {
        let mut entries = self.entries(spot);
        entries.find_map(|(word, (_, seen))| self.current(word, seen, now))
    }

    /// Notes that the address is at `port`.
    #[inline]
    pub(super) fn learn(&self, spot: &Spot, port: u16, now: u32) -> Learned {
        // Only the entry that a lookup finds first counts: there may be two after a race.
        if let Some((word, (_, seen))) = self.first(spot)
            && port_of(word) == Some(port)
        {
            // Not written when unchanged, to leave the cache line shared.
            if seen.load(Relaxed) != now {
                seen.store(now, Relaxed);
            }
            return Learned::Yes;
        }
        self.learn_new(spot, port, now)
    }

    #[cold]
    fn learn_new(&self, spot: &Spot, port: u16, now: u32) -> Learned {
        let may_grow = self.may_grow(port);
        let own = u64::from(port) + 1;
        let mut entries = self.entries(spot);
        if let Some((old, slot)) = entries.next() {
            if old & STATIC != 0 {
                return Learned::Held;
            }
            // Seen elsewhere before. One that is left over from a race would be found again when
            // this one is gone.
            for (double, (word, _)) in entries {
                if double & STATIC != 0 {
                    return Learned::Held;
                }
                self.replace(word, double, 0);
            }
            return match may_grow {
                Learned::Yes => self.enter(slot, old, old & IDENTITY | own, now),
                full => full,
            };
        }
        let mut place = self.place(spot, now);
        // Nobody is moved for a port that gets no new place.
        if place.is_none() && may_grow == Learned::Yes {
            place = self.make_place(spot, now);
        }
        let Some((old, slot, tag)) = place else {
            return Learned::NoRoom;
        };
        // A port at its limit may still use its own old entry again.
        if may_grow == Learned::Yes || port_of(old) == Some(port) {
            return self.enter(slot, old, tag | own, now);
        }
        may_grow
    }

    fn slots(&self, bucket: u32) -> impl Iterator<Item = Slot<'_>> {
        let bucket = self.bucket(bucket);
        bucket.words.iter().zip(&bucket.seen)
    }

    /// What is in a slot that may be used again.
    fn free(&self, (word, seen): &Slot<'_>, now: u32) -> Option<u64> {
        let old = word.load(Relaxed);
        self.current(old, seen, now).is_none().then_some(old)
    }

    /// A free slot for an address that is in none, what is in it, and the word to put there,
    /// without a port.
    fn place(&self, spot: &Spot, now: u32) -> Option<(u64, Slot<'_>, u64)> {
        let used = |bucket| {
            let slots = self.slots(bucket);
            slots.filter(|slot| self.free(slot, now).is_none()).count()
        };
        let in_first = used(spot.first);
        let (bucket, tag) = if in_first < SPARSE || in_first <= used(spot.second) {
            (spot.first, spot.tag)
        } else {
            (spot.second, spot.tag | SECOND)
        };
        let mut slots = self.slots(bucket);
        slots.find_map(|slot| Some((self.free(&slot, now)?, slot, tag)))
    }

    /// The same when both buckets are full: another address goes to its other bucket. One table in
    /// a thousand needs that before it has 64 k addresses.
    #[cold]
    fn make_place(&self, spot: &Spot, now: u32) -> Option<(u64, Slot<'_>, u64)> {
        for (bucket, tag) in [(spot.first, spot.tag), (spot.second, spot.tag | SECOND)] {
            for slot in self.slots(bucket) {
                let word = slot.0.load(Relaxed);
                let mut elsewhere = self.slots(other(bucket, word >> TAG_SHIFT));
                let room = elsewhere.find_map(|slot| Some((self.free(&slot, now)?, slot)));
                let Some((old, (new, seen))) = room else {
                    continue;
                };
                // In both for a moment, rather than in none.
                seen.store(slot.1.load(Relaxed), Relaxed);
                if self.replace(new, old, word ^ SECOND) && self.replace(slot.0, word, 0) {
                    return Some((0, slot, tag));
                }
            }
        }
        None
    }

    /// Whether a port may have one more address: as long as it has less than what is left. So a
    /// single port can have half of the capacity, two that flood a third each, and something is
    /// always left for others.
    fn may_grow(&self, port: u16) -> Learned {
        let left = CAPACITY.saturating_sub(self.total.load(Relaxed));
        let of = |all: &[AtomicU32]| all.get(usize::from(port)).map(|n| n.load(Relaxed));
        match (of(&self.counts), of(&self.limits)) {
            (Some(count), Some(limit)) if count >= limit => Learned::Limit,
            (Some(count), _) if count < left => Learned::Yes,
            _ => Learned::NoRoom,
        }
    }

    fn enter(&self, (word, seen): Slot<'_>, old: u64, new: u64, now: u32) -> Learned {
        seen.store(now, Relaxed);
        match self.replace(word, old, new) {
            true => Learned::Yes,
            false => Learned::NoRoom,
        }
    }

    /// Replaces an entry's word, if it is still `old`, and keeps the counts right.
    fn replace(&self, word: &AtomicU64, old: u64, new: u64) -> bool {
        let won = word.compare_exchange(old, new, Relaxed, Relaxed).is_ok();
        let learned = |word: u64| (word & STATIC == 0).then(|| port_of(word))?;
        let count = |word| self.counts.get(usize::from(learned(word)?));
        if won {
            if let Some(count) = count(new) {
                count.fetch_add(1, Relaxed);
                self.total.fetch_add(1, Relaxed);
            }
            if let Some(count) = count(old) {
                count.fetch_sub(1, Relaxed);
                self.total.fetch_sub(1, Relaxed);
            }
        }
        won
    }

    /// Most addresses that `port` may have from now on.
    pub fn set_limit(&self, port: u16, limit: Option<u32>) {
        if let Some(place) = self.limits.get(usize::from(port)) {
            place.store(limit.unwrap_or(u32::MAX), Relaxed);
        }
    }

    /// Says that an address is at `port` for good. False if it is at another one for good, or its
    /// place is full.
    pub fn hold(&self, address: [u8; 6], vid: u16, port: u16) -> bool {
        let spot = self.spot(number(address), vid);
        // Workers may write the same entry meanwhile, each once a burst.
        for _ in 0..1000 {
            let found = self.entries(&spot).next();
            let found = found.map(|(old, slot)| (old, slot, old & IDENTITY));
            let Some((old, (word, _), tag)) = found.or_else(|| self.place(&spot, u32::MAX)) else {
                return false;
            };
            if old & STATIC != 0 {
                return port_of(old) == Some(port);
            }
            if self.replace(word, old, tag | STATIC | (u64::from(port) + 1)) {
                return true;
            }
        }
        false
    }

    fn clear(&self, buckets: &[Bucket], mut which: impl FnMut(&AtomicU32, u64) -> bool) {
        for bucket in buckets {
            for (entry, seen) in bucket.words.iter().zip(&bucket.seen) {
                let word = entry.load(Relaxed);
                if word != 0 && which(seen, word) {
                    self.replace(entry, word, 0);
                }
            }
        }
    }

    /// Forgets what was not seen for too long: a part of the table each second, whoever asks, so
    /// that no round takes long.
    pub fn sweep(&self, now: u32) {
        if self.swept.swap(now, Relaxed) != now {
            let len = BUCKETS / SWEEP as usize;
            let part = self.buckets.chunks(len).nth((now % SWEEP) as usize);
            self.clear(part.unwrap_or(&[]), |seen, word| {
                self.current(word, seen, now).is_none()
            });
        }
    }

    /// Forgets everything learned at `port`.
    pub fn flush(&self, port: u16) {
        self.clear(&self.buckets[..], |_, word| {
            port_of(word) == Some(port) && word & STATIC == 0
        });
    }

    /// Forgets everything about `port`: it is gone.
    pub fn remove(&self, port: u16) {
        self.set_limit(port, None);
        self.clear(&self.buckets[..], |_, word| port_of(word) == Some(port));
    }

    /// Number of addresses learned at `port`.
    pub fn len(&self, port: u16) -> usize {
        let count = self.counts.get(usize::from(port));
        count.map_or(0, |count| count.load(Relaxed) as usize)
    }
}

#[cfg(test)]
#[path = "fdb_tests.rs"]
mod tests;
