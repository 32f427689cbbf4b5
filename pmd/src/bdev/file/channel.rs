//! One worker's way to a file: what is in flight, and what goes through buffers of ours.
//!
//! A request whose memory the kernel can use is one system call's worth: its pieces as they are.
//! Others go piece by piece through a buffer of the disk's pool: those in memory that cannot be
//! pinned, or not aligned as direct I/O needs it; what a short read or write left over; zeroes
//! that the filesystem cannot make by itself. Requests that find no buffer wait until one is
//! free. A direct file's buffers are registered with the kernel when the first one is needed.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vvu::memory::{VolatileSlice, copy};

use super::Shared;
use super::uring::{Action, Memory, Uring};
use crate::bdev::{Channel, Data, Done, IoError, Op, Request};
use crate::mempool::Mbuf;
use crate::wake::Quiet;

/// Most requests that the kernel is told of at once; the others wait here.
pub(super) const DEPTH: u16 = 256;

/// Bytes of a buffer.
pub(super) const BUFFER: usize = 128 << 10;

/// How often the kernel may ask for one more try.
const TRIES: u8 = 16;

/// Zeroes to copy from.
static ZEROES: [u8; 4096] = [0; 4096];

/// How a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In one go.
    Whole,
    /// Through a buffer, a part at a time.
    Parts,
    /// Zeroes through a buffer.
    Zeroes,
}

/// A request that has been submitted.
#[derive(Debug)]
struct Job {
    request: Request,
    way: Way,
    /// Bytes that are done.
    at: u64,
    /// Times that the kernel asked for one more try.
    tries: u8,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct FileChannel {
    shared: Arc<Shared>,
    uring: Uring,
    jobs: Box<[Option<Job>]>,
    free: Vec<u16>,
    /// Requests that found no place among the jobs.
    queue: VecDeque<Request>,
    /// Jobs that found no buffer.
    waiting: VecDeque<u16>,
    /// What the kernel said last.
    answers: Vec<(u16, Memory, i32)>,
    /// Answered and not reaped.
    done: Vec<Done>,
    /// The pool's buffers may be registered, and nobody tried.
    registers: bool,
}

impl FileChannel {
    pub(super) fn new(shared: Arc<Shared>, sqpoll: bool) -> std::io::Result<Self> {
        Ok(Self {
            uring: Uring::new(Arc::clone(&shared.file), DEPTH, sqpoll)?,
            registers: shared.align.is_some(),
            shared,
            jobs: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            answers: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Begins a request, or keeps it for later.
    #[inline]
    fn begin(&mut self, request: Request) {
        let (size, block) = (self.shared.size.get(), self.shared.block);
        let moves = matches!(request.op, Op::Read | Op::Write);
        let result = match request.check(size, block) {
            Ok(()) if request.op != Op::Read && self.shared.read_only => match request.op {
                Op::Flush => Ok(()),
                _ => Err(IoError::ReadOnly),
            },
            result => result,
        };
        if result.is_err() || (request.op != Op::Flush && request.len == 0) {
            self.done.push(request.done(result));
            return;
        }
        let Some(token) = self.free.pop() else {
            self.queue.push_back(request);
            return;
        };
        let direct = request.data.as_ref().is_some_and(|d| self.shared.takes(d));
        let way = if moves && !direct {
            Way::Parts
        } else {
            Way::Whole
        };
        self.go(
            token,
            Job {
                request,
                way,
                at: 0,
                tries: 0,
            },
        );
    }

    /// Starts the next part of a job.
    #[inline]
    fn go(&mut self, token: u16, mut job: Job) {
        let Request {
            op,
            offset,
            len,
            fua,
            ..
        } = job.request;
        let started = if job.way == Way::Whole {
            let memory = job.request.data.take();
            let (action, memory) = match (op, memory) {
                (Op::Read, Some(list)) => (Action::Read { offset }, Memory::Pieces(list)),
                (Op::Write, Some(list)) => {
                    let through = fua;
                    (Action::Write { offset, through }, Memory::Pieces(list))
                }
                (op, memory) => {
                    // It is not read or written, and comes back with the answer all the same.
                    job.request.data = memory;
                    let mode = match op {
                        Op::WriteZeroes { unmap: false } => {
                            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
                        }
                        _ => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    };
                    match op {
                        Op::Flush => (Action::Sync, Memory::None),
                        _ => (Action::Allocate { mode, offset, len }, Memory::None),
                    }
                }
            };
            self.uring.start(token, action, memory)
        } else {
            if self.registers {
                self.register();
            }
            let Some(buffer) = self.fill(&job) else {
                self.waiting.push_back(token);
                self.place(token, job);
                return;
            };
            let offset = offset.saturating_add(job.at);
            let action = match op {
                Op::Read => Action::Read { offset },
                _ => Action::Write {
                    offset,
                    through: fua,
                },
            };
            self.uring.start(token, action, Memory::Buffer(buffer))
        };
        if let Err(memory) = started {
            // It was made for as many as there are tokens.
            if let Memory::Pieces(list) = memory {
                job.request.data = Some(list);
            }
            self.end(token, job, Err(IoError::Io(libc::EAGAIN)));
            return;
        }
        self.place(token, job);
    }

    #[inline]
    fn place(&mut self, token: u16, job: Job) {
        if let Some(place) = self.jobs.get_mut(usize::from(token)) {
            *place = Some(job);
        }
    }

    /// Only when the first buffer is needed, because all of them are there from then on.
    #[cold]
    fn register(&mut self) {
        self.registers = false;
        let result = self.uring.register(&self.shared.pool);
        let (disk, error) = (&self.shared.name, result.err());
        match error {
            None => tracing::debug!(disk, "buffers are registered"),
            Some(error) => {
                tracing::debug!(disk, %error, "buffers cannot be registered, and are used all the same");
            }
        }
    }

    /// A buffer with the next bytes to write, or room for the next bytes to read.
    fn fill(&self, job: &Job) -> Option<Mbuf> {
        let left = job.request.len.saturating_sub(job.at);
        let len = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        let mut buffer = self.shared.pool.alloc()?;
        let room = buffer.append(len)?;
        match job.way {
            Way::Zeroes => {
                let mut at = 0;
                while at < len {
                    at += copy::write_at(&ZEROES, room, at);
                }
            }
            _ if job.request.op == Op::Write => {
                let mut at = 0;
                each_at(&job.request.data, job.at, |piece, skip| {
                    let part = piece.offset(skip);
                    at += part.map_or(0, |part| copy::across_at(part, room, at));
                    at < len
                });
            }
            _ => {}
        }
        Some(buffer)
    }

    /// The kernel has answered.
    #[inline]
    fn answered(&mut self, token: u16, memory: Memory, result: i32) {
        let job = self.jobs.get_mut(usize::from(token));
        let Some(mut job) = job.and_then(Option::take) else {
            return;
        };
        let buffer = match memory {
            Memory::Pieces(list) => {
                job.request.data = Some(list);
                None
            }
            Memory::Buffer(buffer) => Some(buffer),
            Memory::None => None,
        };
        if result < 0 {
            return self.failed(token, job, -result);
        }
        if !matches!(job.request.op, Op::Read | Op::Write) && job.way == Way::Whole {
            // Zeroes that reach the medium only with what is written after them do not count.
            return match (job.request.op, job.request.fua) {
                (Op::WriteZeroes { .. }, true) => {
                    job.request.fua = false;
                    self.sync(token, job)
                }
                _ => self.end(token, job, Ok(())),
            };
        }
        let moved = u64::from(result.unsigned_abs());
        if moved == 0 {
            // The file ends before the disk does.
            return self.end(token, job, Err(IoError::Io(libc::EIO)));
        }
        if let (Some(buffer), Op::Read) = (&buffer, job.request.op) {
            self.unload(&job, buffer, moved);
        }
        drop(buffer);
        job.at = job.at.saturating_add(moved);
        if job.at >= job.request.len {
            return self.end(token, job, Ok(()));
        }
        if job.way == Way::Whole {
            job.way = Way::Parts;
        }
        self.go(token, job);
    }

    /// A flush after something that is not written through by itself.
    fn sync(&mut self, token: u16, job: Job) {
        match self.uring.start(token, Action::Sync, Memory::None) {
            Ok(()) => self.place(token, job),
            Err(_) => self.end(token, job, Err(IoError::Io(libc::EAGAIN))),
        }
    }

    /// Copies what was read to where it was wanted.
    fn unload(&self, job: &Job, buffer: &Mbuf, moved: u64) {
        let Some(bytes) = buffer.bytes() else {
            return;
        };
        let mut at = 0;
        let moved = usize::try_from(moved).unwrap_or(0).min(bytes.len());
        each_at(&job.request.data, job.at, |piece, skip| {
            if let Ok(part) = bytes.subslice(at, moved - at) {
                at += copy::across_at(part, piece, skip);
            }
            at < moved
        });
    }

    #[cold]
    fn failed(&mut self, token: u16, mut job: Job, errno: i32) {
        let zeroes = matches!(job.request.op, Op::WriteZeroes { .. });
        match errno {
            // Filesystems that cannot are given zeroes.
            libc::EOPNOTSUPP if zeroes && job.way == Way::Whole => {
                job.way = Way::Zeroes;
                self.go(token, job);
            }
            // Memory that looked as if the kernel could use it.
            libc::EFAULT | libc::EINVAL
                if job.way == Way::Whole && matches!(job.request.op, Op::Read | Op::Write) =>
            {
                job.way = Way::Parts;
                self.go(token, job);
            }
            libc::EAGAIN | libc::EINTR if job.tries < TRIES => {
                job.tries += 1;
                self.go(token, job);
            }
            errno => self.end(token, job, Err(IoError::from_errno(errno))),
        }
    }

    #[inline]
    fn end(&mut self, token: u16, job: Job, result: Result<(), IoError>) {
        if let Err(error) = result {
            self.shared.complain(&job.request, error);
        }
        self.free.push(token);
        self.done.push(job.request.done(result));
    }

    /// What the kernel has done, and what can go on because of it.
    #[inline]
    fn collect(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        self.uring
            .completed(|token, memory, result| answers.push((token, memory, result)));
        for (token, memory, result) in answers.drain(..) {
            self.answered(token, memory, result);
        }
        self.answers = answers;
        for _ in 0..self.waiting.len() {
            let Some(token) = self.waiting.pop_front() else {
                break;
            };
            let job = self.jobs.get_mut(usize::from(token));
            if let Some(job) = job.and_then(Option::take) {
                self.go(token, job);
            }
        }
        while !self.free.is_empty()
            && let Some(request) = self.queue.pop_front()
        {
            self.begin(request);
        }
        self.uring.submit();
    }
}

/// Shows `what` the pieces of `data` from byte `skip` on, each with how much of it is skipped,
/// until it says no.
fn each_at(data: &Data, skip: u64, mut what: impl FnMut(VolatileSlice<'_>, usize) -> bool) {
    let Ok(mut skip) = usize::try_from(skip) else {
        return;
    };
    for piece in data.iter().flat_map(|data| data.pieces()) {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        if !what(piece, std::mem::take(&mut skip)) {
            break;
        }
    }
}

impl Channel for FileChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        for request in requests.drain(..) {
            self.begin(request);
        }
        self.uring.submit();
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        self.collect();
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        let free = self.free.len();
        self.jobs.len() - free + self.queue.len() + self.done.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.uring.event()]
    }

    fn arm(&mut self) -> Quiet {
        if !self.done.is_empty() {
            return Quiet::Busy;
        }
        match (self.uring.count(), self.waiting.is_empty()) {
            (0, true) => Quiet::Kicked,
            _ if self.uring.arm() => Quiet::Busy,
            (_, true) => Quiet::Kicked,
            // The buffers are with another worker's requests.
            (_, false) => Quiet::Polled,
        }
    }
}
