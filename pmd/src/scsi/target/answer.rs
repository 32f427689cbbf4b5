//! How a command ends.

use crate::bdev::IoError;

use super::sense::Sense;

/// Status codes (SAM-6, 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// The sense data say why not.
    CheckCondition = 0x02,
    /// Not now.
    Busy = 0x08,
    /// Reserved for somebody else.
    ReservationConflict = 0x18,
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: Status,
    /// Why, with [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// What the initiator gets, unless its data were moved before.
    pub data: Vec<u8>,
}

impl Answer {
    /// Done, without data or with data that were moved.
    pub const GOOD: Self = Self::status(Status::Good);
    /// Reserved for somebody else.
    pub const CONFLICT: Self = Self::status(Status::ReservationConflict);
    /// To be tried again.
    pub const BUSY: Self = Self::status(Status::Busy);

    const fn status(status: Status) -> Self {
        Self {
            status,
            sense: None,
            data: Vec::new(),
        }
    }

    /// Done, with data of which the initiator wants no more than `most` bytes.
    pub fn with_data(mut data: Vec<u8>, most: u64) -> Self {
        data.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Self { data, ..Self::GOOD }
    }

    /// The end of a read or write.
    #[inline]
    pub fn of(result: Result<(), IoError>, write: bool) -> Self {
        match result {
            Ok(()) => Self::GOOD,
            Err(error) => sense_of(error, write).into(),
        }
    }
}

impl From<Sense> for Answer {
    fn from(sense: Sense) -> Self {
        Self {
            sense: Some(sense),
            ..Self::status(Status::CheckCondition)
        }
    }
}

/// What an initiator is told of an error of the disk.
fn sense_of(error: IoError, write: bool) -> Sense {
    match error {
        IoError::Io(_) if write => Sense::WRITE_ERROR,
        IoError::Io(_) => Sense::READ_ERROR,
        IoError::NoSpace => Sense::NO_SPACE,
        IoError::Gone => Sense::GONE,
        IoError::Unsupported => Sense::INTERNAL,
        // It became smaller after the command was judged.
        IoError::Range => Sense::RANGE,
        IoError::ReadOnly => Sense::READ_ONLY,
        IoError::Timeout => Sense::TIMEOUT,
    }
}
