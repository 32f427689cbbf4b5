//! What waits for a flush.

use std::sync::Arc;

use crate::bdev::IoError;

use super::super::Transfer;
use super::super::answer::Answer;
use super::super::nexus::Nexus;
use super::{Action, Desk, Next, Work};

/// What follows when everything has reached the medium.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum AfterFlush {
    Nothing,
    /// The unit is stopped.
    Stop,
    /// These modes are in force.
    Modes(u8),
    /// The blocks are read from the medium.
    Read(Transfer),
}

#[derive(Debug)]
pub(in super::super) struct Flush {
    nexus: Arc<Nexus>,
    then: AfterFlush,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Begin,
    Flushing,
    Reading,
}

impl Flush {
    pub(in super::super) fn new(nexus: &Arc<Nexus>, then: AfterFlush) -> Self {
        Self {
            nexus: Arc::clone(nexus),
            then,
            stage: Stage::Begin,
        }
    }
}

impl Work for Flush {
    fn transfer(&self) -> Option<Transfer> {
        match self.then {
            AfterFlush::Read(transfer) => Some(transfer),
            _ => None,
        }
    }

    fn next(&mut self, last: Result<(), IoError>, _: &mut Desk<'_>) -> Next {
        match (&self.stage, last) {
            (Stage::Begin, _) => {
                self.stage = Stage::Flushing;
                return Next::Do(Action::Flush);
            }
            (Stage::Flushing, Err(_)) => return Next::Done(Answer::of(last, true)),
            (Stage::Flushing, Ok(())) => {}
            (Stage::Reading, _) => return Next::Done(Answer::of(last, false)),
        }
        match self.then {
            AfterFlush::Nothing => {}
            AfterFlush::Stop => self.nexus.unit().set_stopped(true),
            AfterFlush::Modes(modes) => self.nexus.unit().set_modes(modes, self.nexus.id()),
            AfterFlush::Read(transfer) => {
                self.stage = Stage::Reading;
                return Next::Do(Action::Move(transfer));
            }
        }
        Next::Done(Answer::GOOD)
    }
}
