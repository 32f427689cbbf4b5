#![allow(clippy::unwrap_used)]
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::*;
use crate::stats::WorkerState;

/// What a [`Rounds`] is like, and what happened to it.
#[derive(Debug, Default)]
struct Seen {
    polled: AtomicU64,
    armed: AtomicU64,
    rested: AtomicU64,
    kicked: AtomicU64,
    /// How much rests.
    resting: AtomicU64,
    /// Whether each round finds something.
    load: AtomicBool,
}

/// Counts rounds, and dies when told to.
struct Rounds {
    seen: Arc<Seen>,
    quiet: Quiet,
    die: bool,
}

impl Poller for Rounds {
    fn poll(&mut self, _now: u32) -> bool {
        assert!(!self.die, "told to");
        self.seen.polled.fetch_add(1, Ordering::Relaxed);
        self.seen.load.load(Ordering::Relaxed)
    }
    fn enable_kicks(&mut self) -> Quiet {
        self.seen.armed.fetch_add(1, Ordering::Relaxed);
        self.quiet
    }
    fn disable_kicks(&mut self) {}
    fn rest(&mut self) {
        self.seen.rested.fetch_add(1, Ordering::Relaxed);
    }
    fn kicked(&mut self, kicks: &Kicks) {
        let any = u64::from(!kicks.is_empty());
        self.seen.kicked.fetch_add(any, Ordering::Relaxed);
    }
    fn resting(&self) -> usize {
        self.seen.resting.load(Ordering::Relaxed) as usize
    }
    fn has_mail(&self) -> bool {
        false
    }
}

const ALL: [Polling; 3] = [Polling::Always, Polling::Adaptive, Polling::Interrupt];

fn worker(quiet: Quiet, polling: Polling) -> (Worker<Rounds>, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let poller = Rounds {
        seen: Arc::clone(&seen),
        quiet,
        die: false,
    };
    let waker = Waker::new().unwrap();
    let worker = Worker::start(0, poller, waker, Arc::default(), polling).unwrap();
    (worker, seen)
}

fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < 4 * DEADLINE, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn calls_are_answered_asleep_and_awake() {
    for polling in ALL {
        for quiet in [Quiet::Kicked, Quiet::Polled, Quiet::Busy] {
            let (worker, seen) = worker(quiet, polling);
            for number in 0..200 {
                if number % 20 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
                assert_eq!(worker.call(move |_| number).unwrap(), number);
            }
            // What waits after a call is looked at once more, at least.
            let before = seen.polled.load(Ordering::Relaxed);
            let during = worker
                .call(|p| p.seen.polled.load(Ordering::Relaxed))
                .unwrap();
            until(|| seen.polled.load(Ordering::Relaxed) > during);
            assert!(during >= before);
            assert!(worker.stats().mails > 200);
        }
    }
}

#[test]
fn calls_are_answered_under_load() {
    for polling in ALL {
        let (worker, seen) = worker(Quiet::Kicked, polling);
        seen.load.store(true, Ordering::Relaxed);
        for number in 0..200 {
            assert_eq!(worker.call(move |_| number).unwrap(), number);
        }
        until(|| worker.stats().state == WorkerState::Busy);
        let sleeps = worker.stats().sleeps;
        let rounds = worker.stats().rounds;
        until(|| worker.stats().rounds > rounds + 1000);
        assert_eq!(worker.stats().sleeps, sleeps, "{polling:?}");
    }
}

#[test]
fn always_means_always() {
    let (worker, seen) = worker(Quiet::Kicked, Polling::Always);
    until(|| worker.stats().state == WorkerState::Idle);
    // Long enough for any other to sleep.
    let start = Instant::now();
    until(|| start.elapsed() > 2 * LONG && worker.stats().rounds > 100_000);
    assert_eq!(worker.stats().sleeps, 0);
    assert_eq!(seen.armed.load(Ordering::Relaxed), 0, "asked for kicks");
    assert_eq!(seen.rested.load(Ordering::Relaxed), 0, "let something rest");
}

/// Longer than a worker looks around in vain.
const LONG: Duration = Duration::from_millis(20);

#[test]
fn with_interrupts_no_round_is_in_vain() {
    let (worker, _) = worker(Quiet::Kicked, Polling::Interrupt);
    for _ in 0..50 {
        until(|| worker.stats().state == WorkerState::Asleep);
        worker.call(|_| ()).unwrap();
    }
    until(|| worker.stats().state == WorkerState::Asleep);
    let stats = worker.stats();
    // A round has mail, or a sleep follows.
    assert!(stats.rounds <= stats.mails + stats.sleeps + 2, "{stats:?}");
    assert!(stats.sleeps >= 50, "{stats:?}");
}

#[test]
fn who_rests_is_heard_under_load() {
    for polling in [Polling::Adaptive, Polling::Interrupt] {
        let (worker, seen) = worker(Quiet::Kicked, polling);
        seen.load.store(true, Ordering::Relaxed);
        worker.call(|_| ()).unwrap();
        let (kick, ours) = crate::mock::kick();
        let _watch = worker.waker().watch(kick).unwrap();
        until(|| seen.rested.load(Ordering::Relaxed) > 1);
        let rounds = worker.stats().rounds;
        crate::mock::signal(&ours);
        until(|| worker.stats().rounds > rounds + 1000);
        assert_eq!(seen.kicked.load(Ordering::Relaxed), 0, "nobody rests");
        seen.resting.store(1, Ordering::Relaxed);
        until(|| seen.kicked.load(Ordering::Relaxed) == 1);
        crate::mock::signal(&ours);
        until(|| seen.kicked.load(Ordering::Relaxed) == 2);
        until(|| worker.stats().resting == 1);
    }
}

#[test]
fn a_dead_worker_is_noticed_at_once() {
    let (worker, _) = worker(Quiet::Kicked, Polling::Adaptive);
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
    let (worker, seen) = worker(Quiet::Polled, Polling::Adaptive);
    worker.call(|_| ()).unwrap();
    worker.stop();
    worker.stop();
    let after = seen.polled.load(Ordering::Relaxed);
    assert!(worker.call(|_| ()).is_err());
    assert_eq!(seen.polled.load(Ordering::Relaxed), after);
}
