//! A SCSI target: what commands mean, for whoever carries them and whatever is behind the disk.
//!
//! It knows no virtio and does no I/O. A CDB goes in at a [`Nexus`]; out comes a [`Step`]: an
//! [`Answer`], one [`Transfer`] of the command's own data, or a [`Job`] that says what to do next
//! as often as it is asked. After SAM-6, SPC-5 and SBC-4; what is told of it is SPC-4 and SBC-3,
//! which every driver knows.
//!
//! | file | what it holds |
//! |---|---|
//! | `opcodes.rs` | every command that is accepted, in one table |
//! | `execute.rs` | from a CDB to a step |
//! | `cdb.rs`, `sense.rs`, `answer.rs`, `attention.rs` | what comes in, and what goes out |
//! | `unit.rs`, `nexus.rs`, `luns.rs` | a logical unit; an initiator's way to it; all units of a target |
//! | `well_known.rs` | a unit that is always there, to list the others |
//! | `gate.rs` | what makes COMPARE AND WRITE atomic |
//! | `inquiry.rs`, `vpd.rs`, `capacity.rs`, `mode.rs`, `select.rs`, `log.rs`, `supported.rs`, `ports.rs` | commands that answer at once |
//! | `jobs` | commands that take several steps |
//! | `reserve` | persistent reservations |
//! | `bench.rs` | a unit on plain memory, for tests |
//!
//! A command that only reads or writes looks at one word that others change, the flags of its
//! nexus, and takes no lock.

mod answer;
mod attention;
#[cfg(any(test, feature = "test-utils"))]
pub mod bench;
mod capacity;
mod cdb;
mod execute;
mod gate;
mod inquiry;
mod jobs;
mod log;
mod luns;
mod mode;
mod nexus;
mod opcodes;
mod ports;
mod reserve;
mod select;
mod sense;
mod supported;
#[cfg(test)]
mod tests;
mod unit;
mod vpd;
mod well_known;

pub use answer::{Answer, Status};
pub use attention::Attention;
pub use cdb::MAX as MAX_CDB;
pub use gate::{Alone, Gate, Lane};
pub use jobs::{Action, CHUNK, Desk, Job, Next};
pub use luns::{Luns, MAX_LUN, Missing};
pub use nexus::{Barrier, Bell, Nexus, NexusId};
pub use reserve::{MAX_REGISTRATIONS, Reservations, TextError};
pub use sense::{Key, MAX_SENSE, Place, Sense};
pub use unit::{Identity, Unit, name_hash};
pub use well_known::WellKnown;

/// Names of all commands that are accepted.
pub fn commands() -> impl Iterator<Item = &'static str> {
    opcodes::offered(true).map(|row| row.name)
}

/// The data that an initiator sends with a command.
pub trait DataOut {
    /// Copies the bytes from `at` on; false unless all of them are there.
    fn read_at(&self, at: u64, into: &mut [u8]) -> bool;
}

impl DataOut for &[u8] {
    fn read_at(&self, at: u64, into: &mut [u8]) -> bool {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.get(at..).and_then(|rest| rest.get(..into.len()));
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
}

/// A command with what came with it.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The CDB; what is behind the command's own length is not looked at.
    pub cdb: &'a [u8],
    /// Most bytes that the initiator takes.
    pub data_in: u64,
    /// Bytes that it sends.
    pub data_out: u64,
    /// Those.
    pub out: &'a dyn DataOut,
    /// The units of the target that it came to.
    pub luns: &'a Luns,
}

/// Bytes between the disk and the buffers of a command, from their beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// To the disk.
    pub write: bool,
    /// First byte on the disk.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Through to the medium.
    pub fua: bool,
}

/// What to do about a command.
#[derive(Debug)]
pub enum Step {
    /// Nothing more.
    Done(Answer),
    /// Move its data; [`Answer::of`] makes the answer of the result.
    Move(Transfer),
    /// As the job says.
    Job(Job),
    /// It asks for more data than its buffers have room for. No command of the target's; whoever
    /// carries commands says so in its own way.
    Overrun,
}
