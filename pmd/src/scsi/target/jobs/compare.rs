//! COMPARE AND WRITE (SBC-4, 5.3): written if what is there is what the initiator thinks, and
//! nobody else writes meanwhile.

use crate::bdev::IoError;

use super::super::answer::Answer;
use super::super::sense::Sense;
use super::{Action, Desk, Next, Work};

#[derive(Debug)]
pub(in super::super) struct CompareAndWrite {
    offset: u64,
    len: u64,
    fua: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Begin,
    Closing,
    Reading,
    Writing,
}

impl CompareAndWrite {
    /// Of `len` bytes of the disk, at most a chunk; the initiator sends twice as many.
    pub(in super::super) fn new(offset: u64, len: u64, fua: bool) -> Self {
        Self {
            offset,
            len,
            fua,
            stage: Stage::Begin,
        }
    }

    /// Compares what was read with the first half of the data; if it is equal, the second half
    /// takes its place.
    fn compare(&self, desk: &mut Desk<'_>) -> Result<(), Sense> {
        let mut sent = vec![0; desk.buffer.len()];
        if desk.buffer.len() as u64 != self.len || !desk.out.read_at(0, &mut sent) {
            return Err(Sense::INTERNAL);
        }
        let differs = sent.iter().zip(&*desk.buffer).position(|(a, b)| a != b);
        if let Some(at) = differs {
            return Err(Sense::MISCOMPARE.with_info(at as u64));
        }
        if !desk.out.read_at(self.len, desk.buffer) {
            return Err(Sense::INTERNAL);
        }
        Ok(())
    }
}

impl Work for CompareAndWrite {
    fn next(&mut self, last: Result<(), IoError>, desk: &mut Desk<'_>) -> Next {
        let (offset, len, fua) = (self.offset, self.len, self.fua);
        if last.is_err() {
            let write = matches!(self.stage, Stage::Writing);
            return Next::Done(Answer::of(last, write));
        }
        let (stage, action) = match self.stage {
            Stage::Begin => (Stage::Closing, Action::Alone),
            Stage::Closing => (Stage::Reading, Action::Read { offset, len }),
            Stage::Reading => match self.compare(desk) {
                Ok(()) => (Stage::Writing, Action::Write { offset, fua }),
                Err(sense) => return Next::Done(sense.into()),
            },
            Stage::Writing => return Next::Done(Answer::GOOD),
        };
        self.stage = stage;
        Next::Do(action)
    }
}
