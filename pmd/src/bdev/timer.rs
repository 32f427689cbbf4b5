//! A moment at which a descriptor becomes readable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that a sleeping worker hears. It is never read: each setting signals once.
#[derive(Debug)]
pub(super) struct Timer {
    fd: OwnedFd,
    /// When it goes off, if it has not been found gone off.
    at: Option<Instant>,
}

impl Timer {
    /// One that is not set.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd, at: None })
    }

    /// Goes off at `at`, or before: one that is set to go off sooner stays, because a wake-up for
    /// nothing costs less than the system call to prevent it.
    pub(super) fn set(&mut self, at: Instant, now: Instant) {
        if self.at.is_some_and(|set| set > now && set <= at) {
            return;
        }
        // Zero would disarm it.
        let wait = at
            .saturating_duration_since(now)
            .max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait).unwrap_or_default(),
        };
        let set = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once);
        // The kernel refuses only what is no time at all, which `Timespec` does not make.
        debug_assert!(set.is_ok());
        self.at = Some(at);
    }

    /// What becomes readable.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
