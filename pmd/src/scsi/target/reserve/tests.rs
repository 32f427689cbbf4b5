//! Persistent reservations.
#![allow(clippy::unwrap_used)]

use super::super::bench::Bench;
use super::super::{Answer, Key, Luns, Status};
use super::*;
use crate::bdev::{Abilities, Geometry, IoError};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const IGNORE: u8 = 6;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn kept() -> Bench {
    let abilities = Abilities {
        read_only: false,
        write_back: true,
        discard: None,
        write_zeroes: None,
        needs_pinnable: false,
    };
    let kept = Some(Reservations::default());
    Bench::with(64 << 9, Geometry::default(), abilities, kept)
}

/// PERSISTENT RESERVE OUT, with a byte of flags.
fn out_with(
    bench: &mut Bench,
    luns: &Luns,
    action: u8,
    kind: u8,
    keys: (u64, u64),
    flags: u8,
) -> Answer {
    let mut list = [keys.0.to_be_bytes(), keys.1.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    bench.run(luns, 0, &cdb, &list, 0).answer.unwrap()
}

fn out(bench: &mut Bench, luns: &Luns, action: u8, kind: u8, keys: (u64, u64)) -> Answer {
    out_with(bench, luns, action, kind, keys, 0)
}

fn read_in(bench: &mut Bench, luns: &Luns, action: u8) -> Vec<u8> {
    let cdb = [0x5e, action, 0, 0, 0, 0, 0, 2, 0, 0];
    let ended = bench.run(luns, 0, &cdb, &[], 512);
    assert_eq!(ended.answer.unwrap().status, Status::Good);
    ended.data
}

/// Registers three initiators with keys 1, 2 and 3.
fn three(bench: &mut Bench) -> [Luns; 3] {
    let all = [1, 2, 3].map(|number| bench.initiator(number));
    for (luns, key) in all.iter().zip(1..) {
        assert_eq!(out(bench, luns, REGISTER, 0, (0, key)), Answer::GOOD);
    }
    all
}

fn status(bench: &mut Bench, luns: &Luns, cdb: &[u8]) -> Status {
    let answer = bench.run(luns, 0, cdb, &[0; 512], 512).answer.unwrap();
    answer.status
}

/// The code of what an initiator must hear first.
fn told(bench: &mut Bench, luns: &Luns) -> Option<u16> {
    let answer = bench.run(luns, 0, &[0; 6], &[], 0).answer.unwrap();
    answer.sense.map(|sense| {
        assert_eq!(sense.key, Key::UnitAttention);
        sense.code
    })
}

#[test]
fn each_type_leaves_to_others_what_it_says() {
    use Status::{Good, ReservationConflict as Conflict};
    // Type; what a registered one may read and write; what a stranger may.
    for (kind, registered, stranger) in [
        (1, (Good, Conflict), (Good, Conflict)),
        (3, (Conflict, Conflict), (Conflict, Conflict)),
        (5, (Good, Good), (Good, Conflict)),
        (6, (Good, Good), (Conflict, Conflict)),
        (7, (Good, Good), (Good, Conflict)),
        (8, (Good, Good), (Conflict, Conflict)),
    ] {
        let mut bench = Bench::new(64);
        let [one, two, _three] = three(&mut bench);
        let other = bench.initiator(9);
        assert_eq!(out(&mut bench, &one, RESERVE, kind, (1, 0)), Answer::GOOD);
        for (luns, may) in [(&one, (Good, Good)), (&two, registered), (&other, stranger)] {
            let found = (
                status(&mut bench, luns, &READ),
                status(&mut bench, luns, &WRITE),
            );
            assert_eq!(found, may, "type {kind}");
        }
        // Who comes later is no better off.
        let late = bench.initiator(10);
        assert_eq!(status(&mut bench, &late, &WRITE), Conflict);
        // Some commands are free for everybody, some are not.
        for free in [
            &[0u8; 6][..],
            &[0x12, 0, 0, 0, 36, 0],
            &[0x1a, 0, 8, 0, 255, 0],
            &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x1b, 0, 0, 0, 1, 0],
            &[0x1e, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(status(&mut bench, &other, free), Good, "{free:x?}");
        }
        for held in [
            &[0x35u8, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0x15, 0x10, 0, 0, 0, 0],
            &[0x1b, 0, 0, 0, 0, 0],
            &[0x1e, 0, 0, 0, 1, 0],
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(status(&mut bench, &other, held), Conflict, "{held:x?}");
        }
    }
}

#[test]
fn keys_must_be_right() {
    let mut bench = Bench::new(64);
    let one = bench.initiator(1);
    assert_eq!(out(&mut bench, &one, REGISTER, 0, (5, 1)), Answer::CONFLICT);
    assert_eq!(out(&mut bench, &one, RESERVE, 1, (0, 0)), Answer::CONFLICT);
    assert_eq!(out(&mut bench, &one, REGISTER, 0, (0, 0)), Answer::GOOD);
    assert_eq!(read_in(&mut bench, &one, 0), [0; 8]);
    assert_eq!(out(&mut bench, &one, IGNORE, 0, (77, 1)), Answer::GOOD);
    assert_eq!(out(&mut bench, &one, REGISTER, 0, (0, 2)), Answer::CONFLICT);
    assert_eq!(out(&mut bench, &one, REGISTER, 0, (1, 2)), Answer::GOOD);
    assert_eq!(
        read_in(&mut bench, &one, 0),
        [0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2]
    );
    for action in [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT] {
        assert_eq!(out(&mut bench, &one, action, 1, (1, 2)), Answer::CONFLICT);
    }
    // Types and scopes that there are not.
    for kind in [0, 2, 4, 9, 15, 0x11, 0xf1] {
        let answer = out(&mut bench, &one, RESERVE, kind, (2, 0));
        let sense = answer.sense.unwrap();
        assert_eq!((sense.code, sense.place.unwrap().byte), (0x2400, 2));
    }
    // Lists of other lengths, and with what is not offered.
    let cdb = [0x5f, RESERVE, 1, 0, 0, 0, 0, 0, 23, 0];
    let answer = bench.run(&one, 0, &cdb, &[0; 24], 0).answer.unwrap();
    assert_eq!(answer.sense.unwrap().code, 0x1a00);
    for flags in [1, 4, 8] {
        let answer = out_with(&mut bench, &one, REGISTER, 0, (2, 3), flags);
        assert_eq!(answer.sense.unwrap().code, 0x2600);
    }
}

#[test]
fn a_release_is_told_to_registrants() {
    for (kind, hear) in [
        (1, false),
        (3, false),
        (5, true),
        (6, true),
        (7, true),
        (8, true),
    ] {
        let mut bench = Bench::new(64);
        let [one, two, three] = three(&mut bench);
        out(&mut bench, &one, RESERVE, kind, (1, 0));
        assert_eq!(
            out(&mut bench, &one, RESERVE, kind, (1, 0)),
            Answer::GOOD,
            "again"
        );
        let another = if kind == 1 { 3 } else { 1 };
        assert_eq!(
            out(&mut bench, &one, RESERVE, another, (1, 0)),
            Answer::CONFLICT
        );
        let wrong = out(&mut bench, &one, RELEASE, another, (1, 0))
            .sense
            .unwrap();
        assert_eq!(wrong.code, 0x2604);
        if kind < 7 {
            // Who does not hold it releases nothing.
            assert_eq!(out(&mut bench, &two, RELEASE, kind, (2, 0)), Answer::GOOD);
            assert_eq!(read_in(&mut bench, &two, 1).len(), 24);
        }
        assert_eq!(out(&mut bench, &one, RELEASE, kind, (1, 0)), Answer::GOOD);
        assert_eq!(read_in(&mut bench, &one, 1).len(), 8);
        assert_eq!(told(&mut bench, &one), None);
        for other in [&two, &three] {
            assert_eq!(told(&mut bench, other), hear.then_some(0x2a04));
            assert_eq!(status(&mut bench, other, &WRITE), Status::Good);
        }
    }
}

#[test]
fn who_leaves_takes_the_reservation_along_unless_all_hold_it() {
    for (kind, left) in [(1, false), (5, false), (7, true)] {
        let mut bench = Bench::new(64);
        let [one, two, three] = three(&mut bench);
        out(&mut bench, &one, RESERVE, kind, (1, 0));
        assert_eq!(out(&mut bench, &one, REGISTER, 0, (1, 0)), Answer::GOOD);
        assert_eq!(
            read_in(&mut bench, &one, 1).len() == 24,
            left,
            "type {kind}"
        );
        assert_eq!(told(&mut bench, &two), (kind == 5).then_some(0x2a04));
        if left {
            out(&mut bench, &two, IGNORE, 0, (0, 0));
            out(&mut bench, &three, IGNORE, 0, (0, 0));
            assert_eq!(read_in(&mut bench, &one, 1).len(), 8);
        }
    }
}

#[test]
fn preempting_takes_over_and_is_told() {
    let mut bench = Bench::new(64);
    let [one, two, three] = three(&mut bench);
    out(&mut bench, &one, RESERVE, 5, (1, 0));
    // Of somebody who does not hold it: only the registration.
    assert_eq!(out(&mut bench, &two, PREEMPT, 6, (2, 3)), Answer::GOOD);
    assert_eq!(told(&mut bench, &three), Some(0x2a05));
    assert_eq!(read_in(&mut bench, &two, 1)[21], 5);
    // Of the holder.
    assert_eq!(out(&mut bench, &two, PREEMPT, 1, (2, 1)), Answer::GOOD);
    assert_eq!(told(&mut bench, &one), Some(0x2a05));
    let found = read_in(&mut bench, &two, 1);
    assert_eq!((found[15], found[21]), (2, 1));
    assert_eq!(
        status(&mut bench, &one, &WRITE),
        Status::ReservationConflict
    );
    // Nobody has this key; no key is no key.
    assert_eq!(out(&mut bench, &two, PREEMPT, 1, (2, 99)), Answer::CONFLICT);
    assert_eq!(
        out(&mut bench, &two, PREEMPT, 1, (2, 0))
            .sense
            .unwrap()
            .code,
        0x2600
    );
    // Its own, for another type.
    assert_eq!(out(&mut bench, &two, PREEMPT, 3, (2, 2)), Answer::GOOD);
    assert_eq!(read_in(&mut bench, &two, 1)[21], 3);
    assert_eq!(told(&mut bench, &two), None);
}

#[test]
fn what_all_hold_is_preempted_without_a_key() {
    let mut bench = Bench::new(64);
    let [one, two, three] = three(&mut bench);
    out(&mut bench, &one, RESERVE, 8, (1, 0));
    assert_eq!(out(&mut bench, &two, PREEMPT, 3, (2, 0)), Answer::GOOD);
    for other in [&one, &three] {
        assert_eq!(told(&mut bench, other), Some(0x2a05));
        assert_eq!(
            status(&mut bench, other, &READ),
            Status::ReservationConflict
        );
    }
    assert_eq!(read_in(&mut bench, &two, 0).len(), 16);
    assert_eq!(status(&mut bench, &two, &WRITE), Status::Good);
}

#[test]
fn preempt_and_abort_orders_tasks_to_end() {
    let mut bench = Bench::new(64);
    let [one, two, three] = three(&mut bench);
    let cdb = [0x5f, PREEMPT_AND_ABORT, 1, 0, 0, 0, 0, 0, 24, 0];
    let list = [2u64.to_be_bytes(), 1u64.to_be_bytes(), [0; 8]].concat();
    assert_eq!(
        bench.run(&two, 0, &cdb, &list, 0).answer.unwrap(),
        Answer::GOOD
    );
    assert_eq!(bench.steps.len(), 1, "it waits: {:?}", bench.steps);
    assert_eq!(bench.aborted, 1, "only of who was preempted");
    let _ = (one, three);
}

#[test]
fn clear_clears_all() {
    let mut bench = Bench::new(64);
    let [one, two, three] = three(&mut bench);
    out(&mut bench, &one, RESERVE, 3, (1, 0));
    assert_eq!(out(&mut bench, &two, CLEAR, 0, (2, 0)), Answer::GOOD);
    assert_eq!(
        (told(&mut bench, &one), told(&mut bench, &three)),
        (Some(0x2a03), Some(0x2a03))
    );
    assert_eq!(told(&mut bench, &two), None);
    assert_eq!(read_in(&mut bench, &two, 0), [0, 0, 0, 4, 0, 0, 0, 0]);
}

#[test]
fn full_status_names_everybody() {
    let mut bench = kept();
    let [one, two, three] = three(&mut bench);
    out(&mut bench, &two, RESERVE, 1, (2, 0));
    drop(three);
    let data = read_in(&mut bench, &one, 3);
    assert_eq!(data.len(), 8 + 3 * 48);
    let rows: Vec<_> = data[8..].chunks(48).collect();
    for (row, number) in rows.iter().zip(1..) {
        assert_eq!(row[7], number);
        assert_eq!(
            (row[12], row[13]),
            if number == 2 { (1, 1) } else { (0, 0) }
        );
        // Who is not there has no port.
        assert_eq!(row[19], if number == 3 { 0 } else { number });
        assert_eq!((row[23], row[24], row[28], row[35]), (24, 6, 0x30, number));
    }
    let can = read_in(&mut bench, &one, 2);
    assert_eq!(can, [0, 8, 1, 0x80, 0xea, 1, 0, 0]);
}

#[test]
fn changes_are_saved_before_they_are_in_force() {
    let mut bench = kept();
    let one = bench.initiator(1);
    assert_eq!(
        out_with(&mut bench, &one, REGISTER, 0, (0, 1), 1),
        Answer::GOOD
    );
    assert_eq!(out(&mut bench, &one, RESERVE, 6, (1, 0)), Answer::GOOD);
    assert_eq!(
        bench.saved.as_ref().unwrap(),
        &bench.unit.state().reservations
    );
    assert_eq!(read_in(&mut bench, &one, 2)[3], 0x81);
    // The file cannot be written: nothing has changed.
    let before = bench.unit.state().reservations.clone();
    bench.fails = Some((0, IoError::NoSpace));
    let answer = out(&mut bench, &one, RELEASE, 6, (1, 0));
    assert_eq!(answer.sense.unwrap().code, 0x4400);
    assert_eq!(bench.unit.state().reservations, before);
    bench.fails = None;
    assert_eq!(out(&mut bench, &one, RELEASE, 6, (1, 0)), Answer::GOOD);
}

#[test]
fn text_says_everything_and_survives_what_it_shall() {
    let mut bench = kept();
    let [one, _two, _three] = three(&mut bench);
    for kind in [3, 8] {
        out(&mut bench, &one, RESERVE, kind, (1, 0));
        let all = bench.unit.state().reservations.clone();
        let text = all.to_text("monday");
        assert_eq!(Reservations::from_text(&text, "monday").unwrap(), all);
        // A loss of power since: nothing is left, because nobody asked for that.
        let left = Reservations::from_text(&text, "tuesday").unwrap();
        assert_eq!(left, Reservations::default());
        out(&mut bench, &one, RELEASE, kind, (1, 0));
    }
    out_with(&mut bench, &one, REGISTER, 0, (1, 1), 1);
    let all = bench.unit.state().reservations.clone();
    assert_eq!(
        Reservations::from_text(&all.to_text("a"), "b").unwrap(),
        all
    );
}

#[test]
fn text_that_is_something_else_is_refused_wherever_it_is_wrong() {
    let mut bench = kept();
    let [one, ..] = three(&mut bench);
    out(&mut bench, &one, RESERVE, 1, (1, 0));
    let text = bench.unit.state().reservations.to_text("b");
    let lines: Vec<_> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        for bad in [
            "nonsense",
            "held 9",
            "registered 1 1 0",
            "registered x",
            "generation -1",
        ] {
            let mut changed = lines.clone();
            changed[number] = bad;
            let error = Reservations::from_text(&changed.join("\n"), "b").unwrap_err();
            assert_eq!(
                matches!(error, TextError::Title { .. }),
                number == 0,
                "{line} {error}"
            );
        }
        // A line twice.
        let mut twice = lines.clone();
        twice.insert(number, line);
        let found = Reservations::from_text(&twice.join("\n"), "b");
        let harmless = ["boot", "generation", "power-loss", "end"];
        let word = line.split(' ').next().unwrap();
        assert_eq!(found.is_ok(), harmless.contains(&word), "{line}");
    }
    for cut in 0..text.len() - 4 {
        assert!(Reservations::from_text(&text[..cut], "b").is_err());
    }
}

#[test]
fn there_are_only_so_many_registrations() {
    let mut all = Reservations::default();
    let nexus = |initiator| NexusId {
        initiator,
        target: 0,
    };
    for number in 0..MAX_REGISTRATIONS as u64 {
        all.register(nexus(number), None, 1, false).unwrap();
    }
    let one_more = all.register(nexus(u64::MAX), None, 1, false);
    assert_eq!(one_more.unwrap_err(), Refused::Full);
    let text = all.to_text("b");
    assert_eq!(Reservations::from_text(&text, "b").unwrap(), all);
}
