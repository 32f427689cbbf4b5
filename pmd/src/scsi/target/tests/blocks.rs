//! Commands that move blocks.

use super::super::bench::Bench;
use super::*;
use crate::bdev::{Abilities, Geometry, IoError, Limits};

fn cdb12(code: u8, one: u8, lba: u32, count: u32) -> Vec<u8> {
    let mut cdb = vec![code, one];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(count.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

#[test]
fn every_kind_of_write_is_read_by_every_kind_of_read() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let writes = [
        vec![0x0a, 0, 0, 5, 2, 0],
        cdb10(0x2a, 0, 5, 2),
        cdb12(0xaa, 0, 5, 2),
        cdb16(0x8a, 0, 5, 2),
        cdb10(0x2e, 0, 5, 2),
        cdb12(0xae, 2, 5, 2),
        cdb16(0x8e, 0, 5, 2),
    ];
    let reads = [
        vec![0x08, 0, 0, 5, 2, 0],
        cdb10(0x28, 0, 5, 2),
        cdb12(0xa8, 0x10, 5, 2),
        cdb16(0x88, 8, 5, 2),
    ];
    for (byte, write) in (1..).zip(&writes) {
        let data = [block(byte), block(byte + 100)].concat();
        good(&mut bench, &luns, write, &data, 0);
        for read in &reads {
            let found = good(&mut bench, &luns, read, &[], 2 * B as u64);
            assert_eq!(found, data, "{write:x?} {read:x?}");
        }
        assert!(bench.disk[..5 * B].iter().all(|&byte| byte == 0));
        assert!(bench.disk[7 * B..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_short_one_without_a_count_means_256() {
    let mut bench = Bench::new(300);
    let luns = bench.initiator(1);
    let data: Vec<u8> = (0..256 * B).map(|at| (at / B) as u8).collect();
    good(&mut bench, &luns, &[0x0a, 0, 0, 3, 0, 0], &data, 0);
    let found = good(&mut bench, &luns, &[0x08, 0, 0, 3, 0, 0], &[], 1 << 20);
    assert_eq!(found, data);
    // Of the longer ones none means none.
    assert!(good(&mut bench, &luns, &cdb10(0x28, 0, 3, 0), &[], 512).is_empty());
}

#[test]
fn what_is_outside_is_refused_with_its_address() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let all = 1 << 40;
    for (lba, count) in [
        (64, 1),
        (63, 2),
        (0, 65),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (1 << 55, 1),
        (65, 0),
    ] {
        for code in [0x88, 0x8f, 0x91, 0x93] {
            let found = sense(&mut bench, &luns, &cdb16(code, 0, lba, count), &[], all);
            assert_eq!(
                (found.key, found.code),
                (Key::IllegalRequest, 0x2100),
                "{lba} {count} {code:x}"
            );
            assert_eq!(found.info, Some(lba.max(64)));
        }
    }
    good(&mut bench, &luns, &cdb16(0x88, 0, 63, 1), &[], 512);
    good(&mut bench, &luns, &cdb16(0x88, 0, 64, 0), &[], 512);
}

#[test]
fn buffers_that_are_too_short_are_overrun() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    assert_eq!(
        run(&mut bench, &luns, &cdb10(0x28, 0, 0, 2), &[], 1023).answer,
        None
    );
    assert_eq!(
        run(&mut bench, &luns, &cdb10(0x2a, 0, 0, 2), &[0; 1023], 0).answer,
        None
    );
    assert_eq!(
        run(&mut bench, &luns, &[0x12, 0, 0, 0, 96, 0], &[], 95).answer,
        None
    );
    assert_eq!(
        run(&mut bench, &luns, &cdb10(0x25, 0, 0, 0), &[], 7).answer,
        None
    );
    assert_eq!(
        run(&mut bench, &luns, &cdb10(0x41, 0, 0, 1), &[0; 511], 0).answer,
        None
    );
    assert_eq!(bench.steps, Vec::<String>::new());
}

#[test]
fn force_unit_access_reaches_the_medium() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    good(&mut bench, &luns, &cdb10(0x2a, 0, 0, 1), &block(1), 0);
    good(&mut bench, &luns, &cdb10(0x2a, 8, 0, 1), &block(1), 0);
    good(&mut bench, &luns, &cdb10(0x28, 8, 0, 1), &[], 512);
    let fua = |n: usize| bench.steps[n].contains("fua: true");
    assert!(!fua(0) && fua(1));
    assert_eq!(bench.steps[2], "Flush", "before it is read");
}

#[test]
fn verify_compares_when_it_shall() {
    let mut bench = Bench::new(2048);
    let luns = bench.initiator(1);
    for (at, byte) in bench.disk.iter_mut().enumerate() {
        *byte = (at / B * 7) as u8;
    }
    let mut data = bench.disk[3 * B..1800 * B].to_vec();
    good(&mut bench, &luns, &cdb10(0x2f, 0, 3, 1797), &[], 0);
    good(&mut bench, &luns, &cdb10(0x2f, 2, 3, 1797), &data, 0);
    data[700 * B + 9] ^= 1;
    let found = sense(&mut bench, &luns, &cdb10(0x2f, 2, 3, 1797), &data, 0);
    assert_eq!((found.key, found.code), (Key::Miscompare, 0x1d00));
    assert_eq!(found.info, Some(700 * B as u64 + 9));
    // One block for all of them.
    bench.disk[..1024 * B].fill(9);
    good(&mut bench, &luns, &cdb16(0x8f, 6, 0, 1024), &block(9), 0);
    let found = sense(&mut bench, &luns, &cdb16(0x8f, 6, 0, 1025), &block(9), 0);
    assert_eq!(found.info, Some(1024 * B as u64));
    let found = sense(&mut bench, &luns, &cdb16(0x8f, 4, 0, 1), &block(9), 0);
    assert_eq!(found.place.unwrap().byte, 1);
    assert_eq!(
        run(&mut bench, &luns, &cdb16(0x8f, 2, 0, 2), &block(9), 0).answer,
        None
    );
}

#[test]
fn write_same_repeats_a_block_or_writes_zeroes() {
    let mut bench = Bench::new(4096);
    let luns = bench.initiator(1);
    let pattern: Vec<u8> = (0..B).map(|at| at as u8).collect();
    good(&mut bench, &luns, &cdb10(0x41, 0, 1, 2000), &pattern, 0);
    assert!(
        bench.disk[B..2001 * B]
            .chunks(B)
            .all(|found| found == pattern)
    );
    assert!(bench.disk[2001 * B..].iter().all(|&byte| byte == 0));
    assert_eq!(bench.disk[..B], block(0));

    bench.steps.clear();
    good(&mut bench, &luns, &cdb16(0x93, 8, 2, 4000), &block(0), 0);
    good(&mut bench, &luns, &cdb16(0x93, 1, 1, 1), &[], 0);
    assert!(bench.disk.iter().all(|&byte| byte == 0));
    assert!(
        bench.steps.iter().all(|step| step.starts_with("Zero")),
        "{:?}",
        bench.steps
    );
    assert!(
        bench.steps[0].contains("unmap: true")
            && bench.steps.last().unwrap().contains("unmap: false")
    );

    let found = sense(&mut bench, &luns, &cdb16(0x93, 0, 0, 0), &block(0), 0);
    assert_eq!((found.code, found.place.unwrap().byte), (0x2400, 10));
    // What is not zero cannot be unmapped, and is written.
    good(&mut bench, &luns, &cdb16(0x93, 8, 0, 3), &block(5), 0);
    assert!(bench.disk[..3 * B].iter().all(|&byte| byte == 5));
}

#[test]
fn a_disk_that_cannot_zero_gets_zeroes_as_data() {
    let abilities = Abilities {
        read_only: false,
        write_back: false,
        discard: None,
        write_zeroes: None,
        needs_pinnable: false,
    };
    let mut bench = Bench::with(4096 << 10, Geometry::default(), abilities, None);
    let luns = bench.initiator(1);
    bench.disk.fill(1);
    good(&mut bench, &luns, &cdb16(0x93, 0, 0, 2000), &block(0), 0);
    assert!(bench.disk[..2000 * B].iter().all(|&byte| byte == 0) && bench.disk[2000 * B] == 1);
    assert!(
        bench.steps.iter().all(|step| step.contains("fua: true")),
        "no cache"
    );
    // It cannot unmap either, and nobody says that it could.
    let found = sense(&mut bench, &luns, &cdb16(0x93, 8, 0, 1), &block(0), 0);
    assert_eq!(
        found.place.unwrap(),
        Place {
            in_cdb: true,
            byte: 1,
            bit: Some(3)
        }
    );
    let found = sense(&mut bench, &luns, &cdb10(0x42, 0, 0, 0), &[], 0);
    assert_eq!(found.code, 0x2000);
}

fn unmap(ranges: &[(u64, u32)]) -> Vec<u8> {
    let descriptors = ranges.len() * 16;
    let mut list = ((descriptors + 6) as u16).to_be_bytes().to_vec();
    list.extend((descriptors as u16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

#[test]
fn unmap_does_all_ranges_or_none() {
    let mut bench = Bench::new(8192);
    let luns = bench.initiator(1);
    bench.disk.fill(1);
    let cdb = |list: &[u8]| cdb10(0x42, 0, 0, list.len() as u16);
    let list = unmap(&[(0, 8), (100, 0), (1000, 6000)]);
    good(&mut bench, &luns, &cdb(&list), &list, 0);
    let zero = |range: std::ops::Range<usize>| {
        bench.disk[range.start * B..range.end * B]
            .iter()
            .all(|&byte| byte == 0)
    };
    assert!(zero(0..8) && zero(1000..7000));
    assert_eq!(
        bench.disk.iter().filter(|&&byte| byte == 1).count(),
        (8192 - 6008) * B
    );

    bench.disk.fill(1);
    for (bad, code) in [
        (unmap(&[(0, 8), (8191, 2)]), 0x2100),
        (unmap(&[(0, 8), (u64::MAX, 2)]), 0x2100),
        (unmap(&vec![(0, 1); 257]), 0x2600),
        (unmap(&[(0, 8)])[..20].to_vec(), 0x1a00),
        (vec![0; 7], 0x1a00),
    ] {
        let found = sense(&mut bench, &luns, &cdb(&bad), &bad, 0);
        assert_eq!(found.code, code);
    }
    good(&mut bench, &luns, &cdb(&[]), &[], 0);
    assert!(bench.disk.iter().all(|&byte| byte == 1));
}

#[test]
fn compare_and_write_writes_what_is_expected_only() {
    let mut bench = Bench::new(1024);
    let luns = bench.initiator(1);
    let cdb = |count: u8| {
        let mut cdb = cdb16(0x89, 0, 7, 0);
        cdb[13] = count;
        cdb
    };
    let data = [block(0), block(0), block(1), block(2)].concat();
    good(&mut bench, &luns, &cdb(2), &data, 0);
    assert_eq!(bench.disk[7 * B..9 * B], data[2 * B..]);
    let found = sense(&mut bench, &luns, &cdb(2), &data, 0);
    assert_eq!((found.key, found.info), (Key::Miscompare, Some(0)));
    let mut data = [block(1), block(2), block(3), block(4)].concat();
    data[B + 17] = 9;
    let found = sense(&mut bench, &luns, &cdb(2), &data, 0);
    assert_eq!(found.info, Some(B as u64 + 17));
    assert_eq!(bench.disk[7 * B..8 * B], block(1));
    assert_eq!(
        run(&mut bench, &luns, &cdb(2), &data[..4 * B - 1], 0).answer,
        None
    );
    good(&mut bench, &luns, &cdb(0), &[], 0);
    assert!(bench.unit.gate().close().is_some(), "open again");
}

#[test]
fn a_disk_that_fails_is_told_as_it_is() {
    let errors = [
        (IoError::Io(5), Key::MediumError, 0x1100, 0x0c00),
        (IoError::NoSpace, Key::DataProtect, 0x2707, 0x2707),
        (IoError::Gone, Key::NotReady, 0x0403, 0x0403),
        (IoError::Unsupported, Key::HardwareError, 0x4400, 0x4400),
        (IoError::ReadOnly, Key::DataProtect, 0x2700, 0x2700),
        (IoError::Timeout, Key::HardwareError, 0x0801, 0x0801),
    ];
    let mut compare = cdb16(0x89, 0, 7, 0);
    compare[13] = 1;
    let unmap = unmap(&[(0, 4), (6, 9)]);
    for (error, key, read, write) in errors {
        // A command, how many of its steps go well, and what it says then.
        for (cdb, out, steps, code) in [
            (cdb10(0x28, 0, 0, 1), vec![], 0, read),
            (cdb10(0x2a, 0, 0, 1), block(1), 0, write),
            (cdb10(0x28, 8, 0, 1), vec![], 0, write),
            (cdb10(0x28, 8, 0, 1), vec![], 1, read),
            (cdb10(0x2e, 0, 0, 1), block(1), 0, write),
            (cdb10(0x2e, 0, 0, 1), block(1), 1, read),
            (cdb10(0x2f, 0, 0, 1), vec![], 0, read),
            (cdb10(0x35, 0, 0, 0), vec![], 0, write),
            (cdb10(0x41, 0, 0, 1), block(1), 0, write),
            (
                cdb10(0x42, 0, 0, unmap.len() as u16),
                unmap.clone(),
                1,
                write,
            ),
            (compare.clone(), vec![0; 2 * B], 0, read),
            (compare.clone(), vec![0; 2 * B], 1, write),
            (vec![0x1b, 0, 0, 0, 0, 0], vec![], 0, write),
        ] {
            let mut bench = Bench::new(64);
            let luns = bench.initiator(1);
            bench.fails = Some((steps, error));
            let found = sense(&mut bench, &luns, &cdb, &out, 512);
            assert_eq!((found.key, found.code), (key, code), "{error:?} {cdb:x?}");
            assert!(bench.unit.gate().close().is_some());
        }
    }
}

#[test]
fn large_blocks_are_blocks() {
    let geometry = Geometry {
        logical_block: 4096,
        physical_block: 16384,
        optimal_io: 0,
    };
    let limits = Some(Limits {
        max_bytes: 4096,
        granularity: 4096,
    });
    let abilities = Abilities {
        read_only: false,
        write_back: true,
        discard: limits,
        write_zeroes: limits,
        needs_pinnable: false,
    };
    let mut bench = Bench::with(64 * 4096, geometry, abilities, None);
    let luns = bench.initiator(1);
    good(&mut bench, &luns, &cdb10(0x2a, 0, 63, 1), &[7; 4096], 0);
    assert_eq!(bench.disk[63 * 4096..], [7; 4096]);
    good(&mut bench, &luns, &cdb10(0x41, 8, 60, 4), &[0; 4096], 0);
    assert!(bench.disk.iter().all(|&byte| byte == 0));
    let mut cdb = cdb16(0x9e, 0x10, 0, 32);
    cdb[13] = 32;
    let data = good(&mut bench, &luns, &cdb, &[], 32);
    assert_eq!((be(&data[..8]), be(&data[8..12]), data[13]), (63, 4096, 2));
}
