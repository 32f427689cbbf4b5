#![allow(clippy::unwrap_used)]
use std::sync::Barrier;
use std::thread;

use super::*;

fn bytes(n: u32) -> [u8; 6] {
    let [a, b, c, d] = n.to_be_bytes();
    [2, 0, a, b, c, d]
}

fn address(n: u32) -> Mac {
    number(bytes(n))
}

/// A table as people think of it.
impl Fdb {
    fn note(&self, n: u32, vid: u16, port: u16, now: u32) -> bool {
        self.learn(&self.spot(address(n), vid), port, now) == Learned::Yes
    }

    fn find(&self, n: u32, vid: u16, now: u32) -> Option<u16> {
        self.lookup(&self.spot(address(n), vid), now)
    }

    fn sweep_all(&self, now: u32) {
        for now in now..now + SWEEP {
            self.sweep(now);
        }
    }
}

#[test]
fn learns_moves_ages_and_flushes() {
    let fdb = Fdb::new(300);
    assert_eq!(fdb.find(1, 0, 0), None);
    assert!(fdb.note(1, 0, 0, 10));
    assert!(fdb.note(2, 0, 7, 10));
    assert_eq!(fdb.find(1, 0, 10), Some(0));
    assert_eq!(fdb.find(2, 0, 310), Some(7));
    assert_eq!(fdb.find(2, 0, 311), None);
    // Seen again: young again. Seen elsewhere: moved.
    assert!(fdb.note(1, 0, 0, 200));
    assert_eq!(fdb.find(1, 0, 400), Some(0));
    assert!(fdb.note(1, 0, 3, 401));
    assert_eq!(fdb.find(1, 0, 401), Some(3));
    assert_eq!((fdb.len(0), fdb.len(3)), (0, 1));
    fdb.sweep_all(401);
    assert_eq!(fdb.len(7), 0);
    fdb.flush(3);
    assert_eq!(fdb.find(1, 0, 401), None);
    assert_eq!(fdb.len(3), 0);
}

#[test]
fn sixty_four_thousand_addresses_have_a_place() {
    // Whatever the permutation, at one port or at many, random or counted up.
    for ports in [1, 64] {
        for step in [1, 0x9e37_79b1] {
            let fdb = Fdb::new(300);
            let number = |n: u32| n.wrapping_mul(step);
            let missing = (0..65536)
                .filter(|&n| !fdb.note(number(n), 0, (n % ports) as u16, 0))
                .count();
            assert_eq!(missing, 0, "{ports} ports, step {step}");
            for n in 0..65536 {
                assert_eq!(fdb.find(number(n), 0, 0), Some((n % ports) as u16));
            }
            assert_eq!(fdb.find(number(70_000), 0, 0), None);
        }
    }
}

#[test]
fn full_buckets_make_room() {
    let fdb = Fdb::new(300);
    let spot = |n: u64, first: u32, second: u32| Spot {
        tag: (n << BUCKET_BITS | u64::from(first ^ second)) << TAG_SHIFT,
        first,
        second,
    };
    // Two buckets are full of addresses that could be in those two only, but for one.
    let mut all = vec![spot(100, 9, 20)];
    all.extend((1..2 * WAYS as u64).map(|n| spot(n, 8, 9)));
    let port = |n: usize| n as u16 % 3;
    for (n, spot) in all.iter().enumerate() {
        assert_eq!(fdb.learn(spot, port(n), 7), Learned::Yes, "{n}");
    }
    // Not for a port that may have no more: nobody is moved.
    fdb.set_limit(6, Some(0));
    assert_eq!(fdb.learn(&spot(52, 8, 9), 6, 7), Learned::NoRoom);
    let moved = |fdb: &Fdb| fdb.bucket(20).words[0].load(Relaxed) != 0;
    assert!(!moved(&fdb));
    let more = spot(50, 8, 9);
    assert_eq!(fdb.learn(&more, 5, 8), Learned::Yes);
    assert!(moved(&fdb));
    assert_eq!(fdb.learn(&spot(51, 8, 9), 5, 8), Learned::NoRoom);
    // Everybody is where it was said to be, as old as before, and counted once.
    for (n, spot) in all.iter().enumerate() {
        assert_eq!(fdb.lookup(spot, 307), Some(port(n)));
        assert_eq!(fdb.lookup(spot, 308), None);
    }
    assert_eq!(fdb.lookup(&more, 308), Some(5));
    assert_eq!([0, 1, 2, 5].map(|port| fdb.len(port)), [4, 3, 3, 1]);
}

#[test]
fn each_vlan_learns_by_itself() {
    let fdb = Fdb::new(300);
    for vid in 0..4096u16 {
        assert!(fdb.note(1, vid, vid % 200, 0));
    }
    for vid in 0..4096 {
        assert_eq!(fdb.find(1, vid, 0), Some(vid % 200));
        assert_eq!(fdb.find(2, vid, 0), None);
    }
}

#[test]
fn two_keys_never_share_an_entry() {
    // What is stored, with the bucket where it is stored, gives the key back.
    let fdb = Fdb::new(300);
    let [mask, first, second] = fdb.secret;
    let inverse = |odd: u64| {
        (0..6).fold(odd, |x, _| {
            x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)))
        })
    };
    let back = |spot: &Spot| {
        let mut key = (spot.tag >> TAG_SHIFT) << BUCKET_BITS | u64::from(spot.first);
        key ^= key >> 32;
        key = key.wrapping_mul(inverse(second | 1)) & KEY;
        key ^= key >> 29 ^ key >> 58;
        key = key.wrapping_mul(inverse(first | 1)) & KEY;
        key ^= key >> 31;
        key ^ mask & KEY
    };
    let mut random = crate::mock::Random::new(1);
    for _ in 0..100_000 {
        let key = random.number() & KEY;
        let spot = fdb.spot(key & 0xffff_ffff_ffff, (key >> 48) as u16);
        assert_eq!(back(&spot), key);
        assert_ne!(spot.first, spot.second);
        assert_eq!(spot.tag & !IDENTITY | spot.tag & SECOND, 0);
        // The other bucket follows from what is stored, too.
        let rest = (spot.tag >> TAG_SHIFT) as u32;
        assert_eq!(spot.second ^ ((rest % BUCKETS as u32) | 1), spot.first);
    }
}

#[test]
fn a_flood_of_addresses_hurts_only_its_port() {
    let fdb = Fdb::new(300);
    for n in 0..100 {
        assert!(fdb.note(n, 0, 1, 0));
    }
    // Two ports flood.
    for n in 1000..400_000 {
        fdb.note(n, 0, 2 + (n % 2) as u16, 1);
    }
    assert!(fdb.len(2) <= CAPACITY as usize / 3 + 1);
    assert!(fdb.len(2) >= CAPACITY as usize / 4);
    for n in 0..100 {
        assert_eq!(fdb.find(n, 0, 2), Some(1));
    }
    // Others still learn.
    let learned = (0..1000).filter(|n| fdb.note(500_000 + n, 0, 4, 2)).count();
    assert!(learned >= 990, "{learned}");
    // The flooded ports are not stuck at their limit once their addresses are old.
    fdb.sweep_all(400);
    assert_eq!((fdb.len(2), fdb.len(3), fdb.total.load(Relaxed)), (0, 0, 0));
    assert!(fdb.note(5, 0, 2, 400));
}

#[test]
fn a_double_entry_is_put_right() {
    let fdb = Fdb::new(300);
    let spot = fdb.spot(address(1), 0);
    // What two workers leave that learn an address in different buckets at once.
    let words = [
        (spot.first, spot.tag | 4),
        (spot.second, spot.tag | SECOND | 6),
    ];
    for (bucket, word) in words {
        assert!(fdb.replace(&fdb.bucket(bucket).words[2], 0, word));
    }
    assert_eq!(fdb.find(1, 0, 0), Some(3));
    assert!(fdb.note(1, 0, 5, 1));
    assert_eq!(fdb.find(1, 0, 1), Some(5));
    assert_eq!((fdb.len(3), fdb.len(5)), (0, 1));
    assert_eq!(fdb.entries(&spot).count(), 1);
}

#[test]
fn threads_never_see_half_an_entry() {
    // Each thread learns the same addresses at ports of its own, in VLANs of its own and one in
    // common. A lookup finds a port that somebody said, for that address in that VLAN.
    const THREADS: u16 = 4;
    let fdb = Fdb::new(300);
    assert!(fdb.hold(bytes(1000), 7, 255));
    let start = Barrier::new(usize::from(THREADS));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (fdb, start) = (&fdb, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..20 {
                    for n in 0..500u32 {
                        let port = (n % 50) as u16 * THREADS + thread;
                        fdb.note(n, 0, port, round);
                        fdb.note(n, 1 + thread, port, round);
                        if let Some(found) = fdb.find(n, 0, round) {
                            assert_eq!(found / THREADS, (n % 50) as u16);
                        }
                        let found = fdb.find(n, 1 + thread, round);
                        assert!(found.is_none_or(|found| found == port), "{found:?}");
                        assert_eq!(fdb.find(n, 100, round), None);
                        assert!(!fdb.note(1000, 7, port, round));
                        assert_eq!(fdb.find(1000, 7, round), Some(255));
                    }
                    if round == 10 {
                        fdb.flush(thread);
                    }
                }
            });
        }
    });
    // Counts are right when all is quiet, and nothing is stuck.
    let all = || (0..200).map(|port| fdb.len(port)).sum::<usize>();
    assert_eq!(all(), fdb.total.load(Relaxed) as usize);
    fdb.sweep_all(1000);
    assert_eq!(all(), 0);
}

#[test]
fn held_addresses_do_not_count_and_find_room() {
    let fdb = Fdb::new(300);
    fdb.set_limit(1, Some(1));
    for n in 0..1024 {
        assert!(fdb.hold(bytes(n), 0, 1));
    }
    assert!(fdb.hold(bytes(5), 0, 1), "twice is once");
    assert!(!fdb.hold(bytes(5), 0, 2));
    assert!(fdb.hold(bytes(5), 1, 2), "another VLAN");
    assert_eq!(fdb.len(1), 0);
    assert!(fdb.note(5, 0, 1, 0) && fdb.note(2000, 0, 1, 0));
    let learn = |n| fdb.learn(&fdb.spot(address(n), 0), 1, 0);
    assert_eq!(learn(2001), Learned::Limit);
    assert_eq!(fdb.learn(&fdb.spot(address(5), 0), 2, 0), Learned::Held);
    // What was learned gives way.
    assert!(fdb.note(3000, 0, 4, 0));
    assert!(fdb.hold(bytes(3000), 0, 5));
    assert_eq!((fdb.find(3000, 0, 0), fdb.len(4)), (Some(5), 0));
    fdb.sweep_all(10_000);
    for n in 0..1024 {
        assert_eq!(fdb.find(n, 0, 10_000), Some(1));
    }
    fdb.flush(1);
    assert_eq!(fdb.find(7, 0, 10_000), Some(1));
    fdb.remove(1);
    assert_eq!(fdb.find(7, 0, 10_000), None);
    assert_eq!(learn(2001), Learned::Yes, "no limit any more");
}

#[test]
fn group_addresses() {
    assert!(is_group(number([0xff; 6])));
    assert!(is_group(number([1, 0, 0x5e, 0, 0, 1])));
    assert!(!is_group(address(1)));
}
