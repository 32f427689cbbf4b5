//! How long things took: counts by logarithm, with 32 steps to each doubling.

use std::time::Duration;

use vvu_pmd::stats::latency::{bucket, middle};

/// Durations, from nanoseconds to minutes.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    min: u64,
    max: u64,
    sum: u128,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            counts: vec![0; bucket(u64::MAX) + 1],
            total: 0,
            min: u64::MAX,
            max: 0,
            sum: 0,
        }
    }

    pub(super) fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
        }
        self.total += 1;
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
        self.sum += u128::from(nanos);
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn min(&self) -> u64 {
        if self.total == 0 { 0 } else { self.min }
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    pub(super) fn mean(&self) -> u64 {
        (self.sum / u128::from(self.total.max(1))) as u64
    }

    /// The time below which `percent` of all lie, in nanoseconds; 0 if there are none.
    pub(super) fn percentile(&self, percent: f64) -> u64 {
        let rank = (self.total as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut below = 0;
        for (n, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return middle(n).clamp(self.min, self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut times = Histogram::new();
        assert_eq!(
            (times.percentile(50.0), times.min(), times.max()),
            (0, 0, 0)
        );
        for n in 1..=1000 {
            times.add(Duration::from_micros(n));
        }
        for (percent, micros) in [
            (0.0, 1),
            (50.0, 500),
            (90.0, 900),
            (99.0, 990),
            (100.0, 1000),
        ] {
            let found = times.percentile(percent);
            assert!(
                found.abs_diff(micros * 1000) <= micros * 1000 / 32,
                "{percent}: {found}"
            );
        }
        assert_eq!(
            (times.total(), times.min(), times.max()),
            (1000, 1000, 1_000_000)
        );
        assert_eq!(times.mean(), 500_500);
    }
}
