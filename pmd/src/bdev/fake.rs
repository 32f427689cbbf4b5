//! A disk for tests: bytes in memory, answers in an order of its own, and a list of what it was
//! asked for.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vvu::memory::{Area, Mapping, Scatter, copy};

use super::{
    Abilities, Channel, Data, Disk, DiskError, Done, Geometry, IoError, Limits, Op, Request, Size,
    bytes,
};
use crate::wake::Quiet;

#[derive(Debug)]
pub(super) struct Fake {
    size: Size,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    log: Mutex<Vec<(Op, u64, u64)>>,
    /// How many answers come at a time; all if zero.
    slow: usize,
}

impl Fake {
    pub(super) fn new(len: usize) -> Arc<Self> {
        Self::slow(len, 0)
    }

    /// One that gives `slow` answers at a time.
    pub(super) fn slow(len: usize, slow: usize) -> Arc<Self> {
        Arc::new(Self {
            size: Size::new(len as u64),
            shared: Arc::new(Shared {
                bytes: Mutex::new(vec![0; len]),
                log: Mutex::default(),
                slow,
            }),
        })
    }

    /// What it was asked for since the last time somebody wanted to know.
    pub(super) fn log(&self) -> Vec<(Op, u64, u64)> {
        std::mem::take(&mut self.shared.log.lock().unwrap())
    }

    /// What it has.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.shared.bytes.lock().unwrap().clone()
    }
}

impl Disk for Fake {
    fn name(&self) -> &str {
        "fake:"
    }

    fn size(&self) -> &Size {
        &self.size
    }

    fn geometry(&self) -> Geometry {
        Geometry::default()
    }

    fn abilities(&self) -> Abilities {
        Abilities::all(Limits {
            max_bytes: 1 << 30,
            granularity: 512,
        })
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(FakeChannel {
            shared: Arc::clone(&self.shared),
            size: self.size.get(),
            done: VecDeque::new(),
        }))
    }
}

#[derive(Debug)]
struct FakeChannel {
    shared: Arc<Shared>,
    size: u64,
    done: VecDeque<Done>,
}

impl FakeChannel {
    fn execute(&self, request: &Request) -> Result<(), IoError> {
        let log = (request.op, request.offset, request.len);
        self.shared.log.lock().unwrap().push(log);
        request.check(self.size, 512)?;
        let mut all = self.shared.bytes.lock().unwrap();
        let start = request.offset as usize;
        let range = &mut all[start..start + request.len as usize];
        match (request.op, &request.data) {
            (Op::Read, Some(data)) => bytes::write_at(data, 0, range),
            (Op::Write, Some(data)) => bytes::read_at(data, 0, range),
            (Op::Discard | Op::WriteZeroes { .. }, None) => range.fill(0),
            (Op::Flush, None) => {}
            _ => return Err(IoError::Range),
        }
        Ok(())
    }
}

impl Channel for FakeChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        for request in requests.drain(..) {
            let result = self.execute(&request);
            // The newest first: no order is promised.
            self.done.push_front(request.done(result));
        }
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let most = match self.shared.slow {
            0 => self.done.len(),
            slow => slow.min(self.done.len()),
        };
        done.extend(self.done.drain(..most));
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn arm(&mut self) -> Quiet {
        match self.done.is_empty() {
            true => Quiet::Kicked,
            false => Quiet::Busy,
        }
    }
}

/// Data of `bytes`.
pub(super) fn data(bytes: &[u8]) -> Data {
    let area = Area::whole(Mapping::anonymous(bytes.len().max(1)).unwrap());
    copy::write(bytes, area.slice());
    let area = area.sub(0, bytes.len()).unwrap();
    Some(Box::new(Scatter::of_area(area)))
}

/// What is in some data.
pub(super) fn content(data: &Data) -> Vec<u8> {
    let data = data.as_ref().unwrap();
    let mut all = vec![0; data.len() as usize];
    bytes::read_at(data, 0, &mut all);
    all
}

/// A read of `len` bytes.
pub(super) fn read(token: u64, offset: u64, len: usize) -> Request {
    Request {
        token,
        op: Op::Read,
        offset,
        len: len as u64,
        data: data(&vec![0xee; len]),
        fua: false,
    }
}

/// A write of `bytes`.
pub(super) fn write(token: u64, offset: u64, bytes: &[u8]) -> Request {
    Request {
        token,
        op: Op::Write,
        offset,
        len: bytes.len() as u64,
        data: data(bytes),
        fua: false,
    }
}

/// Something without data.
pub(super) fn bare(token: u64, op: Op, offset: u64, len: u64) -> Request {
    Request {
        token,
        op,
        offset,
        len,
        data: None,
        fua: false,
    }
}

/// How long a test waits for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `count` answers, asleep as a worker would be, and sorts them by token.
pub(super) fn wait(channel: &mut dyn Channel, count: usize) -> Vec<Done> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let start = Instant::now();
    let mut done = Vec::new();
    loop {
        channel.reap(&mut done);
        if done.len() >= count {
            break;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} answers",
            done.len()
        );
        if channel.arm() == Quiet::Busy {
            continue;
        }
        let fds = channel.fds();
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds: Vec<_> = fds.into_iter().map(watch).collect();
        let tick = Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&tick)).unwrap();
    }
    assert_eq!(done.len(), count);
    done.sort_by_key(|done| done.token);
    done
}

/// Submits `request` and waits for its answer.
pub(super) fn one(channel: &mut dyn Channel, request: Request) -> Done {
    channel.submit(&mut vec![request]);
    wait(channel, 1).remove(0)
}
