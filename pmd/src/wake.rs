//! What wakes a worker: kicks of rings it serves, mail, and frames from other workers.
//!
//! A [`Waker`] holds the one place where a worker sleeps. All descriptors are watched
//! edge-triggered: each signal wakes at most once and nothing needs to be read back, so a front-end
//! can neither keep a worker awake with a stale kick nor make it block. This room does not know
//! what a worker does when awake.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use vvu::notify::Kick;

/// Whether and how a sleeping worker hears of the next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// There is something already (or always).
    Busy,
    /// A kick will come.
    Kicked,
    /// Nothing will come: look again in intervals.
    Polled,
}

impl Quiet {
    /// What holds for two things together.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Busy, _) | (_, Self::Busy) => Self::Busy,
            (Self::Polled, _) | (_, Self::Polled) => Self::Polled,
            _ => Self::Kicked,
        }
    }
}

/// A worker's bed. See the [module](self).
#[derive(Debug)]
pub struct Waker {
    epoll: OwnedFd,
    event: OwnedFd,
    sleeping: AtomicBool,
}

impl Waker {
    /// Makes one, watching nothing but [`Waker::wake`].
    pub fn new() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &event, EventData::new_u64(0), edge)?;
        Ok(Arc::new(Self {
            epoll,
            event,
            sleeping: AtomicBool::new(false),
        }))
    }

    /// Wakes the sleeper if there is one. Whatever it shall find must have been stored before.
    pub fn wake(&self) {
        // Pairs with the fence in `sleep`: either the sleeper's last look finds what was stored,
        // or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Sleeps until a kick, a wake or the end of `timeout`; not at all if `ready` says, at the
    /// last look, that there is something to do.
    pub fn sleep(&self, timeout: Option<Duration>, ready: impl FnOnce() -> bool) {
        self.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        if !ready() {
            let timeout = timeout.map(|t| Timespec {
                tv_sec: t.as_secs() as _,
                tv_nsec: t.subsec_nanos() as _,
            });
            let mut events = [const { std::mem::MaybeUninit::uninit() }; 32];
            // An interrupted wait is a short one.
            let _ = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref());
        }
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Lets `kick` wake the sleeper from now on.
    pub fn watch(self: &Arc<Self>, kick: Kick) -> io::Result<Watch> {
        if let Some(fd) = kick.fd() {
            let edge = EventFlags::IN | EventFlags::ET;
            epoll::add(&self.epoll, fd, EventData::new_u64(1), edge)?;
        }
        Ok(Watch {
            waker: Arc::clone(self),
            kick,
        })
    }
}

/// A kick that wakes a worker for as long as this value lives.
#[derive(Debug)]
pub struct Watch {
    waker: Arc<Waker>,
    kick: Kick,
}

impl Watch {
    /// Whether there is no kick to wait for, so that the ring must be looked at in intervals.
    pub fn is_polled(&self) -> bool {
        self.kick.fd().is_none()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closing is not enough: the front-end holds the same open file.
        if let Some(fd) = self.kick.fd() {
            let _ = epoll::delete(&self.waker.epoll, fd);
        }
    }
}
