//! Several initiators at one unit.

use super::super::bench::{Bench, first};
use super::*;

const READY: [u8; 6] = [0; 6];

#[test]
fn an_initiator_hears_of_each_thing_once_in_order() {
    let mut bench = Bench::new(64);
    let luns = bench.newcomer(1);
    bench.unit.resize(32 << 9);
    assert!(!bench.unit.resize(32 << 9));
    assert_eq!(bench.bell.take_changes(), [Attention::CapacityChanged]);
    // INQUIRY is answered all the same.
    good(&mut bench, &luns, &[0x12, 0, 0, 0, 36, 0], &[], 36);
    let codes: Vec<_> = (0..2)
        .map(|_| sense(&mut bench, &luns, &READY, &[], 0))
        .map(|sense| (sense.key, sense.code))
        .collect();
    assert_eq!(
        codes,
        [(Key::UnitAttention, 0x2900), (Key::UnitAttention, 0x2a09)]
    );
    good(&mut bench, &luns, &READY, &[], 0);
    // A command that is unknown is refused as such.
    bench.unit.resize(64 << 9);
    assert_eq!(sense(&mut bench, &luns, &[0xff; 16], &[], 0).code, 0x2000);
    // Asked for as data, it is told, too.
    let told = good(&mut bench, &luns, &[3, 0, 0, 0, 255, 0], &[], 255);
    assert_eq!((told[0], told[2], told[12], told[13]), (0x70, 6, 0x2a, 9));
    let told = good(&mut bench, &luns, &[3, 1, 0, 0, 255, 0], &[], 255);
    assert_eq!((told[0], told[1]), (0x72, 0));
}

#[test]
fn a_reset_ends_tasks_and_is_told_to_all() {
    let mut bench = Bench::new(64);
    let (one, two) = (bench.initiator(1), bench.initiator(2));
    good(&mut bench, &one, &[0x1b, 0, 0, 0, 4, 0], &[], 0);
    let barrier = bench.unit.reset(first(&one).id());
    assert!(!barrier.is_clear());
    let held = bench.bell.take_orders();
    assert_eq!(held.len(), 2);
    assert!(!barrier.is_clear());
    drop(held);
    assert!(barrier.is_clear());
    assert_eq!(sense(&mut bench, &one, &READY, &[], 0).code, 0x2900);
    assert_eq!(sense(&mut bench, &two, &READY, &[], 0).code, 0x2903);
    good(&mut bench, &two, &READY, &[], 0);
    // Who is gone has no tasks.
    let id = first(&one).id();
    drop((one, two));
    assert!(bench.unit.reset(id).is_clear());
}
