//! What to wait on: MSI-X vectors, and a timer for what has no vector.
//!
//! | vectors | config | rxq | txq | kick of ring i |
//! |---|---|---|---|---|
//! | 3 + n | 0 | 1 | 2 | 3 + i for i < n |
//! | 2 | 0 | 1 | - | - |
//! | 1 | 0 | 0 | - | - |
//! | 0 | timer | timer | - | - |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// First vector that belongs to a ring.
const FIRST_KICK: u16 = 3;

/// How often to look when the device cannot interrupt.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How often a sender that waits looks, whether or not there is an interrupt for it.
const SEND_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Events {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// Readable while there is work that no interrupt announces.
    work: OwnedFd,
    vectors: Vec<OwnedFd>,
    /// Hangs up when the function is gone; in the poll set until then.
    hangup: Option<OwnedFd>,
    /// Which rings' kick vectors the device granted.
    kicks: Vec<bool>,
    /// The device refused the vector of its configuration or of rxq.
    pub(super) deaf: bool,
}

impl Events {
    /// How many vectors to enable for `rings` rings, of those that the function has.
    pub(super) fn wanted(available: u16, rings: u16) -> u16 {
        available.min(FIRST_KICK.saturating_add(rings))
    }

    pub(super) fn new() -> std::io::Result<Self> {
        let events = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            work: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            vectors: Vec::new(),
            hangup: None,
            kicks: Vec::new(),
            deaf: true,
        };
        for fd in [&events.timer, &events.work] {
            events.watch(fd.as_fd(), epoll::EventFlags::IN)?;
        }
        Ok(events)
    }

    /// Waits for a function's vectors and its end from now on, instead of another's.
    pub(super) fn listen_to(
        &mut self,
        vectors: Vec<OwnedFd>,
        hangup: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<()> {
        for fd in self
            .control_fds()
            .chain(self.hangup.as_ref().map(AsFd::as_fd))
        {
            let _ = epoll::delete(&self.epoll, fd);
        }
        self.hangup = hangup.map(|fd| fd.try_clone_to_owned()).transpose()?;
        self.kicks = vec![false; vectors.len().saturating_sub(FIRST_KICK.into())];
        self.deaf = vectors.is_empty();
        self.vectors = vectors;
        // Config and rxq. A kick is for whoever serves the ring, txq's for a sender that waits.
        for fd in self.control_fds() {
            self.watch(fd, epoll::EventFlags::IN)?;
        }
        if let Some(fd) = &self.hangup {
            self.watch(fd.as_fd(), epoll::EventFlags::RDHUP)?;
        }
        Ok(())
    }

    fn watch(&self, fd: BorrowedFd<'_>, flags: epoll::EventFlags) -> std::io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(0),
            flags,
        )?)
    }

    fn control_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vectors.iter().take(2).map(AsFd::as_fd)
    }

    fn vector(&self, vector: u16) -> Option<u16> {
        (usize::from(vector) < self.vectors.len()).then_some(vector)
    }

    pub(super) fn config_vector(&self) -> Option<u16> {
        self.vector(0)
    }

    /// The vector of rxq (0) or txq (1).
    pub(super) fn queue_vector(&self, queue: u16) -> Option<u16> {
        match queue {
            0 => self.vector(1).or_else(|| self.vector(0)),
            _ => self.vector(2),
        }
    }

    pub(super) fn kick_vector(&self, ring: u16) -> Option<u16> {
        self.vector(ring.checked_add(FIRST_KICK)?)
    }

    /// How many rings have a kick vector, if the device accepts it.
    pub(super) fn kick_vectors(&self) -> u16 {
        u16::try_from(self.kicks.len()).unwrap_or(u16::MAX)
    }

    /// Notes whether the device accepted a ring's kick vector, and forgets earlier kicks.
    pub(super) fn grant_kick(&mut self, ring: u16, granted: bool) {
        if let Some(slot) = self.kicks.get_mut(usize::from(ring)) {
            *slot = granted;
        }
        if let Some(fd) = self.kick(ring) {
            clear(fd);
        }
    }

    pub(super) fn kick(&self, ring: u16) -> Option<BorrowedFd<'_>> {
        let granted = *self.kicks.get(usize::from(ring))?;
        let fd = self
            .vectors
            .get(usize::from(ring.checked_add(FIRST_KICK)?))?;
        granted.then(|| fd.as_fd())
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Makes the poll descriptor readable.
    pub(super) fn poke(&self) {
        let _ = rustix::io::write(&self.work, &1u64.to_ne_bytes());
    }

    /// Makes the poll descriptor unreadable until something new happens.
    pub(super) fn clear(&mut self) {
        // A hang-up is for good: once is enough.
        if let Some(fd) = self.hangup.take_if(|fd| has_hung_up(fd)) {
            let _ = epoll::delete(&self.epoll, &fd);
        }
        for fd in [self.work.as_fd(), self.timer.as_fd()]
            .into_iter()
            .chain(self.control_fds())
        {
            clear(fd);
        }
    }

    /// Makes the poll descriptor readable after `delay`, or after the polling interval if the
    /// device cannot interrupt.
    pub(super) fn wake_after(&self, delay: Option<Duration>) {
        let interval = self.deaf.then_some(POLL_INTERVAL);
        let delay = delay.into_iter().chain(interval).min();
        let value = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            // Zero disarms the timer.
            it_value: timespec(delay.unwrap_or(Duration::ZERO)),
        };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value);
    }

    /// Waits a little for the device to take what was sent.
    pub(super) fn wait_sent(&self) {
        let Some(fd) = self.vectors.get(2) else {
            std::thread::sleep(POLL_INTERVAL);
            return;
        };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        // Whatever comes of it, the sender looks at the queue next.
        let _ = poll(&mut fds, Some(&timespec(SEND_INTERVAL)));
        clear(fd.as_fd());
    }
}

fn clear(fd: BorrowedFd<'_>) {
    // Non-blocking: there being nothing to take is no error.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

fn has_hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}
