//! An io_uring that owns the memory of what is in flight in it.
//!
//! The kernel reads and writes memory after the call that told it to. So whoever starts something
//! here gives its memory away, and has it back with the answer: until then nobody can undo the
//! mapping, and nobody can change the list of pieces that the kernel was given.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use vvu::memory::Scatter;

use crate::mempool::{Mbuf, Mempool};

/// How long a ring waits for what is in flight when it is dropped.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the kernel's thread goes on polling for submissions, in milliseconds.
const SQPOLL_IDLE: u32 = 50;

/// The memory of something in flight.
#[derive(Debug)]
pub(super) enum Memory {
    /// None is needed.
    None,
    /// The pieces of a request.
    Pieces(Box<Scatter>),
    /// A buffer of ours: what was appended to it. If buffers were registered, it is one of those.
    Buffer(Mbuf),
}

/// What the kernel shall do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    /// Read into the memory.
    Read { offset: u64 },
    /// Write the memory; with `through`, until it has reached the medium.
    Write { offset: u64, through: bool },
    /// All that was written reaches the medium.
    Sync,
    /// fallocate(2) with these flags.
    Allocate { mode: i32, offset: u64, len: u64 },
}

/// See the [module](self).
pub(super) struct Uring {
    uring: IoUring,
    /// The one file, which is registered as number 0.
    _file: Arc<OwnedFd>,
    event: OwnedFd,
    /// By token.
    flying: Box<[Option<Memory>]>,
    count: usize,
    /// Entries that the kernel did not take yet.
    unsubmitted: bool,
    /// The eventfd is signalled at completions.
    armed: bool,
    /// Where buffers are from, registered as number 0. It goes behind the ring.
    registered: Option<Arc<Mempool>>,
}

impl Uring {
    /// A ring for at most `depth` requests to `file`, with a thread of the kernel that looks for
    /// submissions if `sqpoll` says so.
    pub(super) fn new(file: Arc<OwnedFd>, depth: u16, sqpoll: bool) -> std::io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork();
        if sqpoll {
            builder.setup_sqpoll(SQPOLL_IDLE);
        } else {
            // Completions are looked for often: nobody has to be interrupted for them.
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        let mut uring: IoUring = builder.build(depth.into())?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let submitter = uring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(event.as_raw_fd())?;
        uring.completion().disable_eventfd();
        Ok(Self {
            uring,
            _file: file,
            event,
            flying: (0..depth).map(|_| None).collect(),
            count: 0,
            unsubmitted: false,
            armed: false,
            registered: None,
        })
    }

    /// The kernel keeps the pages of all buffers of `pool` at hand, for as long as this lives,
    /// instead of looking for those of a buffer at each request. From now on all buffers are from
    /// there. It fails if more memory would be locked than is allowed.
    pub(super) fn register(&mut self, pool: &Arc<Mempool>) -> std::io::Result<()> {
        let all = pool.memory();
        let list = [libc::iovec {
            iov_base: all.ptr_guard_mut().as_ptr().cast(),
            iov_len: all.len(),
        }];
        // SAFETY: this is the memory of `pool`, which stays mapped while that lives. We keep it
        // from now on, and let go of the ring first.
        unsafe { self.uring.submitter().register_buffers(&list)? };
        self.registered = Some(Arc::clone(pool));
        Ok(())
    }

    /// What is signalled at completions, once armed.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Starts `action`, which [`Uring::submit`] tells the kernel. Gives the memory back if there is
    /// no room, or the token is in use.
    #[inline]
    pub(super) fn start(
        &mut self,
        token: u16,
        action: Action,
        memory: Memory,
    ) -> Result<(), Memory> {
        let Some(place) = self.flying.get_mut(usize::from(token)) else {
            return Err(memory);
        };
        if place.is_some() {
            return Err(memory);
        }
        let fixed = self.registered.is_some();
        let entry = entry(action, &memory, fixed).user_data(token.into());
        // SAFETY: what the entry points to are the pieces of `memory`, which their owner keeps
        // mapped, and the list of them, which is on the heap and does not move. On success
        // `memory` is kept in `flying`, unchanged and not dropped, until the kernel has answered:
        // `completed` takes it out then, and `drop` waits or forgets it.
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            return Err(memory);
        }
        *place = Some(memory);
        self.count += 1;
        self.unsubmitted = true;
        Ok(())
    }

    /// Tells the kernel what was started. Never waits; what it does not take now it is told at the
    /// next call.
    #[inline]
    pub(super) fn submit(&mut self) {
        if self.unsubmitted {
            // EAGAIN, EBUSY, EINTR: later. Anything else would have been one at the first time.
            let _ = self.uring.submit();
            self.unsubmitted = !self.uring.submission().is_empty();
        }
    }

    /// What the kernel has done by now: the token, the memory, and the system call's result, or
    /// the negative errno.
    #[inline]
    pub(super) fn completed(&mut self, mut each: impl FnMut(u16, Memory, i32)) {
        if std::mem::take(&mut self.armed) {
            self.uring.completion().disable_eventfd();
        }
        // The kernel's own work on completions is done in the call, too.
        if self.unsubmitted || self.uring.submission().taskrun() {
            let _ = self.uring.submit();
            self.unsubmitted = !self.uring.submission().is_empty();
        }
        for answer in self.uring.completion() {
            let Ok(token) = u16::try_from(answer.user_data()) else {
                continue;
            };
            let place = self.flying.get_mut(usize::from(token));
            if let Some(memory) = place.and_then(Option::take) {
                self.count -= 1;
                each(token, memory, answer.result());
            }
        }
    }

    /// Signals the eventfd at the next completion. True if there is one already.
    pub(super) fn arm(&mut self) -> bool {
        self.submit();
        self.uring.completion().enable_eventfd();
        self.armed = true;
        // Pairs with the kernel's barrier between posting a completion and reading the flag:
        // either it signals, or we see the completion.
        fence(Ordering::SeqCst);
        let posted = !self.uring.completion().is_empty();
        posted || self.uring.submission().taskrun() || self.unsubmitted
    }

    /// How much is in flight.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// What the kernel is told, without the token; `fixed` if our buffers are registered.
#[inline]
fn entry(action: Action, memory: &Memory, fixed: bool) -> squeue::Entry {
    const FILE: types::Fixed = types::Fixed(0);
    const BUFFERS: u16 = 0;
    let flags = |through| if through { libc::RWF_DSYNC } else { 0 };
    match (action, memory) {
        (Action::Read { offset }, Memory::Buffer(buffer)) if fixed => {
            let (start, len) = bytes(buffer);
            let read = opcode::ReadFixed::new(FILE, start, len, BUFFERS);
            read.offset(offset).build()
        }
        (Action::Read { offset }, Memory::Buffer(buffer)) => {
            let (start, len) = bytes(buffer);
            opcode::Read::new(FILE, start, len).offset(offset).build()
        }
        (Action::Read { offset }, Memory::Pieces(pieces)) => {
            let (list, count) = pieces.iovecs();
            let read = opcode::Readv::new(FILE, list, count);
            read.offset(offset).build()
        }
        (Action::Write { offset, through }, Memory::Buffer(buffer)) if fixed => {
            let (start, len) = bytes(buffer);
            let write = opcode::WriteFixed::new(FILE, start, len, BUFFERS).offset(offset);
            write.rw_flags(flags(through)).build()
        }
        (Action::Write { offset, through }, Memory::Buffer(buffer)) => {
            let (start, len) = bytes(buffer);
            let write = opcode::Write::new(FILE, start, len).offset(offset);
            write.rw_flags(flags(through)).build()
        }
        (Action::Write { offset, through }, Memory::Pieces(pieces)) => {
            let (list, count) = pieces.iovecs();
            let write = opcode::Writev::new(FILE, list, count).offset(offset);
            write.rw_flags(flags(through)).build()
        }
        (Action::Sync, _) => {
            let sync = opcode::Fsync::new(FILE);
            sync.flags(types::FsyncFlags::DATASYNC).build()
        }
        (Action::Allocate { mode, offset, len }, _) => {
            let allocate = opcode::Fallocate::new(FILE, len);
            allocate.offset(offset).mode(mode).build()
        }
        // Nothing is moved without memory.
        (Action::Read { .. } | Action::Write { .. }, Memory::None) => opcode::Nop::new().build(),
    }
}

/// What was appended to a buffer, as the kernel takes it.
fn bytes(buffer: &Mbuf) -> (*mut u8, u32) {
    match buffer.bytes() {
        Some(slice) => (
            slice.ptr_guard_mut().as_ptr(),
            u32::try_from(slice.len()).unwrap_or(u32::MAX),
        ),
        None => (std::ptr::null_mut(), 0),
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let start = Instant::now();
        while self.count > 0 && start.elapsed() < PATIENCE {
            self.submit();
            self.completed(|_, memory, _| drop(memory));
            if self.count > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if self.count > 0 {
            tracing::error!(
                left = self.count,
                "the kernel keeps the memory of requests for ever"
            );
            // It may still write there: it stays mapped.
            std::mem::forget(std::mem::take(&mut self.flying));
        }
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("flying", &self.count)
            .finish()
    }
}
