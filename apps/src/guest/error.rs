//! Why a guest ends early.

use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;
use vvu::memory::MemoryError;
use vvu::socket::EndpointError;
use vvu::virtqueue::QueueError;

/// What a back-end did that no back-end may do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Fault {
    /// Used elements that make no sense.
    #[error("{ring} ring: {source}")]
    Ring {
        /// Which ring.
        ring: &'static str,
        /// What is wrong.
        source: QueueError,
    },
    /// A used length that cannot be.
    #[error(
        "a received frame has {found} bytes in a buffer of {room}, of which {header} are header"
    )]
    Length {
        /// What the back-end says.
        found: u32,
        /// The buffer's length.
        room: u32,
        /// The header's length.
        header: usize,
    },
    /// num_buffers that cannot be.
    #[error("a received frame is said to be in {found} buffers, of which {there} are there")]
    Merged {
        /// What the back-end says.
        found: u16,
        /// How many of them are used.
        there: u16,
    },
    /// An offload that was not negotiated.
    #[error(
        "a received frame has flags {flags:#x} and GSO type {gso:#x}, which were not negotiated"
    )]
    Offload {
        /// The header's flags.
        flags: u8,
        /// The header's GSO type.
        gso: u8,
    },
    /// The ring's error signal.
    #[error("the back-end says that the {0} ring is in error")]
    Signalled(&'static str),
    /// GET_VRING_BASE says something impossible.
    #[error(
        "the back-end stopped the {ring} ring at {found}, between {low} and {high} it could be"
    )]
    Base {
        /// Which ring.
        ring: &'static str,
        /// The answer.
        found: u32,
        /// What it returned for sure.
        low: u16,
        /// What it was given.
        high: u16,
    },
    /// A used length that cannot be.
    #[error(
        "the back-end claims to have written {found} bytes into a request with room for {room}"
    )]
    Answer {
        /// What it says.
        found: u32,
        /// What may be written.
        room: u32,
    },
    /// A request that came back without a word.
    #[error("the back-end gave back a request without saying what came of it: {0}")]
    Unanswered(String),
    /// A used length that does not cover what must have been written.
    #[error("{request} succeeded, with {found} bytes written; it takes {least}")]
    Unsaid {
        /// Which request.
        request: String,
        /// What the back-end says.
        found: u32,
        /// Data and answer.
        least: u64,
    },
    /// Nothing comes back.
    #[error("the back-end answered no request for {0} s")]
    Silent(u64),
    /// Nothing moves.
    #[error("the back-end took no frame for {0} s")]
    Stuck(u64),
}

/// Why a guest ends early.
#[derive(Debug, Error)]
pub(super) enum GuestError {
    /// The operating system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: Errno,
    },
    /// Memory cannot be mapped.
    #[error(transparent)]
    Memory(MemoryError),
    /// `--memory-file` cannot be used.
    #[error("memory file {path}: {source}")]
    MemoryFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// `--memory` is too little.
    #[error("rings and buffers do not fit the memory; give more (--memory, --memory-file)")]
    NoMemory,
    /// The socket cannot be set up.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Nobody is there.
    #[error("no back-end {how} {path} within {seconds} s{why}")]
    NoBackEnd {
        /// "answers at" or "called".
        how: &'static str,
        /// Where.
        path: PathBuf,
        /// How long we waited.
        seconds: u64,
        /// What the last attempt said.
        why: String,
    },
    /// A message failed.
    #[error("the back-end does not take {what}: {why}")]
    Handshake {
        /// Which message.
        what: &'static str,
        /// What was wrong.
        why: String,
    },
    /// A back-end that cannot be used.
    #[error("the back-end offers features {offered:#x}; {missing} is needed")]
    Features {
        /// What it offers.
        offered: u64,
        /// What it does not offer.
        missing: &'static str,
    },
    /// Too few rings.
    #[error("the back-end has {most} {what}; --{what} {wanted} is too many")]
    Rings {
        /// What is counted.
        what: &'static str,
        /// How many were asked for.
        wanted: u64,
        /// How many there are.
        most: u64,
    },
    /// No configuration space to learn a disk's size from.
    #[error(
        "the back-end's configuration space has {0} bytes; a disk's has 60, and says that blocks have 512 to 4096 bytes, a power of two"
    )]
    NoSpace(usize),
    /// A logical unit that is none, or no disk.
    #[error("target {target}, LUN {lun} is no disk that can be used: {why}")]
    NoDisk {
        /// The target.
        target: u8,
        /// The logical unit.
        lun: u16,
        /// What it answered.
        why: String,
    },
    /// A disk that cannot do what was asked for.
    #[error("this disk cannot {0}")]
    Unable(&'static str),
    /// A hostile request that was done.
    #[error("it says to have done what cannot be done: {0}")]
    Accepted(String),
    /// Honest requests that went wrong.
    #[error("{0}")]
    Spoilt(String),
    /// A part of the disk that is none.
    #[error(
        "{len} bytes from {start} on are no part of a disk of {capacity} bytes in blocks of {block} (--offset, --length)"
    )]
    Area {
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the disk.
        capacity: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// A back-end that came back as another.
    #[error("the back-end came back with features {now:#x}; before, they were {before:#x}")]
    Changed {
        /// Features negotiated before.
        before: u64,
        /// Features that could be negotiated now.
        now: u64,
    },
    /// It hung up.
    #[error("the back-end closed the connection; with --reconnect the guest waits for its return")]
    Gone,
    /// A signal said to stop before there was a result.
    #[error("stopped by a signal before the back-end was there")]
    Interrupted,
    /// It sent frames back before, and does not any more.
    #[error("frames do not come back any more")]
    Mute,
    /// The back-end is wrong.
    #[error("the back-end breaks the rules of virtio: {0}")]
    Broken(#[from] Fault),
}

impl GuestError {
    /// For errors of the operating system.
    pub(super) fn system(what: &'static str, source: impl Into<Errno>) -> Self {
        Self::System {
            what,
            source: source.into(),
        }
    }

    /// For errors of the `vhost` crate.
    pub(super) fn message(what: &'static str, error: vhost::Error) -> Self {
        use vhost::vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
        let why = match error {
            vhost::Error::VhostUserProtocol(Disconnected | PartialMessage | SocketBroken(_)) => {
                "it hung up, or did not answer in time".to_owned()
            }
            vhost::Error::VhostUserProtocol(error) => error.to_string(),
            other => other.to_string(),
        };
        Self::Handshake { what, why }
    }

    /// Whether it says that the back-end is wrong, as opposed to not there.
    pub(super) fn is_verdict(&self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

/// For errors of the standard library.
pub(super) fn io(what: &'static str) -> impl Fn(std::io::Error) -> GuestError {
    move |error| {
        let errno = Errno::from_io_error(&error);
        GuestError::system(what, errno.unwrap_or(Errno::IO))
    }
}
