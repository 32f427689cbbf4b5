//! MODE SELECT (SPC-5, 6.12): pages are judged first; then all of them are in force, or none.

use std::sync::Arc;

use super::answer::Answer;
use super::cdb::Cdb;
use super::jobs::{AfterFlush, Flush, Job};
use super::mode::{Form, Values, block_descriptor, page_of};
use super::nexus::Nexus;
use super::sense::Sense;
use super::unit::{Unit, mode};
use super::{DataOut, Step};

/// Longest parameter list that can make sense, in bytes.
const MAX_LIST: u64 = 4096;

/// Obeys MODE SELECT(6) and (10) with a list of `len` bytes.
pub(super) fn select(
    nexus: &Arc<Nexus>,
    cdb: Cdb,
    len: u64,
    out: &dyn DataOut,
) -> Result<Step, Answer> {
    if len == 0 {
        return Ok(Step::Done(Answer::GOOD));
    }
    // Pages of a format that is nobody's any more (PF).
    if !cdb.bit(1, 4) {
        return Err(Sense::cdb_bit(1, 4).into());
    }
    let len = usize::try_from(len.min(MAX_LIST)).unwrap_or(0);
    let mut list = vec![0; len];
    if !out.read_at(0, &mut list) {
        return Err(Sense::LIST_LENGTH.into());
    }
    let modes = judge(nexus.unit(), Form::of(cdb), &list)?;
    let was = nexus.unit().modes();
    if was & !modes & mode::WRITE_CACHE != 0 {
        // What is in the cache was promised to stay.
        let flush = Flush::new(nexus, AfterFlush::Modes(modes));
        return Ok(Step::Job(Job::new(flush)));
    }
    nexus.unit().set_modes(modes, nexus.id());
    Ok(Step::Done(Answer::GOOD))
}

/// The modes that a list asks for.
fn judge(unit: &Unit, form: Form, list: &[u8]) -> Result<u8, Sense> {
    let (header, rest) = list
        .split_at_checked(form.header())
        .ok_or(Sense::LIST_LENGTH)?;
    let (long, described) = match *header {
        [_, _, _, described] => (false, described.into()),
        [_, _, _, _, flag, _, high, low] => (flag & 1 != 0, u16::from_be_bytes([high, low])),
        _ => return Err(Sense::LIST_LENGTH),
    };
    let (descriptor, mut pages) = rest
        .split_at_checked(described.into())
        .ok_or(Sense::LIST_LENGTH)?;
    let place = |rest: &[u8]| (list.len() - rest.len()) as u16;
    if !descriptor.is_empty() && !same_blocks(unit, long, descriptor) {
        return Err(Sense::list(form.header() as u16));
    }
    let mut modes = unit.modes();
    while let [number, len, ..] = *pages {
        let at = place(pages);
        let whole = usize::from(len) + 2;
        let (page, behind) = pages.split_at_checked(whole).ok_or(Sense::LIST_LENGTH)?;
        // PS is reserved here, and SPF would be another format.
        let known = page_of(unit, number, Values::Current);
        let can = page_of(unit, number, Values::Changeable);
        let (Some(known), Some(can)) = (known, can) else {
            return Err(Sense::list(at));
        };
        if known.len() != page.len() {
            return Err(Sense::list(at + 1));
        }
        // The first two bytes are what the page was found by.
        let all = page.iter().zip(known.iter().zip(&can)).enumerate().skip(2);
        for (offset, (new, (old, can))) in all {
            if (new ^ old) & !can != 0 {
                return Err(Sense::list(at + offset as u16));
            }
        }
        modes = with_page(modes, page);
        pages = behind;
    }
    if !pages.is_empty() {
        return Err(Sense::LIST_LENGTH);
    }
    Ok(modes)
}

/// Whether a block descriptor asks for the blocks that there are. A number of zero, or of all
/// ones, means that it shall not change.
fn same_blocks(unit: &Unit, long: bool, descriptor: &[u8]) -> bool {
    let own = block_descriptor(unit, long);
    if own.len() != descriptor.len() {
        return false;
    }
    let number = if long { 8 } else { 4 };
    let (count, rest) = descriptor.split_at(number);
    let (own_count, own_rest) = own.split_at(number);
    let unchanged = |count: &[u8]| {
        count.iter().all(|&byte| byte == 0) || count.iter().all(|&byte| byte == 0xff)
    };
    rest == own_rest && (count == own_count || unchanged(count))
}

/// The modes with those that a good page has.
fn with_page(modes: u8, page: &[u8]) -> u8 {
    let set = |modes: u8, mode: u8, on: bool| if on { modes | mode } else { modes & !mode };
    match *page {
        [0x08, _, caching, ..] => set(modes, mode::WRITE_CACHE, caching & 4 != 0),
        [0x0a, _, control, _, protect, ..] => {
            let modes = set(modes, mode::DESCRIPTORS, control & 4 != 0);
            set(modes, mode::PROTECT, protect & 8 != 0)
        }
        _ => modes,
    }
}
