//! UNMAP (SBC-4, 5.35): ranges that are not needed any more.

use crate::bdev::IoError;

use super::super::DataOut;
use super::super::answer::Answer;
use super::super::sense::Sense;
use super::super::unit::Unit;
use super::{Action, Desk, Next, Work};

/// Most ranges of one command.
pub(in super::super) const MAX_DESCRIPTORS: usize = 256;

/// Length of the header and of each descriptor behind it, in bytes.
const HEADER: u64 = 8;
const DESCRIPTOR: usize = 16;

#[derive(Debug)]
pub(in super::super) struct Unmap {
    /// Offsets and lengths in bytes, the first to be done at the end.
    ranges: Vec<(u64, u64)>,
    most: u64,
}

impl Unmap {
    /// Judges a parameter list of `len` bytes: all of it is good, or nothing is unmapped.
    pub(in super::super) fn new(unit: &Unit, len: u64, out: &dyn DataOut) -> Result<Self, Sense> {
        let mut most = unit.thin().map_or(0, |limits| limits.max_bytes);
        most = (most >> unit.shift() << unit.shift()).max(unit.block().into());
        let mut ranges = Vec::new();
        if len == 0 {
            return Ok(Self { ranges, most });
        }
        let mut header = [0; HEADER as usize];
        if len < HEADER || !out.read_at(0, &mut header) {
            return Err(Sense::LIST_LENGTH);
        }
        let [_, _, a, b, ..] = header;
        // What is less than a descriptor at the end is not looked at.
        let count = usize::from(u16::from_be_bytes([a, b])) / DESCRIPTOR;
        if HEADER + (count * DESCRIPTOR) as u64 > len {
            return Err(Sense::LIST_LENGTH);
        }
        if count > MAX_DESCRIPTORS {
            return Err(Sense::list(2));
        }
        for number in 0..count {
            let mut bytes = [0; DESCRIPTOR];
            let at = HEADER + (number * DESCRIPTOR) as u64;
            if !out.read_at(at, &mut bytes) {
                return Err(Sense::LIST_LENGTH);
            }
            let all = u128::from_be_bytes(bytes);
            let (lba, blocks) = ((all >> 64) as u64, (all >> 32) as u64 & 0xffff_ffff);
            let inside = lba
                .checked_add(blocks)
                .is_some_and(|end| end <= unit.blocks());
            if !inside {
                return Err(Sense::RANGE.with_info(lba));
            }
            if blocks > 0 {
                ranges.push((lba << unit.shift(), blocks << unit.shift()));
            }
        }
        ranges.reverse();
        Ok(Self { ranges, most })
    }
}

impl Work for Unmap {
    fn next(&mut self, last: Result<(), IoError>, _: &mut Desk<'_>) -> Next {
        if last.is_err() {
            return Next::Done(Answer::of(last, true));
        }
        let Some((offset, left)) = self.ranges.pop() else {
            return Next::Done(Answer::GOOD);
        };
        let len = left.min(self.most);
        if left > len {
            self.ranges.push((offset.saturating_add(len), left - len));
        }
        Next::Do(Action::Discard { offset, len })
    }
}
