//! How long things took: counts by logarithm, with 32 steps to each doubling, written by one
//! worker and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Counter;

/// Steps to a doubling, as a power of two: an error of 3 % at most.
const BITS: u32 = 5;
const STEPS: u64 = 1 << BITS;

/// Longer times than this, in nanoseconds, count as this: some two minutes.
const LONGEST: u64 = (1 << 37) - 1;

/// How many buckets there are up to a value.
const BUCKETS: usize = bucket(LONGEST) + 1;

/// The bucket of a value. Values below 32 have one each; those above share one with what differs
/// only in bits below the highest and the five after it.
pub const fn bucket(value: u64) -> usize {
    let above = match value.checked_ilog2() {
        Some(log) => log.saturating_sub(BITS),
        None => 0,
    };
    (above as u64 * STEPS + (value >> above)) as usize
}

/// A value in the middle of a bucket.
pub const fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let above = (bucket / STEPS).saturating_sub(1);
    let low = (bucket - above * STEPS) << above;
    low + ((1 << above) >> 1)
}

/// How long it is since earlier moments. Those of a burst are the same one, and are subtracted once.
#[derive(Debug)]
pub struct Ages {
    now: Instant,
    /// The last moment that was asked about, and how long that is.
    last: (Instant, u64),
}

impl Ages {
    /// Until `now`.
    #[inline]
    pub fn until(now: Instant) -> Self {
        Self {
            now,
            last: (now, 0),
        }
    }

    /// That moment.
    #[inline]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Nanoseconds since `at`.
    #[inline]
    pub fn nanos(&mut self, at: Instant) -> u64 {
        if at != self.last.0 {
            self.last = (at, self.now.saturating_duration_since(at).as_nanos() as u64);
        }
        self.last.1
    }
}

/// Durations, by one writer. Each takes some 9 KiB.
#[derive(Debug)]
pub struct Latency {
    counts: Box<[Counter]>,
    /// Of all, in nanoseconds.
    sum: Counter,
    max: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| Counter::default()).collect(),
            sum: Counter::default(),
            max: AtomicU64::new(0),
        }
    }
}

impl Latency {
    /// Counts something that took so many nanoseconds. By the one writer only.
    #[inline]
    pub fn add(&self, nanos: u64) {
        if let Some(count) = self.counts.get(bucket(nanos.min(LONGEST))) {
            count.add(1);
        }
        self.sum.add(nanos);
        if nanos > self.max.load(Ordering::Relaxed) {
            self.max.store(nanos, Ordering::Relaxed);
        }
    }
}

/// What several writers counted, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencySnapshot {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Default for LatencySnapshot {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            sum: 0,
            max: 0,
        }
    }
}

impl LatencySnapshot {
    /// Adds what `latency` has.
    pub fn add(&mut self, latency: &Latency) {
        for (sum, count) in self.counts.iter_mut().zip(&latency.counts) {
            let count = count.get();
            *sum += count;
            self.total += count;
        }
        self.sum = self.sum.wrapping_add(latency.sum.get());
        self.max = self.max.max(latency.max.load(Ordering::Relaxed));
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The longest, in nanoseconds.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, in nanoseconds.
    pub fn mean(&self) -> u64 {
        self.sum / self.total.max(1)
    }

    /// The time below which `percent` of all lie, in nanoseconds; 0 if there are none.
    pub fn percentile(&self, percent: f64) -> u64 {
        let rank = (self.total as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut below = 0;
        for (n, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return middle(n).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buckets_follow_each_other_and_contain_their_middle() {
        let near = |value: u64| middle(bucket(value)).abs_diff(value) <= value / 32;
        for value in 1..100_000 {
            assert!(bucket(value) - bucket(value - 1) <= 1, "{value}");
            assert!(near(value), "{value}");
        }
        for shift in 0..64 {
            assert!(near(1 << shift) && near(u64::MAX >> shift), "{shift}");
        }
    }

    #[test]
    fn ages_are_those_of_the_moment_that_is_asked_about() {
        let now = Instant::now();
        let mut ages = Ages::until(now);
        let before = |nanos| now - Duration::from_nanos(nanos);
        for (at, nanos) in [(0, 0), (5, 5), (5, 5), (0, 0), (7, 7), (1 << 30, 1 << 30)] {
            assert_eq!(ages.nanos(before(at)), nanos);
        }
        assert_eq!(ages.nanos(now + Duration::from_nanos(1)), 0);
    }

    #[test]
    fn percentiles_of_two_writers() {
        let (one, two) = (Latency::default(), Latency::default());
        let mut times = LatencySnapshot::default();
        assert_eq!((times.percentile(50.0), times.mean()), (0, 0));
        for n in 1..=1000 {
            [&one, &two][n as usize % 2].add(n * 1000);
        }
        times.add(&one);
        times.add(&two);
        for (percent, micros) in [(50.0, 500), (99.0, 990), (99.9, 999), (100.0, 1000)] {
            let found = times.percentile(percent);
            assert!(
                found.abs_diff(micros * 1000) <= micros * 1000 / 32,
                "{percent}: {found}"
            );
        }
        assert_eq!((times.total(), times.max()), (1000, 1_000_000));
        assert_eq!(times.mean(), 500_500);
        one.add(u64::MAX);
        times.add(&one);
        assert_eq!(times.max(), u64::MAX);
    }
}
