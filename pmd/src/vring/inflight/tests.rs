//! Lives that end at any store, and those that come after them.
#![allow(clippy::unwrap_used)]
use std::collections::HashMap;

use vm_memory::Bytes;
use vvu::memory::{Area, Mapping};
use vvu::virtio::Vring;
use vvu::virtio::inflight::needed;

use super::killing::killed_after;
use crate::mock::{Buffer, MockGuest, MockQueue, Random};
use crate::vring::{Chain, Ring, RingError, feature};

const START: u64 = 0x1_0000;
const DATA: u64 = START + 0x8000;
const SPLIT_RING: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;
const FORMATS: [u64; 4] = [
    SPLIT_RING,
    SPLIT_RING | feature::EVENT_IDX,
    SPLIT_RING | feature::RING_PACKED,
    SPLIT_RING | feature::RING_PACKED | feature::EVENT_IDX,
];

/// A guest, its requests, and the disk that does them.
struct World {
    guest: MockGuest,
    driver: MockQueue,
    region: Area,
    /// Numbers of the requests in flight, by head or id.
    flying: HashMap<u16, usize>,
    /// How often the disk has done each request.
    done: Vec<u32>,
    /// How many are back.
    back: usize,
}

impl World {
    fn new(size: u16, features: u64, base: u16) -> Self {
        let mut guest = MockGuest::new(START, &[0x10_0000]);
        let driver = MockQueue::new(&mut guest, size, features, base);
        let packed = features & feature::RING_PACKED != 0;
        let region = Mapping::anonymous(needed(size, packed)).unwrap();
        Self {
            guest,
            driver,
            region: region.into(),
            flying: HashMap::new(),
            done: Vec::new(),
            back: 0,
        }
    }

    fn vring(&mut self) -> Vring {
        // The base is that of the beginning, as from a front-end that was not told another.
        let (vring, _, _) = self.driver.vring(0);
        Vring {
            inflight: Some(self.region.clone()),
            ..vring
        }
    }

    fn ring(&mut self) -> Ring {
        Ring::new(self.vring()).unwrap().0
    }

    /// The driver makes a request, of one of three forms, if there is room.
    fn request(&mut self, random: &mut Random) {
        let number = self.done.len();
        let at = DATA + 64 * number as u64;
        let buffer = |offset, len, writable| Buffer {
            addr: at + offset,
            len,
            writable,
        };
        self.guest.write(at, &(number as u32).to_le_bytes());
        let (request, status) = (buffer(0, 4, false), buffer(8, 1, true));
        let table = DATA + 0x8_0000 + 64 * number as u64;
        let id = match random.range(0, 2) {
            0 => self.driver.add(&[request]),
            1 => self.driver.add(&[request, status]),
            _ => self.driver.add_indirect(&[request, status], table, 0),
        };
        if let Some(id) = id {
            assert_eq!(self.flying.insert(id, number), None);
            self.done.push(0);
        }
    }

    /// The driver takes back what is back: what was done, and once. It panics if something was not
    /// in flight.
    fn collect(&mut self) {
        while let Some((id, len)) = self.driver.used() {
            let number = self.flying.remove(&id).unwrap();
            assert!(self.done[number] > 0, "{number} is back and was not done");
            assert_eq!(len, number as u32, "somebody else's answer");
            self.back += 1;
        }
    }

    fn number(&self, ring: &Ring, chain: &Chain) -> usize {
        let mut bytes = [0; 4];
        let first = ring.readable(chain).next().unwrap();
        assert_eq!(first.copy_to(&mut bytes[..]), 4);
        u32::from_le_bytes(bytes) as usize
    }

    /// Serves the ring for some steps, then until everything is back.
    fn live(&mut self, random: &mut Random, steps: usize) {
        let mut ring = self.ring();
        let mut kept: Vec<(Chain, usize)> = Vec::new();
        let mut last = None;
        for step in 0.. {
            if step < steps {
                for _ in 0..random.range(0, 2) {
                    self.request(random);
                }
                self.driver.publish();
            }
            let resuming = ring.is_resuming();
            ring.take_burst(random.range(1, 3));
            assert_eq!(ring.failed(), None);
            let burst: Vec<_> = ring.chains().to_vec();
            let burst: Vec<_> = burst.iter().map(|c| (*c, self.number(&ring, c))).collect();
            if resuming {
                assert!(!burst.is_empty());
                // They were taken in the order of their numbers.
                for (_, number) in &burst {
                    assert!(last < Some(*number), "{number} behind {last:?}");
                    last = Some(*number);
                }
            }
            if random.range(0, 4) == 0 {
                // As if none of them had been taken.
                ring.finish();
                last = None;
            } else {
                kept.extend(burst);
                ring.keep_all();
            }
            for _ in 0..random.range(0, 3).min(kept.len()) {
                let (chain, number) = kept.swap_remove(random.range(0, kept.len() - 1));
                self.done[number] += 1;
                ring.give_back_kept(&chain, number as u32);
            }
            if random.range(0, 2) > 0 {
                ring.publish();
            }
            self.collect();
            if step >= steps && self.flying.is_empty() {
                break;
            }
            assert!(step < steps + 500, "lost: {:?}", self.flying);
        }
        assert!(kept.is_empty() && !ring.is_resuming());
        assert_eq!(self.back, self.done.len());
    }
}

#[test]
fn nothing_is_lost_or_given_back_twice_whichever_store_was_the_last() {
    let mut lives = 0;
    for (nth, features) in FORMATS.into_iter().enumerate() {
        for seed in 0..5 {
            let base = if seed == 0 { 0 } else { 0xfffa };
            for stores in 0.. {
                let mut world = World::new(4, features, base);
                let random = &mut Random::new(100 * nth as u64 + seed);
                let whole = killed_after(stores, || world.live(random, 40)).is_some();
                // The second life ends early, too, most of the time: sooner or later in its first
                // hundred stores.
                let again = random.range(0, 150);
                killed_after(again, || world.live(random, 4));
                world.live(random, 4);
                lives += 3;
                if whole {
                    assert!(stores > 100, "only {stores} stores");
                    break;
                }
            }
        }
    }
    assert!(lives > 3000, "only {lives} lives");
}

#[test]
fn a_ring_that_was_left_in_the_beginning_begins_again() {
    for features in FORMATS {
        for stores in 0.. {
            let mut world = World::new(8, features, 5);
            let random = &mut Random::new(9);
            let whole = killed_after(stores, || drop(world.ring())).is_some();
            world.live(random, 10);
            if whole {
                assert!(stores > 16);
                break;
            }
        }
    }
}

/// Leaves three requests in flight, of which the driver knows.
fn left(features: u64) -> World {
    let mut world = World::new(8, features, 0);
    let random = &mut Random::new(1);
    let mut ring = world.ring();
    while world.done.len() < 3 {
        world.request(random);
    }
    world.driver.publish();
    assert_eq!(ring.take_burst(8), 3);
    ring.keep_all();
    world
}

#[test]
fn kicks_are_not_waited_for_while_something_is_left() {
    for features in FORMATS {
        let mut world = left(features);
        let mut ring = world.ring();
        assert!(ring.is_resuming() && ring.enable_kicks());
        assert_eq!(ring.take_burst(2), 2);
        assert!(ring.is_resuming());
        // What comes new is another burst's.
        world.request(&mut Random::new(1));
        world.driver.publish();
        assert_eq!(ring.take_burst(8), 1);
        assert_eq!(ring.take_burst(8), 0);
        ring.keep_all();
        assert!(!ring.is_resuming());
        assert_eq!(ring.take_burst(8), 1);
    }
}

#[test]
fn what_is_in_flight_cannot_come_again() {
    for features in [SPLIT_RING, SPLIT_RING | feature::RING_PACKED] {
        for resumed in [false, true] {
            let mut world = World::new(8, features, 0);
            let mut ring = world.ring();
            let buffer = Buffer {
                addr: DATA,
                len: 4,
                writable: false,
            };
            let again = |world: &mut World, id: u16| {
                if features & feature::RING_PACKED == 0 {
                    world.driver.push_head(id);
                } else {
                    let (slot, available) = world.driver.next_slot();
                    world.driver.write_desc(slot, DATA, 4, available, id);
                }
                world.driver.publish();
            };
            let id = world.driver.add(&[buffer]).unwrap();
            world.driver.publish();
            assert_eq!(ring.take_burst(8), 1);
            ring.keep_all();
            if resumed {
                ring = world.ring();
                assert_eq!(ring.take_burst(8), 1);
                ring.keep_all();
            }
            again(&mut world, id);
            assert_eq!(ring.take_burst(8), 0);
            assert_eq!(ring.failed(), Some(RingError::Flying { id }));
            ring.finish();
            // The first one is in flight all the same, and nothing else.
            let mut next = world.ring();
            assert_eq!(next.take_burst(8), 1);
            assert_eq!(next.chains()[0].id(), id);
        }
    }
}

#[test]
fn a_book_of_another_ring_is_refused() {
    for features in FORMATS {
        let refused = |spoilt: &[(usize, u16)]| {
            let mut world = left(features);
            for (offset, value) in spoilt {
                world.region.slice().write_obj(*value, *offset).unwrap();
            }
            Ring::new(world.vring()).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&[(8, 2)]),
            "the in-flight region is not this ring's: its version is 2, expected 1"
        );
        assert!(refused(&[(10, 4)]).contains("descriptors is 4, expected 8"));
        if features & feature::RING_PACKED == 0 {
            assert!(refused(&[(14, 4000)]).contains("used index is 4000, expected 0"));
            assert!(refused(&[(12, 8), (14, 0xffff)]).contains("last batch head is 8"));
        } else {
            assert!(refused(&[(18, 8)]).contains("old used index is 8"));
            assert!(refused(&[(14, 10)]).contains("old free head is 10"));
        }
        // With nothing in flight, it is a new one.
        let mut world = World::new(8, features, 0);
        drop(world.ring());
        world.region.slice().write_obj(4u16, 10).unwrap();
        world.live(&mut Random::new(2), 5);
    }
}

#[test]
fn a_region_must_be_long_enough() {
    for features in FORMATS {
        let mut world = World::new(8, features, 0);
        let vring = world.vring();
        let short = world.region.sub(0, world.region.len() - 1);
        let error = Ring::new(Vring {
            inflight: short,
            ..vring
        });
        assert!(error.unwrap_err().to_string().contains("in-flight region"));
    }
}

/// Whatever is in a region: the ring is refused, or fails, or takes chains that are the guest's.
#[test]
fn garbage_in_a_region_is_judged() {
    let random = &mut Random::new(5);
    let mut outcomes = [0; 3];
    for round in 0..6000 {
        let mut world = left(FORMATS[round % 4]);
        let bytes = world.region.len();
        for _ in 0..random.range(1, 12) {
            let value = match random.range(0, 2) {
                0 => random.number() as u8,
                1 => 1,
                _ => random.range(0, 9) as u8,
            };
            let at = random.range(0, bytes - 1);
            // The version is hit otherwise, and often.
            if at != 8 && at != 9 {
                world.region.slice().write_obj(value, at).unwrap();
            }
        }
        let Ok((mut ring, _)) = Ring::new(world.vring()) else {
            outcomes[0] += 1;
            continue;
        };
        for _ in 0..20 {
            let taken = ring.take_burst(8);
            for chain in ring.chains() {
                let sum = ring.readable(chain).map(|s| s.len() as u64).sum::<u64>();
                assert_eq!(sum, u64::from(chain.read_len()));
            }
            let chains = ring.chains().to_vec();
            ring.keep_all();
            for chain in &chains {
                ring.give_back_kept(chain, 0);
            }
            ring.publish();
            if taken == 0 {
                break;
            }
        }
        outcomes[if ring.failed().is_some() { 1 } else { 2 }] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}
