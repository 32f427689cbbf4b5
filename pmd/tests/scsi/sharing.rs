//! One unit behind several devices, on as many workers as there are CPUs.

use super::management::usable;
use super::*;

fn pair(store: Option<Arc<Store>>) -> (Lun, Bench, Bench) {
    let workers = ScsiWorkers::new(&[0, 1][..usable()], Polling::default()).unwrap();
    let lun = Lun::new("shared", mem(), false, store);
    let mut one = Bench::with("one", &workers, SPLIT, 1);
    let mut two = Bench::with("two", &workers, PACKED, 1);
    for bench in [&mut one, &mut two] {
        bench.face.add(at(0, 0), lun.clone());
        bench.settle(at(0, 0));
    }
    (lun, one, two)
}

fn reserve(bench: &mut Bench, action: u8, kind: u8, keys: (u64, u64), flags: u8) -> u8 {
    let mut list = [keys.0.to_be_bytes(), keys.1.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    bench.run(at(0, 0), &cdb, &list, 0).status
}

#[test]
fn compare_and_write_loses_no_increment() {
    let (_lun, one, two) = pair(None);
    const ROUNDS: u64 = 300;
    let counters = [one, two].map(|mut bench| {
        std::thread::spawn(move || {
            let mut cdb = [0; 16];
            (cdb[0], cdb[13]) = (0x89, 1);
            let mut lost = 0;
            for round in 0..ROUNDS {
                // A write beside it, which must not be in the way for ever.
                let beside = write(8 + round as u32 % 8, 1);
                assert_eq!(bench.run(at(0, 0), &beside, &[1; 512], 0).status, 0);
                loop {
                    let old = bench.run(at(0, 0), &read(0, 1), &[], 512).data;
                    let count = u64::from_be_bytes(old[..8].try_into().unwrap()) + 1;
                    let mut new = old.clone();
                    new[..8].copy_from_slice(&count.to_be_bytes());
                    let response = bench.run(at(0, 0), &cdb, &[old, new].concat(), 0);
                    if response.status == 0 {
                        break;
                    }
                    assert_eq!(response.sense(), (0xe, 0x1d00));
                    lost += 1;
                }
            }
            (bench, lost)
        })
    });
    let [(mut one, _), _] = counters.map(|counter| counter.join().unwrap());
    let found = one.run(at(0, 0), &read(0, 1), &[], 512).data;
    assert_eq!(
        u64::from_be_bytes(found[..8].try_into().unwrap()),
        2 * ROUNDS
    );
}

#[test]
fn a_reservation_of_one_is_a_conflict_for_the_other() {
    let (_lun, mut one, mut two) = pair(None);
    assert_eq!(reserve(&mut one, 0, 0, (0, 1), 0), 0);
    assert_eq!(reserve(&mut one, 1, 1, (1, 0), 0), 0);
    assert_eq!(two.run(at(0, 0), &write(0, 1), &[0; 512], 0).status, 0x18);
    assert_eq!(two.run(at(0, 0), &read(0, 1), &[], 512).status, 0);
    assert_eq!(reserve(&mut two, 0, 0, (0, 2), 0), 0);
    assert_eq!(reserve(&mut two, 5, 3, (2, 1), 0), 0);
    let told = one.run(at(0, 0), &read(0, 1), &[], 512);
    assert_eq!(told.sense(), (6, 0x2a05));
    assert_eq!(one.run(at(0, 0), &read(0, 1), &[], 512).status, 0x18);
}

#[test]
fn a_reset_by_one_is_told_to_the_other() {
    let (_lun, mut one, mut two) = pair(None);
    assert_eq!(one.manage(5, at(0, 0), 0), 0);
    assert_eq!(one.run(at(0, 0), &[0; 6], &[], 0).sense(), (6, 0x2900));
    assert_eq!(two.run(at(0, 0), &[0; 6], &[], 0).sense(), (6, 0x2903));
    // One whose connection begins anew hears of that.
    one.device.reset();
    assert_eq!(two.run(at(0, 0), &[0; 6], &[], 0).status, 0);
}

#[test]
fn reservations_outlast_the_process() {
    let file = Temp::new("state");
    {
        let store = Store::open(&file.0).unwrap();
        let (_lun, mut one, _two) = pair(Some(store));
        assert_eq!(reserve(&mut one, 0, 0, (0, 0xabc), 1), 0);
        assert_eq!(reserve(&mut one, 1, 3, (0xabc, 0), 0), 0);
        one.device.reset();
    }
    let text = std::fs::read_to_string(&file.0).unwrap();
    assert!(
        text.contains("0000000000000abc") && text.contains("held 3"),
        "{text}"
    );
    let store = Store::open(&file.0).unwrap();
    let (_lun, mut one, mut two) = pair(Some(store));
    assert_eq!(one.run(at(0, 0), &write(0, 1), &[0; 512], 0).status, 0);
    assert_eq!(two.run(at(0, 0), &read(0, 1), &[], 512).status, 0x18);
    let keys = one.run(at(0, 0), &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256);
    assert_eq!(
        (keys.data[7], keys.data[14], keys.data[15]),
        (8, 0x0a, 0xbc)
    );
    let can = one.run(at(0, 0), &[0x5e, 2, 0, 0, 0, 0, 0, 0, 8, 0], &[], 8);
    assert_eq!((can.data[2], can.data[3]), (1, 0x81));
}
