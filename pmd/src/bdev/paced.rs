//! A disk whose requests wait before they reach it: for their share of what is allowed
//! ([`Throttle`]), or for a while ([`Delay`]).
//!
//! What waits is kept by the channel that it was submitted to, and its worker goes on with other
//! work. A request gets its time when it is submitted, on a clock that all channels of the disk
//! share: who comes first goes first, whichever worker it is on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::held::Held;
use super::{Abilities, Channel, Disk, DiskError, Done, Geometry, Op, Request, Size};
use crate::wake::Quiet;
use std::os::fd::BorrowedFd;

/// Says when a request may go on.
trait Pace: std::fmt::Debug + Send + Sync + 'static {
    fn at(&self, now: Instant, request: &Request) -> Instant;
}

/// Limits of a [`Throttle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Requests per second.
    pub requests: Option<u64>,
    /// Bytes read and written per second.
    pub bytes: Option<u64>,
    /// After a pause, what was allowed in this time comes at once.
    pub burst: Duration,
}

/// What a time's worth is used up by, in nanoseconds on the disk's own clock.
///
/// The moment up to which all is used up: what comes next may go on then. It is never more than
/// the burst in the past.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Uses up `cost`, and returns the moment from which on.
    fn take(&self, now: u64, burst: u64, cost: u64) -> u64 {
        let from = |used: u64| used.max(now.saturating_sub(burst));
        let add = |used| Some(from(used).saturating_add(cost));
        // Relaxed: the number says nothing of anything else.
        let used = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        from(used.unwrap_or_else(|used| used))
    }
}

const SECOND: u64 = 1_000_000_000;

/// At most so many requests and bytes per second.
///
/// A token bucket for each, kept as the moment until which everything is given away already. A
/// request that is longer than the burst goes on at once when nothing is owed, and those after it
/// wait the longer.
#[derive(Debug)]
struct Rated {
    rates: Rates,
    start: Instant,
    requests: Bucket,
    bytes: Bucket,
}

impl Pace for Rated {
    fn at(&self, now: Instant, request: &Request) -> Instant {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let burst = nanos(self.rates.burst);
        let at = nanos(now.saturating_duration_since(self.start));
        let mut from = 0;
        if let Some(rate) = self.rates.requests {
            from = self.requests.take(at, burst, SECOND / rate.max(1));
        }
        if let Some(rate) = self.rates.bytes
            && matches!(request.op, Op::Read | Op::Write)
        {
            let cost = u128::from(request.len) * u128::from(SECOND) / u128::from(rate.max(1));
            let cost = u64::try_from(cost).unwrap_or(u64::MAX);
            from = from.max(self.bytes.take(at, burst, cost));
        }
        // A time that no clock reaches is far enough away.
        let wait = Duration::from_nanos(from.saturating_sub(at));
        now.checked_add(wait).unwrap_or(now)
    }
}

/// Each request is late by a time between two.
#[derive(Debug)]
struct Late {
    least: Duration,
    most: Duration,
    random: AtomicU64,
}

impl Pace for Late {
    fn at(&self, now: Instant, _: &Request) -> Instant {
        let span = self.most.saturating_sub(self.least);
        if span.is_zero() {
            return now + self.least;
        }
        // A Weyl sequence, scattered by one round of a multiplication: enough to mix requests up,
        // and the same in each run.
        let step = 0x9e37_79b9_7f4a_7c15;
        let n = self.random.fetch_add(step, Ordering::Relaxed);
        let share = (n ^ (n >> 32)).wrapping_mul(step) >> 32;
        let extra = (span.as_nanos() * u128::from(share)) >> 32;
        now + self.least + Duration::from_nanos(u64::try_from(extra).unwrap_or(0))
    }
}

/// A disk with at most so many requests and bytes per second. See the top of this file.
#[derive(Debug)]
pub struct Throttle;

impl Throttle {
    /// `disk`, no faster than `rates`.
    pub fn before(disk: Arc<dyn Disk>, rates: Rates) -> Arc<dyn Disk> {
        let pace = Rated {
            rates,
            start: Instant::now(),
            requests: Bucket::default(),
            bytes: Bucket::default(),
        };
        Arc::new(Paced {
            disk,
            pace: Arc::new(pace),
        })
    }
}

/// A disk that is slower than it could be: for tests. Requests overtake each other if the delay
/// varies.
#[derive(Debug)]
pub struct Delay;

impl Delay {
    /// `disk`, where each request is late by `least` to `most`.
    pub fn before(disk: Arc<dyn Disk>, least: Duration, most: Duration) -> Arc<dyn Disk> {
        let pace = Late {
            least,
            most,
            random: AtomicU64::new(0),
        };
        Arc::new(Paced {
            disk,
            pace: Arc::new(pace),
        })
    }
}

#[derive(Debug)]
struct Paced<P> {
    disk: Arc<dyn Disk>,
    pace: Arc<P>,
}

impl<P: Pace> Disk for Paced<P> {
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
        let held = Held::new().map_err(|source| DiskError::Open {
            disk: self.name().to_owned(),
            what: "cannot have a timer",
            source,
        })?;
        Ok(Box::new(PacedChannel {
            pace: Arc::clone(&self.pace),
            inner: self.disk.channel()?,
            disk: Arc::clone(&self.disk),
            held,
            ready: Vec::new(),
        }))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.disk.refresh()
    }
}

#[derive(Debug)]
struct PacedChannel<P> {
    pace: Arc<P>,
    disk: Arc<dyn Disk>,
    inner: Box<dyn Channel>,
    held: Held,
    /// Those that go on now; empty between two calls.
    ready: Vec<Request>,
}

impl<P: Pace> PacedChannel<P> {
    fn go_on(&mut self) {
        if !self.ready.is_empty() {
            self.inner.submit(&mut self.ready);
        }
    }
}

impl<P: Pace> Channel for PacedChannel<P> {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        let now = Instant::now();
        let (size, block) = (self.disk.size().get(), self.disk.geometry().logical_block);
        for request in requests.drain(..) {
            // What is refused costs nothing: nonsense must not use up what others share.
            let at = match request.check(size, block) {
                Ok(()) => self.pace.at(now, &request),
                Err(_) => now,
            };
            if at <= now {
                self.ready.push(request);
            } else {
                self.held.put(at, request);
            }
        }
        self.go_on();
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        self.held.take_due(&mut self.ready);
        self.go_on();
        self.inner.reap(done);
    }

    fn in_flight(&self) -> usize {
        self.held.len() + self.inner.in_flight()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = self.inner.fds();
        fds.push(self.held.fd());
        fds
    }

    fn arm(&mut self) -> Quiet {
        self.held.arm().and(self.inner.arm())
    }

    fn hurry(&mut self) {
        self.held.take_all(&mut self.ready);
        self.go_on();
        self.inner.hurry();
    }
}
