//! Frames in files: what passes a port written down, and files as ports.
//!
//! A worker never waits for a disk. It copies frames, as blocks of the file to be, into a buffer
//! that a thread of its own empties ([`Recorder`]); what finds the buffer full is counted and
//! missing. Files to be played are read into memory before the port exists ([`Replay`]).

mod blocks;
mod recorder;
mod replay;
#[cfg(test)]
mod tests;

pub use recorder::{Pen, Recorder};
pub use replay::{FileTx, Replay};

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vvu::memory::MemoryError;

/// What is wanted of a port that is files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileConfig {
    /// The file whose frames come from the port.
    pub input: Option<PathBuf>,
    /// The file that takes frames to the port.
    pub output: Option<PathBuf>,
    /// Whether the input begins again at its end.
    pub repeat: bool,
}

/// Why a file cannot be played or written.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The kernel said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {what} at byte {at}; expected a pcap or pcapng file of Ethernet frames")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// Where.
        at: u64,
    },
    /// The file is too large to be kept in memory.
    #[error("{path}: its frames take more than {most} bytes of memory")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What would do.
        most: usize,
    },
    /// A port without frames of its own.
    #[error("nothing passes port {0} itself, so that it cannot be captured; capture another port")]
    NoFrames(String),
    /// No buffer.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl CaptureError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}
