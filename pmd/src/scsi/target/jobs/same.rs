//! WRITE SAME (SBC-4, 5.50): one block again and again; zeroes as such, if the disk can do that.

use crate::bdev::{IoError, Limits};

use super::super::answer::Answer;
use super::super::sense::Sense;
use super::{Action, CHUNK, Desk, Next, Work};

#[derive(Debug)]
pub(in super::super) struct WriteSame {
    /// Next byte on the disk.
    pub(in super::super) at: u64,
    /// Bytes left.
    pub(in super::super) left: u64,
    /// Length of a block.
    pub(in super::super) block: u64,
    /// The initiator sends no block: it is zeroes (NDOB).
    pub(in super::super) no_data: bool,
    /// Blocks may be unmapped.
    pub(in super::super) unmap: bool,
    /// Through to the medium.
    pub(in super::super) fua: bool,
    /// How zeroes are written without data.
    pub(in super::super) zeroes: Option<Limits>,
    /// Bytes in flight.
    pub(in super::super) pending: Option<u64>,
}

impl WriteSame {
    /// Gets the block, as often as it fits the buffer.
    fn fill(&self, desk: &mut Desk<'_>) -> bool {
        desk.buffer.clear();
        let block = usize::try_from(self.block).unwrap_or(0);
        desk.buffer.resize(block, 0);
        if !self.no_data && !desk.out.read_at(0, desk.buffer) {
            return false;
        }
        if desk.buffer.iter().any(|&byte| byte != 0) || self.zeroes.is_none() {
            let times = CHUNK.min(self.left) / self.block.max(1);
            *desk.buffer = desk
                .buffer
                .repeat(usize::try_from(times).unwrap_or(1).max(1));
        }
        true
    }

    fn advance(&mut self, most: u64) -> u64 {
        let len = self.left.min(most);
        self.pending = Some(len);
        len
    }
}

impl Work for WriteSame {
    fn next(&mut self, last: Result<(), IoError>, desk: &mut Desk<'_>) -> Next {
        if last.is_err() {
            return Next::Done(Answer::of(last, true));
        }
        match self.pending {
            None if !self.fill(desk) => return Next::Done(Sense::INTERNAL.into()),
            None => {
                // A block with something in it cannot be unmapped, so it is written.
                if desk.buffer.iter().any(|&byte| byte != 0) {
                    self.zeroes = None;
                }
            }
            Some(done) => {
                self.at = self.at.saturating_add(done);
                self.left = self.left.saturating_sub(done);
            }
        }
        if self.left == 0 {
            return Next::Done(Answer::GOOD);
        }
        let (offset, fua) = (self.at, self.fua);
        if let Some(limits) = self.zeroes {
            // Whole blocks.
            let most = limits.max_bytes / self.block.max(1) * self.block;
            let (len, unmap) = (self.advance(most.max(self.block)), self.unmap);
            return Next::Do(Action::Zero {
                offset,
                len,
                unmap,
                fua,
            });
        }
        let len = self.advance(desk.buffer.len() as u64);
        desk.buffer.truncate(usize::try_from(len).unwrap_or(0));
        Next::Do(Action::Write { offset, fua })
    }
}
