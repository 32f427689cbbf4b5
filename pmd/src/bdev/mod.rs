//! What is behind a disk: ranges of bytes that are read and written a burst at a time, and answer
//! later.
//!
//! A [`Disk`] is one configured disk, shared by everybody. Whoever does I/O opens a [`Channel`] of
//! it for each worker: that one belongs to its worker alone, so nothing on the way of a request
//! takes a lock. Both are traits, and what stands before a disk (read-only, throttle, faults,
//! latencies) is a disk itself that holds another one.
//!
//! ```text
//! requests: Vec<Request>  --submit-->  channel  --reap-->  done: Vec<Done>
//! ```
//!
//! - **A burst at a time.** [`Channel::submit`] takes all of a burst, [`Channel::reap`] hands out
//!   all that is done: one dynamic call, and at most one system call, for each. What a channel
//!   cannot begin yet it keeps; how much that can be is bounded by who submits.
//! - **It never waits.** Not for a disk, not for a network, not for a lock that others hold long.
//! - **Data is owned.** [`Data`] travels with its request and comes back with the answer, in
//!   [`Done`]. It keeps its memory mapped, so a request that takes long is harmless: whoever let
//!   go of the ring, the memory is there until the last request is done. Devices use the list
//!   again for their next request, so no request allocates.
//! - **Requests are in no order.** What is done first is told first. A flush covers the writes
//!   that were done before it was submitted.
//! - Offsets and lengths are bytes. A channel checks them against the disk's size and blocks
//!   ([`Request::check`]) and refuses with [`IoError::Range`]; who submits need not.
//! - **Sleep.** While its worker polls, a channel signals nothing. Before it sleeps the worker
//!   calls [`Channel::arm`]; from then on one of [`Channel::fds`] becomes readable when something
//!   is done. The next `reap` ends that.
//!
//! | file | what |
//! |---|---|
//! | `null` | a disk that is not there |
//! | `mem` | a disk in memory |
//! | `file` | a disk in a file, or a block device |
//! | `nbd` | a disk that an NBD server has |
//! | `rbd` | a disk that is an image in a Ceph cluster |
//! | `readonly` | before another disk: it is not written |
//! | `paced`, `held` | before another disk: requests wait, for a throttle or a delay |
//! | `fault` | before another disk: it fails as told |
//! | `volatile` | before another disk: what is not flushed does not survive a power cut |
//! | `at_once`, `bytes`, `slots`, `timer` | what several of these need |
//!
//! This room knows no virtio, no rings and no workers.

mod at_once;
mod bytes;
#[cfg(test)]
mod fake;
mod fault;
pub mod file;
mod held;
mod mem;
pub mod nbd;
mod null;
mod paced;
#[cfg(feature = "rbd")]
pub mod rbd;
mod readonly;
mod slots;
#[cfg(test)]
mod tests;
mod timer;
mod volatile;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use thiserror::Error;
use vvu::memory::Scatter;

use crate::wake::Quiet;

pub use fault::{Faulty, OpKind, Plan, Which};
pub use mem::Mem;
pub use null::Null;
pub use paced::{Delay, Rates, Throttle};
pub use readonly::ReadOnly;
pub use volatile::{Power, Volatile};

/// A disk. See the [module](self).
pub trait Disk: fmt::Debug + Send + Sync {
    /// What it is called in logs and statistics: its URL without options.
    fn name(&self) -> &str;

    /// Its size, which can change while it is used.
    fn size(&self) -> &Size;

    /// Its blocks.
    fn geometry(&self) -> Geometry;

    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// A channel for one worker. May take long: not on a worker's thread.
    fn channel(&self) -> Result<Box<dyn Channel>, DiskError>;

    /// Looks whether the medium has another size by now. May take long.
    fn refresh(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// One worker's way to a disk. Dropped while something is in flight, it waits for that or keeps
/// its memory for ever: what was submitted may still be written to.
pub trait Channel: fmt::Debug + Send {
    /// Takes all of `requests`, and leaves it empty.
    fn submit(&mut self, requests: &mut Vec<Request>);

    /// Adds what is done by now to `done`, each request once.
    fn reap(&mut self, done: &mut Vec<Done>);

    /// How many requests were submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// What becomes readable when something is done after [`Channel::arm`]. Always the same; they
    /// are watched edge-triggered and never read by who watches. Without any, the channel is
    /// looked at in intervals.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// The worker is about to sleep. [`Quiet::Busy`] if there is something to reap already,
    /// [`Quiet::Kicked`] if one of the descriptors will tell or nothing is in flight,
    /// [`Quiet::Polled`] if nobody will.
    fn arm(&mut self) -> Quiet;

    /// Somebody waits for the end of everything in flight, as when a ring is stopped: nothing is
    /// held back any longer.
    fn hurry(&mut self) {}
}

/// What shall be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// From the disk into the data.
    Read,
    /// From the data to the disk.
    Write,
    /// All writes that were done when this was submitted reach the medium.
    Flush,
    /// The range's content is not needed any more.
    Discard,
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// The range may be given back to the medium, if it reads as zeroes all the same.
        unmap: bool,
    },
}

/// The pieces of memory of a request; `None` for what moves no data. What is in flight belongs to
/// the channel and returns in [`Done::data`].
pub type Data = Option<Box<Scatter>>;

/// One request.
#[derive(Debug)]
pub struct Request {
    /// Comes back in [`Done::token`]; the channel does not care what it is.
    pub token: u64,
    /// What shall be done.
    pub op: Op,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes on the disk; zero for a flush. For reads and writes, as many as the data has.
    pub len: u64,
    /// Where the bytes go to, or come from.
    pub data: Data,
    /// For writes and zeroes: done only when it has reached the medium (forced unit access).
    pub fua: bool,
}

impl Request {
    /// Whether the request makes sense for a disk of `size` bytes in blocks of `block` bytes.
    #[inline]
    pub fn check(&self, size: u64, block: u32) -> Result<(), IoError> {
        if self.op == Op::Flush {
            return Ok(());
        }
        let end = self.offset.checked_add(self.len).ok_or(IoError::Range)?;
        let aligned = (self.offset | self.len) & u64::from(block).wrapping_sub(1) == 0;
        let moves = matches!(self.op, Op::Read | Op::Write);
        let len = self.data.as_ref().map_or(0, |data| data.len());
        if end > size || !aligned || (moves && len != self.len) {
            return Err(IoError::Range);
        }
        Ok(())
    }

    /// The answer to this request.
    #[inline]
    pub fn done(self, result: Result<(), IoError>) -> Done {
        Done {
            token: self.token,
            result,
            data: self.data,
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub struct Done {
    /// [`Request::token`].
    pub token: u64,
    /// Whether all of it was done. If not, the data and the range may be anything.
    pub result: Result<(), IoError>,
    /// [`Request::data`].
    pub data: Data,
}

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IoError {
    /// The medium failed; the number is the kernel's errno.
    #[error("I/O error (errno {0})")]
    Io(i32),
    /// No space is left for what was written.
    #[error("no space left")]
    NoSpace,
    /// The medium is not there any more.
    #[error("the medium is gone")]
    Gone,
    /// The disk cannot do this.
    #[error("not supported")]
    Unsupported,
    /// Outside the disk, not whole blocks, or not as long as its data.
    #[error("outside the disk or not whole blocks")]
    Range,
    /// The disk may only be read.
    #[error("read-only")]
    ReadOnly,
    /// It took too long.
    #[error("timed out")]
    Timeout,
}

impl IoError {
    /// Short names of all reasons, in the order of [`IoError::reason`].
    pub const REASONS: [&str; 7] = [
        "io",
        "no-space",
        "gone",
        "unsupported",
        "range",
        "read-only",
        "timeout",
    ];

    /// Which of [`IoError::REASONS`] this is.
    pub fn reason(&self) -> usize {
        match self {
            Self::Io(_) => 0,
            Self::NoSpace => 1,
            Self::Gone => 2,
            Self::Unsupported => 3,
            Self::Range => 4,
            Self::ReadOnly => 5,
            Self::Timeout => 6,
        }
    }

    /// From the kernel's errno.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ENOTCONN | libc::ESHUTDOWN => {
                Self::Gone
            }
            libc::EOPNOTSUPP => Self::Unsupported,
            libc::EROFS | libc::EPERM | libc::EBADF => Self::ReadOnly,
            libc::ETIMEDOUT => Self::Timeout,
            other => Self::Io(other),
        }
    }
}

/// A disk's blocks, in bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Offsets and lengths of requests are multiples of this; at least 512.
    pub logical_block: u32,
    /// What the medium writes at once; at least a logical block.
    pub physical_block: u32,
    /// Length of requests that suits the medium best; 0 if it does not say.
    pub optimal_io: u32,
}

impl Default for Geometry {
    fn default() -> Self {
        Self {
            logical_block: 512,
            physical_block: 4096,
            optimal_io: 0,
        }
    }
}

/// Limits of requests without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one request.
    pub max_bytes: u64,
    /// What whole multiples of, in bytes, have an effect on the medium; a power of two.
    pub granularity: u32,
}

/// What a disk can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// It may not be written.
    pub read_only: bool,
    /// Writes may be done before they have reached the medium, until a flush; if not, whoever
    /// submits sets [`Request::fua`] on each write.
    pub write_back: bool,
    /// Whether, and how much at once, can be discarded.
    pub discard: Option<Limits>,
    /// Whether, and how much at once, can be zeroed.
    pub write_zeroes: Option<Limits>,
    /// Memory must be pinnable: the channel copies requests whose memory is not
    /// ([`Scatter::is_pinnable`]) through buffers of its own, of which there is a bounded number.
    pub needs_pinnable: bool,
}

impl Abilities {
    /// Everything, on memory of any kind; `limits` are those of discarding and of zeroing.
    pub fn all(limits: Limits) -> Self {
        Self {
            read_only: false,
            write_back: true,
            discard: Some(limits),
            write_zeroes: Some(limits),
            needs_pinnable: false,
        }
    }
}

/// Who wants to know when a disk changes its size.
pub trait Resized: Send + Sync {
    /// It has `bytes` bytes now. On whatever thread found out; not a worker's.
    fn resized(&self, bytes: u64);
}

/// A disk's size in bytes, and who wants to hear of a change.
#[derive(Default)]
pub struct Size {
    bytes: AtomicU64,
    listeners: Mutex<Vec<Weak<dyn Resized>>>,
}

impl Size {
    /// A size of `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes: AtomicU64::new(bytes),
            listeners: Mutex::default(),
        }
    }

    /// The size now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Another size. Who listens hears of it, if it is another one, before this returns.
    pub fn set(&self, bytes: u64) {
        if self.bytes.swap(bytes, Ordering::Relaxed) == bytes {
            return;
        }
        let listeners: Vec<_> = {
            let mut all = self.lock();
            all.retain(|listener| listener.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.resized(bytes);
        }
    }

    /// `listener` hears of changes for as long as it lives.
    pub fn listen(&self, listener: &Arc<dyn Resized>) {
        self.lock().push(Arc::downgrade(listener));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Resized>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Size").field(&self.get()).finish()
    }
}

/// Why a disk, or a channel of it, cannot be had.
#[derive(Debug, Error)]
pub enum DiskError {
    /// What people wrote is not a disk.
    #[error("{0}")]
    Syntax(String),
    /// The file, device or connection cannot be opened.
    #[error("{disk}: {what}: {source}")]
    Open {
        /// Name of the disk.
        disk: String,
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// It is there, but cannot be a disk, or not with these options.
    #[error("{disk}: {reason}")]
    Unfit {
        /// Name of the disk.
        disk: String,
        /// What was found, and what would be right.
        reason: String,
    },
}
