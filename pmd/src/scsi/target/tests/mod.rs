//! The target as initiators see it.
#![allow(clippy::unwrap_used)]

mod blocks;
mod hostile;
mod modes;
mod sharing;
mod told;

use super::bench::{Bench, Ended};
use super::*;

/// Length of a block.
const B: usize = 512;

fn be(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |all, &byte| all << 8 | u64::from(byte))
}

/// Runs a command at LUN 0 of an initiator.
fn run(bench: &mut Bench, luns: &Luns, cdb: &[u8], out: &[u8], data_in: u64) -> Ended {
    bench.run(luns, 0, cdb, out, data_in)
}

/// The data of a command that must succeed.
#[track_caller]
fn good(bench: &mut Bench, luns: &Luns, cdb: &[u8], out: &[u8], data_in: u64) -> Vec<u8> {
    let ended = run(bench, luns, cdb, out, data_in);
    assert_eq!(
        ended.answer.as_ref().unwrap().status,
        Status::Good,
        "{cdb:x?}: {ended:?}"
    );
    ended.data
}

/// The sense of a command that must fail: key, code, and offset of what is wrong.
#[track_caller]
fn sense(bench: &mut Bench, luns: &Luns, cdb: &[u8], out: &[u8], data_in: u64) -> Sense {
    let ended = run(bench, luns, cdb, out, data_in);
    let answer = ended.answer.unwrap();
    assert_eq!(
        answer.status,
        Status::CheckCondition,
        "{cdb:x?}: {answer:?}"
    );
    assert!(answer.data.is_empty());
    answer.sense.unwrap()
}

/// A block of this byte.
fn block(byte: u8) -> Vec<u8> {
    vec![byte; B]
}

fn cdb10(code: u8, one: u8, lba: u32, count: u16) -> Vec<u8> {
    let mut cdb = vec![code, one];
    cdb.extend(lba.to_be_bytes());
    cdb.push(0);
    cdb.extend(count.to_be_bytes());
    cdb.push(0);
    cdb
}

fn cdb16(code: u8, one: u8, lba: u64, count: u32) -> Vec<u8> {
    let mut cdb = vec![code, one];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(count.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}
