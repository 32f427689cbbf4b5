//! Whatever comes, an answer follows, and the disk is changed only by what may.

use super::super::bench::{Bench, first};
use super::super::opcodes::TABLE;
use super::super::reserve::Kind;
use super::*;

/// A small random number generator (xorshift), the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A CDB: anything; a known one with anything in it; or one that is nearly right.
fn cdb(random: &mut Random) -> Vec<u8> {
    let len = if random.below(8) == 0 {
        random.below(40)
    } else {
        32
    } as usize;
    let mut cdb: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    let row = &TABLE[random.below(TABLE.len() as u64) as usize];
    let (kind, usage) = (random.below(8), row.usage_bytes(true));
    if kind == 0 {
        return cdb;
    }
    for (at, byte) in cdb.iter_mut().enumerate() {
        let allowed = usage.get(at).copied().unwrap_or(0);
        *byte = match (at, kind) {
            (0, _) => row.code,
            (1, _) if row.action.is_some() => row.action.unwrap(),
            (_, 1) => *byte,
            // Mostly small numbers.
            (_, 2 | 3) => *byte & allowed,
            (_, 4 | 5) if random.below(3) == 0 => *byte & allowed & 0x3f,
            (1 | 7.., _) if random.below(2) == 0 => *byte & allowed & 3,
            _ => 0,
        };
    }
    cdb
}

/// The unit is held by an initiator, or by nobody.
fn reserve(bench: &Bench, by: NexusId, held: bool) {
    let mut state = bench.unit.state();
    let mut all = Reservations::default();
    if held {
        all.register(by, None, 1, false).unwrap();
        all.reserve(by, 1, Kind::WriteExclusive).unwrap();
    }
    state.reservations = all;
    bench.unit.refresh(&state);
}

#[test]
fn random_commands_are_answered_by_the_book() {
    let mut bench = Bench::new(128);
    let luns = [bench.newcomer(1), bench.newcomer(2)];
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..60_000 {
        let cdb = cdb(&mut random);
        let mut out = vec![0; [0, 8, 24, 64, 512, 1024, 5000][random.below(7) as usize]];
        if random.below(2) == 0 {
            out.iter_mut()
                .for_each(|byte| *byte = random.next() as u8 & 0x83);
        }
        let data_in = [0, 4, 36, 255, 512, 65536][random.below(6) as usize];
        let who = random.below(2) as usize;
        if random.below(64) == 0 {
            bench.unit.resize((64 + random.below(2) * 64) << 9);
        }
        // Somebody starts it again, and reserves it for a while.
        match random.below(512) {
            0..64 => bench.unit.set_stopped(false),
            64 => reserve(&bench, first(&luns[0]).id(), true),
            65..72 => reserve(&bench, first(&luns[0]).id(), false),
            _ => {}
        }
        bench.steps.clear();
        let before = (round % 16 == 0).then(|| bench.disk.clone());
        let lun = u16::from(random.below(16) == 0);
        let ended = bench.run(&luns[who], lun, &cdb, &out, data_in);
        let Some(answer) = ended.answer else {
            assert!(
                bench.steps.is_empty(),
                "nothing is done of what is overrun: {cdb:x?}"
            );
            continue;
        };
        let sense = answer.sense;
        assert_eq!(sense.is_some(), answer.status == Status::CheckCondition);
        seen.insert((answer.status as u8, sense.map_or(0, |sense| sense.code)));
        assert!(ended.data.len() as u64 <= data_in, "{cdb:x?}");
        for bytes in [true, false].map(|format| sense.map(|sense| sense.bytes(format))) {
            assert!(bytes.is_none_or(|bytes| bytes.len() <= MAX_SENSE));
        }
        if let (Some(before), true) = (before, sense.is_some_and(|s| s.key == Key::IllegalRequest))
        {
            assert!(
                before == bench.disk,
                "a command that was refused wrote: {cdb:x?}"
            );
        }
    }
    // The dice reach every corner.
    for code in [
        0x2000, 0x2400, 0x2100, 0x2500, 0x1a00, 0x2600, 0x1d00, 0x2900, 0x2a09, 0x0402,
    ] {
        assert!(seen.contains(&(2, code)), "{code:x} never came: {seen:x?}");
    }
    assert!(seen.contains(&(0, 0)) && seen.contains(&(0x18, 0)));
}

#[test]
fn commands_that_were_cut_short_are_refused() {
    let mut bench = Bench::new(64);
    let luns = bench.initiator(1);
    for row in TABLE {
        for len in 0..usize::from(row.len) {
            let mut cdb = vec![0; len];
            if let Some(code) = cdb.get_mut(0) {
                *code = row.code;
            }
            if let (Some(byte), Some(action)) = (cdb.get_mut(1), row.action) {
                *byte = action;
            }
            let found = sense(&mut bench, &luns, &cdb, &[], 1 << 20);
            assert_eq!(found.key, Key::IllegalRequest, "{} {len}", row.name);
        }
    }
    assert!(bench.steps.is_empty());
}
