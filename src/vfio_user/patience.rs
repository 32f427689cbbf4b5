//! How long somebody may keep us waiting, in one go and over time.

use std::time::{Duration, Instant};

/// An account of waiting. Every wait is taken from it but for its first moments, and it fills up
/// again with a share of the time that passes: a peer that answers each question just in time
/// cannot stop us for ever.
#[derive(Debug)]
pub(super) struct Patience {
    most: Duration,
    /// A wait of one second is made good by that many seconds.
    recovery: u32,
    /// What of each wait costs nothing.
    grace: Duration,
    left: Duration,
    since: Instant,
}

impl Patience {
    pub(super) fn new(most: Duration, recovery: u32, grace: Duration) -> Self {
        Self {
            most,
            recovery: recovery.max(1),
            grace,
            left: most,
            since: Instant::now(),
        }
    }

    /// How long may be waited now.
    pub(super) fn left(&mut self) -> Duration {
        let now = Instant::now();
        let gained = now.saturating_duration_since(self.since) / self.recovery;
        self.since = now;
        self.left = self.left.saturating_add(gained).min(self.most);
        self.left
    }

    /// It was waited from `start` until now.
    pub(super) fn spend(&mut self, start: Instant) {
        let paid = start.elapsed().saturating_sub(self.grace);
        self.left = self.left.saturating_sub(paid);
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_paid_for_and_made_good_slowly() {
        let second = Duration::from_secs(1);
        let mut patience = Patience::new(10 * second, 10, second / 4);
        assert_eq!(patience.left(), 10 * second);
        let long_ago = |ago: Duration| Instant::now().checked_sub(ago);
        let Some(start) = long_ago(9 * second) else {
            eprintln!("SKIPPED: this machine has just started");
            return;
        };
        for _ in 0..1000 {
            patience.spend(Instant::now());
        }
        assert_eq!(patience.left(), 10 * second, "short waits are free");
        patience.spend(start);
        assert!(patience.left() <= 2 * second);
        // Ten seconds later there is one more; never more than at first.
        patience.since = long_ago(10 * second).unwrap_or(patience.since);
        assert!(patience.left() <= 4 * second && patience.left() >= second);
        patience.spend(start);
        assert!(patience.left() < second, "nothing is owed, nothing is left");
    }
}
