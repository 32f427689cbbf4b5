//! A disk that fails as told: for tests of everything above it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Abilities, Channel, Disk, DiskError, Done, Geometry, IoError, Op, Request, Size};
use crate::wake::Quiet;

/// Which of the requests fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one of this number, counted from 1.
    Nth(u64),
    /// Each of this many.
    Every(u64),
    /// All from the one of this number on.
    From(u64),
}

/// What fails, and how. Written `OP:WHICH:N:ERROR`, as in `write:every:100:EIO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The kind of requests that is counted; any without.
    pub op: Option<OpKind>,
    /// Which of these.
    pub which: Which,
    /// What they end with.
    pub error: IoError,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Zeroes.
    Zeroes,
}

impl OpKind {
    fn has(self, op: Op) -> bool {
        match op {
            Op::Read => self == Self::Read,
            Op::Write => self == Self::Write,
            Op::Flush => self == Self::Flush,
            Op::Discard => self == Self::Discard,
            Op::WriteZeroes { .. } => self == Self::Zeroes,
        }
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let mut next = || parts.next().unwrap_or_default();
        let (op, which, number, error) = (next(), next(), next(), next());
        let form = "write OP:WHICH:N:ERROR, as in write:every:100:EIO";
        if parts.next().is_some() {
            return Err(format!("{text:?} has too many parts; {form}"));
        }
        let op = match op {
            "any" => None,
            "read" => Some(OpKind::Read),
            "write" => Some(OpKind::Write),
            "flush" => Some(OpKind::Flush),
            "discard" => Some(OpKind::Discard),
            "zeroes" => Some(OpKind::Zeroes),
            _ => {
                return Err(format!(
                    "{op:?} is none of any, read, write, flush, discard and zeroes; {form}"
                ));
            }
        };
        let n = match number.parse() {
            Ok(n @ 1..) => n,
            _ => return Err(format!("{number:?} is not a number from 1 on; {form}")),
        };
        let which = match which {
            "nth" => Which::Nth(n),
            "every" => Which::Every(n),
            "from" => Which::From(n),
            _ => return Err(format!("{which:?} is none of nth, every and from; {form}")),
        };
        let error = match error {
            "EIO" => IoError::Io(libc::EIO),
            "ENOSPC" => IoError::NoSpace,
            "ENODEV" => IoError::Gone,
            "ETIMEDOUT" => IoError::Timeout,
            "EROFS" => IoError::ReadOnly,
            "EOPNOTSUPP" => IoError::Unsupported,
            _ => {
                return Err(format!(
                    "{error:?} is none of EIO, ENOSPC, ENODEV, ETIMEDOUT, EROFS and EOPNOTSUPP; \
                     {form}"
                ));
            }
        };
        Ok(Self { op, which, error })
    }
}

/// See the top of this file. The count goes over all channels.
#[derive(Debug)]
pub struct Faulty {
    disk: Arc<dyn Disk>,
    plan: Plan,
    count: Arc<AtomicU64>,
}

impl Faulty {
    /// `disk`, failing after `plan`.
    pub fn before(disk: Arc<dyn Disk>, plan: Plan) -> Arc<dyn Disk> {
        Arc::new(Self {
            disk,
            plan,
            count: Arc::default(),
        })
    }
}

impl Disk for Faulty {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn size(&self) -> &Size {
        self.disk.size()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn abilities(&self) -> Abilities {
        self.disk.abilities()
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(FaultyChannel {
            inner: self.disk.channel()?,
            plan: self.plan,
            count: Arc::clone(&self.count),
            failed: Vec::new(),
        }))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.disk.refresh()
    }
}

struct FaultyChannel {
    inner: Box<dyn Channel>,
    plan: Plan,
    count: Arc<AtomicU64>,
    failed: Vec<Done>,
}

impl FaultyChannel {
    fn fails(&self, request: &Request) -> bool {
        if self.plan.op.is_some_and(|kind| !kind.has(request.op)) {
            return false;
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        match self.plan.which {
            Which::Nth(n) => number == n,
            Which::Every(n) => number.is_multiple_of(n),
            Which::From(n) => number >= n,
        }
    }
}

impl fmt::Debug for FaultyChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyChannel").field(&self.plan).finish()
    }
}

impl Channel for FaultyChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        let mut failed = std::mem::take(&mut self.failed);
        let doomed = requests.extract_if(.., |request| self.fails(request));
        failed.extend(doomed.map(|request| request.done(Err(self.plan.error))));
        self.failed = failed;
        self.inner.submit(requests);
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.failed);
        self.inner.reap(done);
    }

    fn in_flight(&self) -> usize {
        self.failed.len() + self.inner.in_flight()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.fds()
    }

    fn arm(&mut self) -> Quiet {
        let inner = self.inner.arm();
        match self.failed.is_empty() {
            true => inner,
            false => Quiet::Busy,
        }
    }

    fn hurry(&mut self) {
        self.inner.hurry();
    }
}
