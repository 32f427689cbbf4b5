//! What a unit tells of itself.

use super::super::bench::Bench;
use super::super::opcodes::TABLE;
use super::*;
use crate::bdev::{Abilities, Geometry};

fn inquiry(page: Option<u8>, len: u8) -> [u8; 6] {
    [0x12, page.is_some().into(), page.unwrap_or(0), 0, len, 0]
}

#[test]
fn inquiry_tells_a_disk() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let data = good(&mut bench, &luns, &inquiry(None, 255), &[], 255);
    assert_eq!(data.len(), 96);
    assert_eq!((data[0], data[2], data[4]), (0, 6, 91));
    assert_eq!(&data[8..36], b"VVU     disk            0.1 ");
    // No more than asked for.
    assert_eq!(
        good(&mut bench, &luns, &inquiry(None, 5), &[], 255),
        data[..5]
    );
    assert!(good(&mut bench, &luns, &inquiry(None, 0), &[], 0).is_empty());
    // A page without saying so.
    let found = sense(&mut bench, &luns, &[0x12, 0, 0x80, 0, 255, 0], &[], 255);
    assert_eq!((found.code, found.place.unwrap().byte), (0x2400, 2));
}

#[test]
fn every_page_that_is_listed_is_there_and_no_other() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let list = good(&mut bench, &luns, &inquiry(Some(0), 255), &[], 255);
    assert_eq!(list[4..], [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2]);
    for page in 0..=255 {
        let cdb = inquiry(Some(page), 255);
        if list[4..].contains(&page) {
            let data = good(&mut bench, &luns, &cdb, &[], 255);
            assert_eq!((data[0], data[1]), (0, page));
            assert_eq!(be(&data[2..4]) as usize, data.len() - 4, "{page:x}");
        } else {
            assert_eq!(sense(&mut bench, &luns, &cdb, &[], 255).code, 0x2400);
        }
    }
    let serial = good(&mut bench, &luns, &inquiry(Some(0x80), 255), &[], 255);
    assert_eq!(&serial[4..], b"bench-1");
    let limits = good(&mut bench, &luns, &inquiry(Some(0xb0), 255), &[], 255);
    assert_eq!(limits.len(), 64);
    assert_eq!(limits[5], 255, "COMPARE AND WRITE");
    assert_eq!(be(&limits[24..28]), 256, "UNMAP descriptors");
    assert_eq!(be(&limits[28..32]), 8, "granularity");
}

#[test]
fn designators_follow_each_other_to_the_end() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(7);
    let data = good(&mut bench, &luns, &inquiry(Some(0x83), 255), &[], 255);
    let (mut rest, mut kinds) = (&data[4..], Vec::new());
    while !rest.is_empty() {
        let (one, behind) = rest.split_at(4 + usize::from(rest[3]));
        kinds.push((one[1] >> 4, one[1] & 0xf));
        match one[1] & 0xf {
            1 => assert_eq!(&one[4..], b"VVU     bench-1"),
            3 => assert_eq!((one[4] >> 4, one.len()), (3, 12)),
            4 => assert_eq!(one[4..], [0, 0, 0, 7]),
            _ => assert_eq!(one[4..], [0, 0, 0, 1]),
        }
        rest = behind;
    }
    assert_eq!(kinds, [(0, 1), (0, 3), (1, 4), (1, 5)]);
}

#[test]
fn capacity_is_told_in_both_sizes() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let data = good(&mut bench, &luns, &cdb10(0x25, 0, 0, 0), &[], 8);
    assert_eq!((be(&data[..4]), be(&data[4..])), (63, 512));
    let mut cdb = cdb16(0x9e, 0x10, 0, 0);
    cdb[13] = 32;
    let data = good(&mut bench, &luns, &cdb, &[], 32);
    assert_eq!(data.len(), 32);
    assert_eq!((be(&data[..8]), be(&data[8..12])), (63, 512));
    assert_eq!((data[13], data[14]), (3, 0x80));
    bench.unit.resize(1 << 45);
    let _ = run(&mut bench, &luns, &[0; 6], &[], 0);
    let data = good(&mut bench, &luns, &cdb10(0x25, 0, 0, 0), &[], 8);
    assert_eq!(be(&data[..4]), 0xffff_ffff);
}

#[test]
fn lba_status_tells_the_rest_of_the_disk() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let data = good(&mut bench, &luns, &cdb16(0x9e, 0x12, 10, 24), &[], 24);
    assert_eq!(data.len(), 24);
    assert_eq!(
        (be(&data[..4]), be(&data[8..16]), be(&data[16..20])),
        (20, 10, 54)
    );
    let found = sense(&mut bench, &luns, &cdb16(0x9e, 0x12, 64, 24), &[], 24);
    assert_eq!(found.code, 0x2100);
}

/// The operation codes that a unit reports: code, service action if it has one, length.
fn reported(bench: &mut Bench, luns: &Luns) -> Vec<(u8, Option<u16>, u16)> {
    let cdb = [0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0];
    let data = good(bench, luns, &cdb, &[], 1 << 14);
    assert_eq!(be(&data[..4]) as usize, data.len() - 4);
    let one = |row: &[u8]| {
        let action = (row[5] & 1 != 0).then(|| be(&row[2..4]) as u16);
        (row[0], action, be(&row[6..8]) as u16)
    };
    data[4..].chunks(8).map(one).collect()
}

#[test]
fn what_is_reported_is_what_is_accepted() {
    let thick = Abilities {
        read_only: false,
        write_back: true,
        discard: None,
        write_zeroes: None,
        needs_pinnable: false,
    };
    let thick = Bench::with(64 << 9, Geometry::default(), thick, None);
    for mut bench in [Bench::new(64), thick] {
        let luns = bench.initiator(1);
        let reported = reported(&mut bench, &luns);
        for code in 0..=255 {
            for action in 0..32 {
                let known = |(known, own, _): &&(u8, Option<u16>, u16)| {
                    *known == code && own.is_none_or(|own| own == u16::from(action))
                };
                let listed = reported.iter().find(known);
                let mut cdb = [0; 16];
                (cdb[0], cdb[1]) = (code, action);
                let answer = run(&mut bench, &luns, &cdb, &[], 1 << 20).answer;
                let found = answer.and_then(|answer| answer.sense);
                let unknown = found.is_some_and(|sense| {
                    let place = sense.place.map(|place| (place.byte, place.bit));
                    let has_actions = reported.iter().any(|row| row.0 == code && row.1.is_some());
                    sense.code == 0x2000
                        || sense.code == 0x2400 && has_actions && place == Some((1, Some(4)))
                });
                assert_eq!(listed.is_none(), unknown, "{code:x}/{action:x}: {found:?}");
                // Asked for alone, it is there or not just as well, with its length.
                let with = reported.iter().any(|row| row.0 == code && row.1.is_some());
                let option = if with { 2 } else { 1 };
                let ask = [0xa3, 0x0c, option, code, 0, action, 0, 0, 1, 0, 0, 0];
                let one = good(&mut bench, &luns, &ask, &[], 256);
                match listed {
                    None if with || action == 0 => assert_eq!(one[1], 1, "{code:x}/{action:x}"),
                    None => {}
                    Some((.., len)) => {
                        assert_eq!((one[1], be(&one[2..4])), (3, u64::from(*len)));
                        assert_eq!(one.len(), 4 + usize::from(*len));
                    }
                }
            }
        }
    }
}

#[test]
fn every_bit_that_the_usage_map_does_not_have_is_refused() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    for row in TABLE {
        let usage = row.usage_bytes(true);
        for at in 8..usage.len() * 8 {
            let (byte, bit) = (at / 8, 7 - at % 8);
            let mut cdb = vec![0; usage.len()];
            (cdb[0], cdb[1]) = (row.code, row.action.unwrap_or(0));
            let action = row.action.is_some() && byte == 1 && bit < 5;
            if usage[byte] >> bit & 1 != 0 || action {
                continue;
            }
            cdb[byte] |= 1 << bit;
            let found = sense(&mut bench, &luns, &cdb, &[], 1 << 20);
            let place = Place {
                in_cdb: true,
                byte: byte as u16,
                bit: Some(bit as u8),
            };
            assert_eq!(
                (found.code, found.place),
                (0x2400, Some(place)),
                "{}: {cdb:x?}",
                row.name
            );
        }
    }
}

#[test]
fn asking_for_one_operation_code_the_wrong_way_is_refused() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    for (option, code) in [(1, 0x5e), (2, 0x28), (4, 0x28), (7, 0)] {
        let ask = [0xa3, 0x0c, option, code, 0, 0, 0, 0, 1, 0, 0, 0];
        let found = sense(&mut bench, &luns, &ask, &[], 256);
        assert_eq!((found.code, found.place.unwrap().byte), (0x2400, 2));
    }
    let ask = [0xa3, 0x0c, 0x83, 0x9e, 0, 0x10, 0, 0, 1, 0, 0, 0];
    let one = good(&mut bench, &luns, &ask, &[], 256);
    assert_eq!((one[1], one.len()), (0x83, 4 + 16 + 12));
    let functions = good(
        &mut bench,
        &luns,
        &[0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 16, 0, 0],
        &[],
        16,
    );
    assert_eq!((functions[0], functions[1], functions.len()), (0xdc, 3, 16));
}

#[test]
fn luns_are_listed_in_order_and_found() {
    let bench = Bench::new(64);
    let mut luns = Luns::default();
    for lun in [5, 0x3fff, 0, 0x100] {
        let other = bench.initiator(u64::from(lun));
        assert!(luns.set(lun, other.get(0).cloned()).is_none());
    }
    let mut bench = bench;
    let cdb = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let data = good(&mut bench, &luns, &cdb, &[], 256);
    let listed: Vec<_> = data[8..].chunks(8).map(|lun| be(&lun[..2])).collect();
    assert_eq!(be(&data[..4]), 32);
    assert_eq!(listed, [0, 5, 0x4100, 0x7fff]);
    assert_eq!(luns.get(0x100).unwrap().port(), 0x100);
    assert!(luns.get(0x101).is_none() && luns.get(u16::MAX).is_none());
    // One of them is well known; reports of other kinds there are none.
    for (which, units) in [(1, &[0xc101][..]), (2, &[0, 5, 0x4100, 0x7fff, 0xc101])] {
        let cdb = [0xa0, 0, which, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let data = good(&mut bench, &luns, &cdb, &[], 256);
        let listed: Vec<_> = data[8..].chunks(8).map(|lun| be(&lun[..2])).collect();
        assert_eq!(
            (be(&data[..4]) as usize, listed),
            (units.len() * 8, units.to_vec())
        );
    }
    assert_eq!(
        sense(
            &mut bench,
            &luns,
            &[0xa0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            &[],
            256
        )
        .code,
        0x2400
    );
    // Others hear when one comes or goes, until they ask.
    let gone = luns.set(5, None).unwrap();
    assert_eq!(gone.port(), 5);
    assert!(luns.get(5).is_none() && luns.get(0x3fff).is_some());
    let found = sense(&mut bench, &luns, &[0; 6], &[], 0);
    assert_eq!((found.key, found.code), (Key::UnitAttention, 0x3f0e));
    luns.set(5, Some(gone));
    let _ = good(&mut bench, &luns, &cdb, &[], 256);
    good(&mut bench, &luns, &[0; 6], &[], 0);
}

#[test]
fn nobody_answers_for_what_is_not_there_but_says_so() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    let ended = bench.run(&luns, 1, &inquiry(None, 96), &[], 96);
    assert_eq!(ended.data[0], 0x7f);
    let ended = bench.run(&luns, 1, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16);
    assert_eq!(be(&ended.data[..4]), 8);
    let ended = bench.run(&luns, 1, &[3, 0, 0, 0, 18, 0], &[], 18);
    assert_eq!((ended.data[2], ended.data[12]), (5, 0x25));
    for cdb in [
        &[0; 6][..],
        &cdb10(0x28, 0, 0, 1),
        &[0xff; 16],
        &inquiry(Some(0), 96),
    ] {
        let sense = bench.run(&luns, 1, cdb, &[], 512).answer.unwrap().sense;
        let code = if cdb[0] == 0x12 { 0x2400 } else { 0x2500 };
        assert_eq!(sense.unwrap().code, code);
    }
}

#[test]
fn the_well_known_unit_lists_the_others() {
    let bench = Bench::new(64);
    let mut luns = bench.initiator(1);
    luns.set(0x1234, bench.initiator(2).get(0).cloned());
    let run = |unit: &WellKnown, cdb: &[u8], data_in| {
        let call = Call {
            cdb,
            data_in,
            data_out: 0,
            out: &&[][..],
            luns: &Luns::default(),
        };
        match unit.execute(&call) {
            Step::Done(answer) => Some(answer),
            _ => None,
        }
    };
    let two_levels = [[1, 3, 0x40, 7, 0, 0, 0, 0], [1, 9, 0x40, 0, 0, 0, 0, 0]];
    let empty = WellKnown::of_target(&Luns::default(), 1);
    for (unit, units) in [
        (
            &WellKnown::of_target(&luns, 4),
            &[[0; 8], [0x52, 0x34, 0, 0, 0, 0, 0, 0]][..],
        ),
        (&WellKnown::of_all(two_levels.into_iter()), &two_levels),
        (&empty, &[]),
    ] {
        for which in 0..=2 {
            let cdb = [0xa0, 0, which, 0, 0, 0, 0, 0, 1, 0, 0, 0];
            let data = run(unit, &cdb, 256).unwrap().data;
            let mut wanted = if which == 1 {
                Vec::new()
            } else {
                units.to_vec()
            };
            wanted.extend((which > 0).then_some([0xc1, 1, 0, 0, 0, 0, 0, 0]));
            assert_eq!(be(&data[..8]) >> 32, wanted.len() as u64 * 8);
            assert_eq!(data[8..], *wanted.as_flattened());
        }
    }
    // No more than is asked for, or than there is room for.
    let cdb = [0xa0, 0, 2, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    let unit = WellKnown::of_target(&luns, 4);
    assert_eq!(run(&unit, &cdb, 256).unwrap().data.len(), 12);
    assert_eq!(run(&unit, &cdb, 11), None);

    // A unit of its own kind, always ready.
    let standard = run(&unit, &inquiry(None, 96), 96).unwrap().data;
    assert_eq!((standard[0], standard[2], standard[5]), (0x1e, 6, 0));
    assert_eq!(
        run(&unit, &inquiry(Some(0), 96), 96).unwrap().data,
        [0x1e, 0, 0, 2, 0, 0x83]
    );
    let page = run(&unit, &inquiry(Some(0x83), 96), 96).unwrap().data;
    assert_eq!(page, [0x1e, 0x83, 0, 8, 1, 0x14, 0, 4, 0, 0, 0, 4]);
    assert_eq!(run(&unit, &[0; 6], 0), Some(Answer::GOOD));
    let nothing = run(&unit, &[3, 0, 0, 0, 18, 0], 18).unwrap().data;
    assert_eq!((nothing[2], nothing[12]), (0, 0));
    for (cdb, code) in [
        (&cdb10(0x28, 0, 0, 1)[..], 0x2000),
        (&[0xff; 16], 0x2000),
        (&[0xa0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0], 0x2400),
        (&[0xa0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 0x2400),
        (&[0xa0, 0], 0x2400),
        (&inquiry(Some(0x80), 96), 0x2400),
        (&[0x12, 0, 0x80, 0, 96, 0], 0x2400),
        (&[0, 0, 0, 0, 1, 0], 0x2400),
    ] {
        let answer = run(&unit, cdb, 512).unwrap();
        assert_eq!(answer.sense.unwrap().code, code, "{cdb:x?}");
    }
}

#[test]
fn ports_of_all_who_reach_the_unit_are_one_group() {
    let mut bench = Bench::new(64);
    let (luns, other) = (bench.initiator(3), bench.initiator(9));
    let data = good(
        &mut bench,
        &luns,
        &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        &[],
        256,
    );
    assert_eq!(be(&data[..4]), 16);
    assert_eq!(data[4..12], [0, 1, 0, 1, 0, 0, 0, 2]);
    assert_eq!(data[12..20], [0, 0, 0, 3, 0, 0, 0, 9]);
    drop(other);
    let data = good(
        &mut bench,
        &luns,
        &[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        &[],
        256,
    );
    assert_eq!((data[4], data.len()), (0x10, 4 + 4 + 8 + 4));
}
