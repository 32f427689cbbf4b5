//! What a function is asked by the server of a socket, and what can come of it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use crate::socket::FrameError;

/// The region that configuration space is.
pub const CONFIG_REGION: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Why a command is refused: for the client a number, for people words.
#[derive(Debug)]
pub struct Refusal {
    /// What the client is told.
    pub errno: Errno,
    /// What people are told.
    pub what: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(errno: Errno, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { errno, what }
    }
}

/// A part of a region that clients can map.
#[derive(Debug)]
pub struct Shared<'a> {
    /// The file whose beginning the region's beginning is.
    pub file: BorrowedFd<'a>,
    /// Bytes of it, whole pages.
    pub len: u64,
}

/// A piece of the client's memory.
#[derive(Debug)]
pub struct ClientMemory {
    /// The file, if the client shares one.
    pub file: Option<OwnedFd>,
    /// Where in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether the function may write there.
    pub writable: bool,
}

/// A PCI function as a server has it. Regions are numbered as in the kernel's vfio: BARs 0 to 5,
/// ROM, configuration space, VGA.
pub trait Served {
    /// Size of a region; 0 if there is none.
    fn region_size(&self, region: u32) -> u64;
    /// What of a region can be mapped.
    fn shared(&self, region: u32) -> Option<Shared<'_>>;
    /// Number of MSI-X vectors.
    fn vectors(&self) -> u16;
    /// Reads inside a region.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]);
    /// Writes inside a region.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]);
    /// Lets the function reach memory from `iova` on, where nothing else is. `false` if it never
    /// will, and the client need not know.
    fn map(&mut self, iova: u64, memory: ClientMemory) -> Result<bool, Refusal>;
    /// Takes back what the function reached at `iova`, all of it.
    fn unmap(&mut self, iova: u64, len: u64);
    /// Names who is told when a vector fires.
    fn set_vector(&mut self, vector: u16, fd: Option<OwnedFd>) -> Result<(), Refusal>;
    /// Function reset.
    fn reset(&mut self);
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum Ended {
    /// The client closed it.
    #[error("the client closed the connection")]
    Closed,
    /// The client does not speak vfio-user as it should.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The client does not read what it is answered.
    #[error("the client read no replies for {0:?}")]
    Stuck(Duration),
    /// The operating system failed.
    #[error("the client's socket failed: {0}")]
    System(Errno),
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Closed,
            FrameError::Violation(what) => Self::Violation(what),
            FrameError::System(errno) => Self::System(errno),
        }
    }
}

/// What was counted on a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands.
    pub commands: u64,
    /// Those of them that were refused.
    pub refused: u64,
    /// Why the last of those was.
    pub last_refusal: Option<String>,
}
