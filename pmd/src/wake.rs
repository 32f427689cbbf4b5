//! What wakes a worker: kicks of rings it serves, mail, and frames from other workers.
//!
//! A [`Waker`] holds the one place where a worker sleeps. All descriptors are watched
//! edge-triggered: each signal wakes at most once and nothing needs to be read back, so a front-end
//! can neither keep a worker awake with a stale kick nor make it block. A worker that is awake can
//! ask which kicks came ([`Waker::look`]), so that it need not poll what rarely has something. This
//! room does not know what a worker does when awake.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
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

/// How often a ring is found unchanged before it rests.
pub(crate) const PATIENCE: u8 = 4;

/// How a ring is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// Each round looks at it.
    #[default]
    Polled,
    /// It will be kicked, because the worker sleeps.
    Armed,
    /// It will be kicked, because it had nothing for long.
    Resting,
}

/// What is known about a ring's activity.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    pub(crate) mode: Mode,
    /// Chains that it brought, in all, modulo 2^32. Where the ring stands would not do: a packed
    /// ring is soon at the same place again.
    pub(crate) brought: u32,
    /// How many there were at the last look...
    seen: u32,
    /// ...and how many looks in a row found no more.
    unchanged: u8,
}

impl Rest {
    /// Whether the ring had nothing for long.
    pub(crate) fn is_due(&mut self) -> bool {
        if std::mem::replace(&mut self.seen, self.brought) == self.brought {
            self.unchanged = self.unchanged.saturating_add(1);
        } else {
            self.unchanged = 0;
        }
        self.unchanged >= PATIENCE
    }

    /// Each round looks at it from now on.
    pub(crate) fn poll(&mut self) {
        self.mode = Mode::Polled;
        self.unchanged = 0;
    }
}

/// Most kicks heard of at once; the others are heard of the next time.
const KICKS: usize = 32;

/// Which kicks came.
#[derive(Debug, Default)]
pub struct Kicks {
    ids: [u64; KICKS],
    len: usize,
}

impl Kicks {
    /// Whether `watch` was kicked.
    pub fn has(&self, watch: &Watch) -> bool {
        let ids = self.ids.get(..self.len).unwrap_or(&[]);
        ids.contains(&watch.id)
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn take(&mut self, events: &[Event]) {
        self.len = 0;
        let ids = events.iter().map(|event| event.data.u64());
        for (place, id) in self.ids.iter_mut().zip(ids.filter(|&id| id != WAKE)) {
            *place = id;
            self.len += 1;
        }
    }
}

/// What [`Waker::wake`] is called among the kicks.
const WAKE: u64 = 0;

/// A worker's bed. See the [module](self).
#[derive(Debug)]
pub struct Waker {
    epoll: OwnedFd,
    event: OwnedFd,
    sleeping: AtomicBool,
    /// The next kick's name. None comes twice: one that is late is nobody else's.
    next_id: AtomicU64,
}

impl Waker {
    /// Makes one, watching nothing but [`Waker::wake`].
    pub fn new() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &event, EventData::new_u64(WAKE), edge)?;
        Ok(Arc::new(Self {
            epoll,
            event,
            sleeping: AtomicBool::new(false),
            next_id: AtomicU64::new(WAKE + 1),
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
    /// last look, that there is something to do. Says which kicks came.
    pub fn sleep(
        &self,
        timeout: Option<Duration>,
        kicks: &mut Kicks,
        ready: impl FnOnce() -> bool,
    ) {
        self.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        // What came already is asked for in any case.
        let timeout = if ready() {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        self.wait(timeout, kicks);
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Says which kicks came since the last look, without sleeping.
    pub fn look(&self, kicks: &mut Kicks) {
        self.wait(Some(Duration::ZERO), kicks);
    }

    fn wait(&self, timeout: Option<Duration>, kicks: &mut Kicks) {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as _,
            tv_nsec: t.subsec_nanos() as _,
        });
        let mut events = [const { MaybeUninit::uninit() }; KICKS];
        // An interrupted wait is a short one.
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((events, _)) => kicks.take(events),
            Err(_) => kicks.len = 0,
        }
    }

    /// Lets `kick` wake the sleeper from now on.
    pub fn watch(self: &Arc<Self>, kick: Kick) -> io::Result<Watch> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if let Some(fd) = kick.fd() {
            let edge = EventFlags::IN | EventFlags::ET;
            epoll::add(&self.epoll, fd, EventData::new_u64(id), edge)?;
        }
        Ok(Watch {
            waker: Arc::clone(self),
            kick,
            id,
        })
    }
}

/// A kick that wakes a worker for as long as this value lives.
#[derive(Debug)]
pub struct Watch {
    waker: Arc<Waker>,
    kick: Kick,
    id: u64,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mock::{kick, signal};

    #[test]
    fn who_kicked_is_known_once() {
        let waker = Waker::new().unwrap();
        let ((one, ring_one), (two, ring_two)) = (kick(), kick());
        let (one, two) = (waker.watch(one).unwrap(), waker.watch(two).unwrap());
        let mut kicks = Kicks::default();
        waker.look(&mut kicks);
        assert!(kicks.is_empty());
        signal(&ring_two);
        waker.look(&mut kicks);
        assert!(kicks.has(&two) && !kicks.has(&one));
        waker.look(&mut kicks);
        assert!(kicks.is_empty(), "a kick is heard of once");
        // Nobody reads the eventfds; each signal counts all the same.
        signal(&ring_one);
        signal(&ring_two);
        waker.sleep(None, &mut kicks, || false);
        assert!(kicks.has(&two) && kicks.has(&one));
        drop(one);
        signal(&ring_one);
        waker.look(&mut kicks);
        assert!(kicks.is_empty(), "nobody waits for it any more");
    }

    #[test]
    fn more_kicks_than_fit_come_the_next_time() {
        let waker = Waker::new().unwrap();
        let rings: Vec<_> = (0..100).map(|_| kick()).collect();
        let mut watches = Vec::new();
        for (kick, ring) in rings {
            watches.push(waker.watch(kick).unwrap());
            signal(&ring);
        }
        let mut heard = 0;
        let mut kicks = Kicks::default();
        for _ in 0..watches.len() {
            waker.look(&mut kicks);
            heard += watches.iter().filter(|watch| kicks.has(watch)).count();
        }
        assert_eq!(heard, watches.len());
    }
}
