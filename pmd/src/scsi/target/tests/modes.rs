//! Mode pages, log pages, starting and stopping.

use super::super::bench::Bench;
use super::*;
use crate::bdev::{Abilities, Geometry};

fn mode_sense(page: u8) -> [u8; 6] {
    [0x1a, 0, page, 0, 255, 0]
}

/// A list for MODE SELECT(6) with these pages.
fn list(pages: &[&[u8]]) -> Vec<u8> {
    [&[0; 4][..], &pages.concat()].concat()
}

fn select(len: usize) -> [u8; 6] {
    [0x15, 0x10, 0, 0, len as u8, 0]
}

#[test]
fn pages_come_one_by_one_and_all_at_once() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let all = good(&mut bench, &luns, &mode_sense(0x3f), &[], 255);
    assert_eq!(usize::from(all[0]), all.len() - 1);
    assert_eq!((all[2], all[3]), (0x10, 8));
    assert_eq!((be(&all[4..8]), be(&all[9..12])), (64, 512));
    let mut pages = Vec::new();
    for number in [0x08, 0x0a, 0x1c] {
        let one = good(&mut bench, &luns, &mode_sense(number), &[], 255);
        assert_eq!(one[12], number);
        assert_eq!(usize::from(one[13]), one.len() - 14);
        pages.extend_from_slice(&one[12..]);
    }
    assert_eq!(all[12..], pages);
    // Without descriptor; with long ones and a long header.
    let short = good(&mut bench, &luns, &[0x1a, 8, 0x3f, 0, 255, 0], &[], 255);
    assert_eq!((short[3], &short[4..]), (0, &pages[..]));
    let long = good(
        &mut bench,
        &luns,
        &[0x5a, 0x10, 0x3f, 0, 0, 0, 0, 0, 255, 0],
        &[],
        255,
    );
    assert_eq!(
        (be(&long[..2]) as usize, long[4], long[7]),
        (long.len() - 2, 1, 16)
    );
    assert_eq!((be(&long[8..16]), be(&long[20..24])), (64, 512));
    assert_eq!(long[24..], pages);

    assert_eq!(
        sense(&mut bench, &luns, &mode_sense(0x01), &[], 255).code,
        0x2400
    );
    assert_eq!(
        sense(&mut bench, &luns, &mode_sense(0xc8), &[], 255).code,
        0x3900
    );
    assert_eq!(
        sense(&mut bench, &luns, &[0x1a, 0, 8, 1, 255, 0], &[], 255).code,
        0x2400
    );
}

#[test]
fn the_cache_can_be_switched_off_and_is_flushed_then() {
    let mut bench = Bench::new(64);
    let (luns, other) = (bench.initiator(1), bench.initiator(2));
    let mut page = good(&mut bench, &luns, &[0x1a, 8, 8, 0, 255, 0], &[], 255)[4..].to_vec();
    assert_eq!(page[2], 4);
    page[2] = 0;
    let off = list(&[&page]);
    good(&mut bench, &luns, &select(off.len()), &off, 0);
    assert_eq!(bench.steps, ["Flush"]);
    good(&mut bench, &luns, &cdb10(0x2a, 0, 0, 1), &block(1), 0);
    assert!(bench.steps[1].contains("fua: true"));
    // The others hear of it, once.
    let found = sense(&mut bench, &other, &[0; 6], &[], 0);
    assert_eq!((found.key, found.code), (Key::UnitAttention, 0x2a01));
    good(&mut bench, &other, &[0; 6], &[], 0);
    // What was at first, and what can be changed, are still known.
    let first = good(&mut bench, &luns, &[0x1a, 8, 0x88, 0, 255, 0], &[], 255);
    let can = good(&mut bench, &luns, &[0x1a, 8, 0x48, 0, 255, 0], &[], 255);
    assert_eq!((first[6], can[6]), (4, 4));
}

#[test]
fn sense_data_are_made_in_the_format_that_was_chosen() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    assert_eq!(bench.unit.sense_bytes(&Sense::OPCODE)[0], 0x70);
    let mut page = good(&mut bench, &luns, &[0x1a, 8, 0x0a, 0, 255, 0], &[], 255)[4..].to_vec();
    page[2] |= 4;
    let on = list(&[&page]);
    good(&mut bench, &luns, &select(on.len()), &on, 0);
    assert_eq!(bench.unit.sense_bytes(&Sense::OPCODE)[0], 0x72);
}

#[test]
fn software_write_protection_protects() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let mut page = good(&mut bench, &luns, &[0x1a, 8, 0x0a, 0, 255, 0], &[], 255)[4..].to_vec();
    page[4] |= 8;
    let on = list(&[&page]);
    good(&mut bench, &luns, &select(on.len()), &on, 0);
    let header = good(&mut bench, &luns, &mode_sense(8), &[], 255);
    assert_eq!(header[2], 0x90);
    for write in [
        cdb10(0x2a, 0, 0, 1),
        cdb10(0x41, 0, 0, 1),
        cdb16(0x93, 1, 0, 1),
        cdb10(0x42, 0, 0, 0),
        cdb16(0x89, 0, 0, 0),
        cdb10(0x2e, 0, 0, 1),
    ] {
        let found = sense(&mut bench, &luns, &write, &block(1), 0);
        assert_eq!(
            (found.key, found.code),
            (Key::DataProtect, 0x2702),
            "{write:x?}"
        );
    }
    good(&mut bench, &luns, &cdb10(0x28, 0, 0, 1), &[], 512);
    page[4] &= !8;
    let off = list(&[&page]);
    good(&mut bench, &luns, &select(off.len()), &off, 0);
    good(&mut bench, &luns, &cdb10(0x2a, 0, 0, 1), &block(1), 0);
}

#[test]
fn a_read_only_disk_says_so() {
    let abilities = Abilities {
        read_only: true,
        write_back: false,
        discard: None,
        write_zeroes: None,
        needs_pinnable: false,
    };
    let mut bench = Bench::with(64 << 9, Geometry::default(), abilities, None);
    let luns = bench.initiator(1);
    assert_eq!(good(&mut bench, &luns, &mode_sense(8), &[], 255)[2], 0x90);
    let found = sense(&mut bench, &luns, &cdb10(0x2a, 0, 0, 1), &block(1), 0);
    assert_eq!((found.key, found.code), (Key::DataProtect, 0x2700));
}

#[test]
fn lists_that_make_no_sense_change_nothing() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let before = good(&mut bench, &luns, &mode_sense(0x3f), &[], 255);
    let caching = good(&mut bench, &luns, &[0x1a, 8, 8, 0, 255, 0], &[], 255)[4..].to_vec();
    let mut wrong = caching.clone();
    wrong[12] = 9;
    let mut off = caching.clone();
    off[2] = 0;
    for (bad, code, place) in [
        (list(&[&off, &wrong]), 0x2600, Some(4 + 20 + 12)),
        (list(&[&off, &[0x3e, 1, 0]]), 0x2600, Some(4 + 20)),
        (list(&[&off, &[0x08, 1, 0]]), 0x2600, Some(4 + 20 + 1)),
        (list(&[&off, &caching[..19]]), 0x1a00, None),
        (list(&[&off, &[8]]), 0x1a00, None),
        (vec![0; 3], 0x1a00, None),
        (vec![0, 0, 0, 8, 1, 2, 3], 0x1a00, None),
        (vec![0, 0, 0, 8, 0, 0, 0, 65, 0, 0, 2, 0], 0x2600, Some(4)),
        (vec![0, 0, 0, 8, 0, 0, 0, 64, 0, 0, 4, 0], 0x2600, Some(4)),
        (vec![0, 0, 0, 3, 0, 0, 0], 0x2600, Some(4)),
    ] {
        let found = sense(&mut bench, &luns, &select(bad.len()), &bad, 0);
        assert_eq!(
            (found.code, found.place.map(|place| place.byte)),
            (code, place),
            "{bad:x?}"
        );
    }
    let fine = [vec![0, 0, 0, 8, 0, 0, 0, 64, 0, 0, 2, 0], caching.clone()].concat();
    good(&mut bench, &luns, &select(fine.len()), &fine, 0);
    let long = [vec![0; 7], vec![8], vec![0; 6], vec![2, 0], caching].concat();
    good(
        &mut bench,
        &luns,
        &[0x55, 0x10, 0, 0, 0, 0, 0, 0, long.len() as u8, 0],
        &long,
        0,
    );
    good(&mut bench, &luns, &select(0), &[], 0);
    assert_eq!(
        sense(&mut bench, &luns, &[0x15, 0, 0, 0, 4, 0], &[0; 4], 0).code,
        0x2400
    );
    assert_eq!(good(&mut bench, &luns, &mode_sense(0x3f), &[], 255), before);
}

#[test]
fn a_stopped_unit_wants_to_be_started() {
    let mut bench = Bench::new(64);
    let (luns, other) = (bench.initiator(1), bench.initiator(2));
    good(&mut bench, &luns, &[0x1b, 0, 0, 0, 0, 0], &[], 0);
    assert_eq!(bench.steps, ["Flush"]);
    for luns in [&luns, &other] {
        for cdb in [&[0; 6][..], &cdb10(0x28, 0, 0, 1), &cdb10(0x25, 0, 0, 0)] {
            let found = sense(&mut bench, luns, cdb, &[], 512);
            assert_eq!((found.key, found.code), (Key::NotReady, 0x0402));
        }
        let told = good(&mut bench, luns, &[3, 0, 0, 0, 18, 0], &[], 18);
        assert_eq!((told[2], told[12], told[13]), (2, 4, 2));
        good(&mut bench, luns, &mode_sense(8), &[], 255);
    }
    good(&mut bench, &other, &[0x1b, 0, 0, 0, 1, 0], &[], 0);
    good(&mut bench, &luns, &cdb10(0x28, 0, 0, 1), &[], 512);
    good(&mut bench, &luns, &[0x1e, 0, 0, 0, 1, 0], &[], 0);
}

#[test]
fn log_pages_are_there() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let log = |page: u8, subpage| [0x4d, 0, 0x40 | page, subpage, 0, 0, 0, 0, 255, 0];
    assert_eq!(
        good(&mut bench, &luns, &log(0, 0), &[], 255),
        [0, 0, 0, 2, 0, 0x2f]
    );
    assert_eq!(good(&mut bench, &luns, &log(0, 0xff), &[], 255)[0], 0x40);
    let data = good(&mut bench, &luns, &log(0x2f, 0), &[], 255);
    assert_eq!((data[0], be(&data[2..4]) as usize), (0x2f, data.len() - 4));
    assert_eq!(sense(&mut bench, &luns, &log(1, 0), &[], 255).code, 0x2400);
    assert_eq!(
        sense(&mut bench, &luns, &log(0x2f, 1), &[], 255).code,
        0x2400
    );
}
