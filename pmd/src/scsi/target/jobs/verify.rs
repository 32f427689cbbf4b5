//! VERIFY and WRITE AND VERIFY (SBC-4, 5.36 and 5.46): blocks are read back, and compared.

use crate::bdev::IoError;

use super::super::Transfer;
use super::super::answer::Answer;
use super::super::sense::Sense;
use super::{Action, CHUNK, Desk, Next, Work};

/// What blocks are compared with (BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Against {
    /// Nothing: it is enough that they can be read.
    Nothing,
    /// The initiator's data, block by block.
    Data,
    /// One block of the initiator's, of so many bytes.
    Block(u64),
}

#[derive(Debug)]
pub(in super::super) struct Verify {
    /// First byte on the disk.
    start: u64,
    len: u64,
    against: Against,
    /// Written first.
    write: Option<Transfer>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Begin,
    Writing,
    /// So many bytes are verified, and the next so many are being read.
    Reading(u64, u64),
}

impl Verify {
    pub(in super::super) fn new(start: u64, len: u64, against: Against) -> Self {
        Self {
            start,
            len,
            against,
            write: None,
            stage: Stage::Begin,
        }
    }

    /// The same, after this write.
    pub(in super::super) fn after(transfer: Transfer, against: Against) -> Self {
        Self {
            write: Some(transfer),
            ..Self::new(transfer.offset, transfer.len, against)
        }
    }

    /// Reads on behind the first `done` bytes.
    fn read(&mut self, done: u64) -> Next {
        let len = CHUNK.min(self.len.saturating_sub(done));
        if len == 0 {
            return Next::Done(Answer::GOOD);
        }
        self.stage = Stage::Reading(done, len);
        let offset = self.start.saturating_add(done);
        Next::Do(Action::Read { offset, len })
    }

    /// Offset of the first byte that differs, of those read behind the first `done`.
    fn difference(&self, done: u64, desk: &Desk<'_>) -> Option<u64> {
        let period = match self.against {
            Against::Nothing => return None,
            Against::Data => u64::MAX,
            Against::Block(len) => len.max(1),
        };
        let mut at = done;
        let mut expected = [0; 512];
        // Chunks begin at multiples of a block, and blocks are multiples of 512.
        for found in desk.buffer.chunks(512) {
            let Some(expected) = expected.get_mut(..found.len()) else {
                return Some(at);
            };
            let there = desk.out.read_at(at % period, expected);
            if !there {
                return Some(at);
            }
            let differs = found.iter().zip(&*expected).position(|(a, b)| a != b);
            if let Some(place) = differs {
                return Some(at + place as u64);
            }
            at += found.len() as u64;
        }
        None
    }
}

impl Work for Verify {
    fn transfer(&self) -> Option<Transfer> {
        self.write
    }

    fn next(&mut self, last: Result<(), IoError>, desk: &mut Desk<'_>) -> Next {
        match (self.stage, last) {
            (Stage::Begin, _) => match self.write {
                Some(transfer) => {
                    self.stage = Stage::Writing;
                    Next::Do(Action::Move(transfer))
                }
                None => self.read(0),
            },
            (Stage::Writing, Err(_)) => Next::Done(Answer::of(last, true)),
            (Stage::Writing, Ok(())) => self.read(0),
            (Stage::Reading(..), Err(_)) => Next::Done(Answer::of(last, false)),
            (Stage::Reading(done, len), Ok(())) => match self.difference(done, desk) {
                Some(at) => Next::Done(Sense::MISCOMPARE.with_info(at).into()),
                None => self.read(done.saturating_add(len)),
            },
        }
    }
}
