//! What a worker's thread does.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{Poller, Polling, Post, WorkerError};
use crate::stats::WorkerState;
use crate::wake::{Kicks, Quiet};

/// How long a worker goes on polling without finding anything before it sleeps, at least...
const SHORTEST_SPIN: Duration = Duration::from_micros(50);
/// ...and at most. It grows when a sleep was so short that polling on would have been better, as
/// in the ping-pong of two guests, and shrinks when a sleep was longer than this.
const LONGEST_SPIN: Duration = Duration::from_micros(500);

/// How long it goes on polling at most after a long time of work.
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// The first sleep of a worker with something that cannot wake it...
const NAP: Duration = Duration::from_millis(1);
/// ...and the longest: each nap without success is twice as long as the one before.
const LONGEST_NAP: Duration = Duration::from_millis(16);

/// Rounds between two looks at the clock while there is work.
const CLOCK_ROUNDS: u32 = 64;

/// The same while there is none.
const IDLE_ROUNDS: u32 = 8;

/// Time between two questions who may rest...
const REST: Duration = Duration::from_millis(1);
/// ...and rounds between two looks at the kicks of those who do: what they wait at most while
/// there is other work.
const LOOK_ROUNDS: u32 = 32;

/// Binds the calling thread to `cpu`.
pub(super) fn pin(cpu: usize) -> Result<(), WorkerError> {
    let error = |source| WorkerError::Cpu {
        cpu,
        allowed: allowed(),
        source,
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(error(std::io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|errno| error(errno.into()))
}

/// The CPUs that this thread may use, in words.
fn allowed() -> String {
    let Ok(set) = sched_getaffinity(None) else {
        return "an unknown set".into();
    };
    let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu));
    let cpus: Vec<_> = cpus.map(|cpu| cpu.to_string()).collect();
    format!("CPU {}", cpus.join(", "))
}

/// Marks the end of a thread, however it ends.
struct End<'a, P>(&'a Post<P>);

impl<P> Drop for End<'_, P> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
        self.0.discard();
    }
}

/// Polls until told to stop.
pub(super) fn run<P: Poller>(mut poller: P, post: &Post<P>, polling: Polling) {
    let _end = End(post);
    let start = Instant::now();
    let seconds = |now: Instant| (now - start).as_secs() as u32;
    let mut now = start;
    let mut last_work = start;
    let mut since = Awake::new(start);
    let mut last_rest = start;
    let mut bed = Bed::default();
    let mut rounds = 0u32;
    let mut busy = 0u32;
    let mut idle = 0u32;
    let mut spin = SHORTEST_SPIN;
    while !post.stop.load(Ordering::Acquire) {
        let mut worked = take_mail(&mut poller, post);
        worked |= poller.poll(seconds(now));
        post.stats.rounds.add(1);
        since.rounds += 1;
        since.busy += u64::from(worked);
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(LOOK_ROUNDS) && poller.resting() > 0 {
            post.waker.look(&mut bed.kicks);
            if !bed.kicks.is_empty() {
                poller.kicked(&bed.kicks);
            }
        }
        if worked {
            post.stats.busy.add(1);
            busy = busy.wrapping_add(1);
            idle = 0;
            if !busy.is_multiple_of(CLOCK_ROUNDS) {
                continue;
            }
            now = Instant::now();
        } else {
            idle = idle.wrapping_add(1);
            // What comes next comes soon: it is found sooner without looks at the clock.
            if polling != Polling::Interrupt && !idle.is_multiple_of(IDLE_ROUNDS) {
                continue;
            }
            now = Instant::now();
            if std::mem::take(&mut busy) > 0 {
                last_work = now;
                bed.nap = NAP;
            }
        }
        let state = match now - last_work < SHORTEST_SPIN || worked {
            true => WorkerState::Busy,
            false => WorkerState::Idle,
        };
        post.stats.set_state(state);
        if polling != Polling::Always && now - last_rest >= REST {
            last_rest = now;
            poller.rest();
            post.stats.set_resting(poller.resting());
        }
        if worked {
            continue;
        }
        let enough = match polling {
            Polling::Always => false,
            Polling::Adaptive => now - last_work >= spin.max(since.pause(last_work)),
            Polling::Interrupt => true,
        };
        if !enough {
            std::hint::spin_loop();
        } else if bed.sleep(&mut poller, post) {
            let woken = Instant::now();
            spin = adapt(spin, woken - now);
            now = woken;
            last_work = now;
            since = Awake::new(now);
        }
    }
}

/// What was done since the last sleep.
struct Awake {
    start: Instant,
    rounds: u64,
    busy: u64,
}

impl Awake {
    fn new(start: Instant) -> Self {
        Self {
            start,
            rounds: 0,
            busy: 0,
        }
    }

    /// How long a pause to wait out: a guest that sent for long was perhaps only interrupted, and
    /// to kick until we are awake costs it more than the wait costs us, which is a small part of
    /// the time that was spent on its frames.
    fn pause(&self, last_work: Instant) -> Duration {
        let awake = (last_work - self.start).as_nanos() as u64;
        let worked = u128::from(awake) * u128::from(self.busy) / u128::from(self.rounds.max(1));
        Duration::from_nanos((worked / 16) as u64).min(LONGEST_PAUSE)
    }
}

/// How long to poll from now on, after a sleep of this length.
fn adapt(spin: Duration, slept: Duration) -> Duration {
    if slept < LONGEST_SPIN {
        (spin * 2).min(LONGEST_SPIN)
    } else {
        (spin / 2).max(SHORTEST_SPIN)
    }
}

/// Does what was asked for since the last round. No burst is in flight here.
fn take_mail<P: Poller>(poller: &mut P, post: &Post<P>) -> bool {
    let mut any = false;
    while let Some(mail) = post.mail.pop() {
        mail(poller);
        post.stats.mails.add(1);
        any = true;
    }
    if any {
        // There may be something new to poll, or a kick that went to where nobody listened.
        poller.disable_kicks();
        post.stats.set_resting(poller.resting());
    }
    any
}

/// Where a worker sleeps.
struct Bed {
    /// How long to sleep with something that cannot wake it.
    nap: Duration,
    kicks: Kicks,
}

impl Default for Bed {
    fn default() -> Self {
        Self {
            nap: NAP,
            kicks: Kicks::default(),
        }
    }
}

impl Bed {
    /// Sleeps until something happens; not at all if it did already. Returns whether to go on
    /// polling for a while, which is pointless after a nap that just ended.
    fn sleep<P: Poller>(&mut self, poller: &mut P, post: &Post<P>) -> bool {
        let Self { nap, kicks } = self;
        let timeout = match poller.enable_kicks() {
            Quiet::Busy => {
                poller.kicked(&Kicks::default());
                return true;
            }
            Quiet::Kicked => None,
            Quiet::Polled => Some(*nap),
        };
        let pending =
            || !post.mail.is_empty() || poller.has_mail() || post.stop.load(Ordering::Acquire);
        post.stats.sleeps.add(1);
        post.stats.set_state(WorkerState::Asleep);
        post.waker.sleep(timeout, kicks, pending);
        poller.kicked(kicks);
        *nap = (*nap * 2).min(LONGEST_NAP);
        timeout.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_lasts_as_long_as_it_pays() {
        let (short, long) = (Duration::from_micros(200), Duration::from_millis(5));
        let mut spin = SHORTEST_SPIN;
        for _ in 0..10 {
            spin = adapt(spin, short);
        }
        assert_eq!(spin, LONGEST_SPIN);
        for _ in 0..10 {
            spin = adapt(spin, long);
        }
        assert_eq!(spin, SHORTEST_SPIN);
    }
}
