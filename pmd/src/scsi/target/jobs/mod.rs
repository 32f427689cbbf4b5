//! Commands that take several steps: what to do next, given what became of the last step.
//!
//! | file | what it does |
//! |---|---|
//! | `verify.rs` | VERIFY, WRITE AND VERIFY |
//! | `same.rs` | WRITE SAME |
//! | `compare.rs` | COMPARE AND WRITE |
//! | `unmap.rs` | UNMAP |
//! | `flush.rs` | what waits for a flush: SYNCHRONIZE CACHE, START STOP UNIT, MODE SELECT, reads of the medium |

mod compare;
mod flush;
mod same;
mod unmap;
mod verify;

pub(super) use compare::CompareAndWrite;
pub(super) use flush::{AfterFlush, Flush};
pub(super) use same::WriteSame;
pub(super) use unmap::{MAX_DESCRIPTORS, Unmap};
pub(super) use verify::{Against, Verify};

use crate::bdev::IoError;

use super::answer::Answer;
use super::nexus::Barrier;
use super::reserve::Reservations;
use super::{DataOut, Transfer};

/// Most bytes that a job reads or writes at once through its own buffer.
pub const CHUNK: u64 = 256 << 10;

/// One step of a job. Offsets and lengths are bytes of the disk.
#[derive(Debug)]
pub enum Action {
    /// Move the command's own data.
    Move(Transfer),
    /// Read so much, at most [`CHUNK`], into the job's buffer.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Write what is in the job's buffer.
    Write {
        /// Where.
        offset: u64,
        /// Through to the medium.
        fua: bool,
    },
    /// All that was written reaches the medium.
    Flush,
    /// The range is not needed any more.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The range becomes zeroes.
    Zero {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// It may be given back to the medium.
        unmap: bool,
        /// Through to the medium.
        fua: bool,
    },
    /// Close the unit's gate and wait until nothing else is written; it stays closed to the end of
    /// the job.
    Alone,
    /// Write the reservations down, where they outlast the process.
    Save(Reservations),
    /// Wait until other tasks have ended.
    Await(Barrier),
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// This step.
    Do(Action),
    /// Nothing more.
    Done(Answer),
}

/// What a job has to work with.
pub struct Desk<'a> {
    /// What the initiator sent.
    pub out: &'a dyn DataOut,
    /// What was read, or shall be written.
    pub buffer: &'a mut Vec<u8>,
}

/// A kind of job.
pub(super) trait Work: std::fmt::Debug + Send {
    /// What comes next, after the last step ended like this; `Ok` before the first.
    fn next(&mut self, last: Result<(), IoError>, desk: &mut Desk<'_>) -> Next;

    /// The transfer of the command's own data among its steps, if there is one.
    fn transfer(&self) -> Option<Transfer> {
        None
    }
}

/// A command that takes several steps. Dropping it gives it up.
#[derive(Debug)]
pub struct Job(Box<dyn Work>);

impl Job {
    pub(super) fn new(work: impl Work + 'static) -> Self {
        Self(Box::new(work))
    }

    /// The one [`Action::Move`] that it will ask for, if it will.
    pub fn transfer(&self) -> Option<Transfer> {
        self.0.transfer()
    }

    /// What comes next, after the last step ended like this; `Ok` before the first. Bounded work.
    pub fn next(&mut self, last: Result<(), IoError>, desk: &mut Desk<'_>) -> Next {
        self.0.next(last, desk)
    }
}
