//! A disk whose requests are timed, from their submission to their answer.
//!
//! Each channel counts for itself; the disk knows the counts of all of them and adds them up when
//! somebody asks. A channel that ends leaves its counts to the disk.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::slots::Slots;
use super::{Abilities, Channel, Disk, DiskError, Done, Geometry, IoError, Op, Request, Size};
use crate::stats::Counter;
use crate::stats::latency::{Latency, LatencySnapshot};
use crate::wake::Quiet;

/// What is counted separately.
const OPS: [&str; 5] = ["read", "write", "flush", "discard", "write-zeroes"];

fn op_index(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Flush => 2,
        Op::Discard => 3,
        Op::WriteZeroes { .. } => 4,
    }
}

/// Counts of one channel and one kind of request.
#[derive(Debug, Default)]
struct OpStats {
    /// Of those that were done.
    latency: Latency,
    /// Bytes of those that were done.
    bytes: Counter,
    /// Those that failed, by reason.
    errors: [Counter; IoError::REASONS.len()],
}

type ChannelStats = [OpStats; OPS.len()];

/// Counts of all channels.
#[derive(Debug, Default)]
struct Counts {
    /// Of those that are in use.
    channels: Vec<Arc<ChannelStats>>,
    /// Of those that were.
    past: Vec<OpSnapshot>,
}

/// What channels did together with `past`.
fn sum<'c>(
    past: &[OpSnapshot],
    channels: impl Iterator<Item = &'c ChannelStats>,
) -> Vec<OpSnapshot> {
    let mut ops = past.to_vec();
    if ops.is_empty() {
        ops.extend(OPS.map(OpSnapshot::new));
    }
    for channel in channels {
        for (op, stats) in ops.iter_mut().zip(channel) {
            op.add(stats);
        }
    }
    ops
}

/// What a disk did with one kind of request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpSnapshot {
    /// The kind.
    pub op: &'static str,
    /// How long those took that were done, and how many they were.
    pub latency: LatencySnapshot,
    /// Bytes of those that were done.
    pub bytes: u64,
    /// Those that failed, by reason; all reasons.
    pub errors: Vec<(&'static str, u64)>,
}

impl OpSnapshot {
    fn new(op: &'static str) -> Self {
        Self {
            op,
            latency: LatencySnapshot::default(),
            bytes: 0,
            errors: IoError::REASONS.map(|reason| (reason, 0)).to_vec(),
        }
    }

    fn add(&mut self, stats: &OpStats) {
        self.latency.add(&stats.latency);
        self.bytes += stats.bytes.get();
        for ((_, count), counter) in self.errors.iter_mut().zip(&stats.errors) {
            *count += counter.get();
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Measured {
    disk: Arc<dyn Disk>,
    counts: Arc<Mutex<Counts>>,
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Measured {
    /// `disk`, measured.
    pub fn new(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self {
            disk,
            counts: Arc::default(),
        })
    }

    /// The counts so far of every kind of request.
    pub fn snapshot(&self) -> Vec<OpSnapshot> {
        let counts = lock(&self.counts);
        sum(&counts.past, counts.channels.iter().map(|stats| &**stats))
    }
}

impl Disk for Measured {
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
        let inner = self.disk.channel()?;
        let stats: Arc<ChannelStats> = Arc::default();
        lock(&self.counts).channels.push(Arc::clone(&stats));
        Ok(Box::new(MeasuredChannel {
            counts: Arc::clone(&self.counts),
            inner,
            stats,
            started: Slots::default(),
        }))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.disk.refresh()
    }
}

/// A request in flight.
#[derive(Debug)]
struct Started {
    token: u64,
    op: Op,
    bytes: u64,
    at: Instant,
}

#[derive(Debug)]
struct MeasuredChannel {
    counts: Arc<Mutex<Counts>>,
    inner: Box<dyn Channel>,
    stats: Arc<ChannelStats>,
    started: Slots<Started>,
}

impl Channel for MeasuredChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        let at = Instant::now();
        for request in requests.iter_mut() {
            request.token = self.started.put(Started {
                token: request.token,
                op: request.op,
                bytes: request.len,
                at,
            });
        }
        self.inner.submit(requests);
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let before = done.len();
        self.inner.reap(done);
        let Some(new) = done.get_mut(before..).filter(|new| !new.is_empty()) else {
            return;
        };
        let now = Instant::now();
        for answer in new {
            let Some(started) = self.started.take(answer.token) else {
                continue;
            };
            answer.token = started.token;
            let Some(stats) = self.stats.get(op_index(started.op)) else {
                continue;
            };
            match &answer.result {
                Ok(()) => {
                    let took = now.saturating_duration_since(started.at).as_nanos();
                    stats.latency.add(u64::try_from(took).unwrap_or(u64::MAX));
                    stats.bytes.add(started.bytes);
                }
                Err(error) => {
                    if let Some(counter) = stats.errors.get(error.reason()) {
                        counter.add(1);
                    }
                }
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.fds()
    }

    fn arm(&mut self) -> Quiet {
        self.inner.arm()
    }

    fn hurry(&mut self) {
        self.inner.hurry();
    }
}

impl Drop for MeasuredChannel {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts
            .channels
            .retain(|stats| !Arc::ptr_eq(stats, &self.stats));
        counts.past = sum(&counts.past, std::iter::once(&*self.stats));
    }
}
