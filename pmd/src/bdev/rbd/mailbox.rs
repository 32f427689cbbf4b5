//! Where the library's threads leave what is over, and a worker finds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

use super::library::Over;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Mailbox {
    over: SegQueue<Over>,
    event: OwnedFd,
    /// The worker wants to be told.
    armed: AtomicBool,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            over: SegQueue::new(),
            event,
            armed: AtomicBool::new(false),
        })
    }

    /// Leaves something.
    pub(super) fn put(&self, over: Over) {
        self.over.push(over);
        // Pairs with the fence in `arm`: either the worker's last look finds it, or we see that
        // it wants to be told.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Takes the oldest.
    pub(super) fn take(&self) -> Option<Over> {
        self.over.pop()
    }

    /// The next one is told; false if there is one already.
    pub(super) fn arm(&self) -> bool {
        self.armed.store(true, Ordering::Relaxed);
        // Pairs with the fence in `put`.
        fence(Ordering::SeqCst);
        self.over.is_empty()
    }

    /// What becomes readable.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
