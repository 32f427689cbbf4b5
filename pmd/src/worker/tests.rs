#![allow(clippy::unwrap_used)]
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::*;

/// Counts rounds, and dies when told to.
struct Rounds {
    polled: Arc<AtomicU64>,
    quiet: Quiet,
    die: bool,
}

impl Poller for Rounds {
    fn poll(&mut self, _now: u32) -> bool {
        assert!(!self.die, "told to");
        self.polled.fetch_add(1, Ordering::Relaxed);
        false
    }
    fn enable_kicks(&mut self) -> Quiet {
        self.quiet
    }
    fn disable_kicks(&mut self) {}
    fn has_mail(&self) -> bool {
        false
    }
}

fn worker(quiet: Quiet) -> (Worker<Rounds>, Arc<AtomicU64>) {
    let polled = Arc::<AtomicU64>::default();
    let poller = Rounds {
        polled: Arc::clone(&polled),
        quiet,
        die: false,
    };
    let waker = Waker::new().unwrap();
    let worker = Worker::start(0, poller, waker, Arc::default()).unwrap();
    (worker, polled)
}

#[test]
fn calls_are_answered_asleep_and_awake() {
    for quiet in [Quiet::Kicked, Quiet::Polled, Quiet::Busy] {
        let (worker, polled) = worker(quiet);
        for number in 0..200 {
            if number % 20 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(worker.call(move |_| number).unwrap(), number);
        }
        // What waits after a call is looked at once more, at least.
        let before = polled.load(Ordering::Relaxed);
        let during = worker.call(|p| p.polled.load(Ordering::Relaxed)).unwrap();
        let start = Instant::now();
        while polled.load(Ordering::Relaxed) == during {
            assert!(start.elapsed() < DEADLINE, "no round after a call");
        }
        assert!(during >= before);
        assert!(worker.stats().mails > 200);
    }
}

#[test]
fn a_dead_worker_is_noticed_at_once() {
    let (worker, _) = worker(Quiet::Kicked);
    let start = Instant::now();
    let _ = worker.call(|poller| poller.die = true);
    // What arrives with that call is still answered.
    while worker.call(|_| ()).is_ok() {
        assert!(start.elapsed() < DEADLINE, "it does not die");
    }
    for _ in 0..3 {
        assert!(matches!(worker.call(|_| ()), Err(WorkerError::Gone(0))));
    }
    assert!(start.elapsed() < DEADLINE, "nobody waited for the deadline");
}

#[test]
fn a_stopped_worker_answers_no_more() {
    let (worker, polled) = worker(Quiet::Polled);
    worker.call(|_| ()).unwrap();
    worker.stop();
    worker.stop();
    let after = polled.load(Ordering::Relaxed);
    assert!(worker.call(|_| ()).is_err());
    assert_eq!(polled.load(Ordering::Relaxed), after);
}
