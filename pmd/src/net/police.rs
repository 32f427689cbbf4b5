//! How much may pass: token buckets (RFC 2697 has the idea), filled by a clock that is read once
//! a burst.

use std::time::Instant;

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since it was made.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    #[cfg(test)]
    pub(super) set: Option<u64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(test)]
            set: None,
        }
    }
}

impl Clock {
    pub(super) fn now(&self) -> u64 {
        #[cfg(test)]
        if let Some(now) = self.set {
            return now;
        }
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A bucket of tokens that fills at a steady rate.
///
/// Something passes while there is any token, and takes all it costs: what it took too much must
/// flow in before the next passes. So a frame may cost more than the bucket holds, and the rate
/// is exact in the long run.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Tokens a second.
    rate: u64,
    depth: i64,
    level: i64,
    /// Until when it was filled, and how much of a token was left over then.
    filled: u64,
    rest: u64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: u64, depth: u64) -> Self {
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        Self {
            rate,
            depth,
            level: depth,
            filled: 0,
            rest: 0,
        }
    }

    /// Lets in what came until `now`.
    pub(super) fn fill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.filled);
        let parts = u128::from(elapsed) * u128::from(self.rate) + u128::from(self.rest);
        let tokens = i64::try_from(parts / u128::from(SECOND)).unwrap_or(i64::MAX);
        self.rest = (parts % u128::from(SECOND)) as u64;
        self.filled = now.max(self.filled);
        self.level = self.level.saturating_add(tokens);
        if self.level >= self.depth {
            self.level = self.depth;
            self.rest = 0;
        }
    }

    /// Whether something that costs this much passes.
    #[inline]
    pub(super) fn take(&mut self, cost: u64) -> bool {
        if self.level <= 0 {
            return false;
        }
        self.level = self.level.saturating_sub_unsigned(cost);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_exact_however_often_it_is_filled() {
        for step in [1, 999, 1_000_000, 777_777_777] {
            let mut bucket = Bucket::new(1000, 10);
            let mut passed = 0;
            let mut now = 0;
            while now < 10_000 * step.min(1_000_000) {
                bucket.fill(now);
                while bucket.take(1) {
                    passed += 1;
                }
                now += step;
            }
            let last = now - step;
            let steps = last / step;
            // What comes in one step may be more than the bucket holds.
            let most = 10 + (last as u128 * 1000 / u128::from(SECOND)) as u64;
            let most = most.min(10 + steps * 10);
            assert_eq!(passed, most, "step {step}");
        }
    }

    #[test]
    fn costs_that_exceed_the_bucket_are_paid_afterwards() {
        let mut bucket = Bucket::new(1_000_000, 1000);
        assert!(bucket.take(50_000));
        assert!(!bucket.take(1));
        bucket.fill(48_999_000);
        assert!(!bucket.take(1), "a microsecond early");
        bucket.fill(49_001_000);
        assert!(bucket.take(1));
    }

    #[test]
    fn no_number_is_too_large() {
        let mut bucket = Bucket::new(u64::MAX, u64::MAX);
        bucket.fill(u64::MAX);
        assert!(bucket.take(u64::MAX));
        bucket.fill(0);
        assert!(bucket.take(u64::MAX) || !bucket.take(1));
        bucket.fill(u64::MAX);
    }
}
