//! Idle workers sleep, and wake for the first frame. One test, because it measures the process.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use rustix::time::{ClockId, clock_gettime};
use vvu_pmd::Workers;
use vvu_pmd::backend::Config;
use vvu_pmd::mock::{Layout, MockNet};
use vvu_pmd::vring::feature as ring;
use vvu_pmd::worker::Polling;

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What it costs to sleep for a moment.
fn cost_of_a_nap() -> Duration {
    const NAPS: u32 = 32;
    let before = cpu_time();
    (0..NAPS).for_each(|_| std::thread::sleep(Duration::from_millis(4)));
    (cpu_time() - before) / NAPS
}

#[test]
fn idle_workers_sleep_and_wake() {
    let nap = cost_of_a_nap();
    for (polling, polled, features) in [
        (Polling::Adaptive, false, u64::MAX),
        (Polling::Adaptive, false, !ring::EVENT_IDX),
        (Polling::Adaptive, false, !ring::RING_PACKED),
        (
            Polling::Adaptive,
            false,
            !(ring::RING_PACKED | ring::EVENT_IDX),
        ),
        (Polling::Adaptive, true, u64::MAX),
        (Polling::Interrupt, false, u64::MAX),
        (Polling::Interrupt, true, u64::MAX),
    ] {
        let config = Config {
            polling,
            ..Config::default()
        };
        let workers = Workers::with_config(&[0], &config).unwrap();
        let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
        let layout = Layout {
            polled,
            features,
            ..Layout::default()
        };
        let mut one = MockNet::start(&mut a, memory(0x1000), layout);
        let mut two = MockNet::start(&mut b, memory(0x1000), layout);
        std::thread::sleep(Duration::from_millis(50));
        let before = (Instant::now(), cpu_time());
        std::thread::sleep(Duration::from_secs(1));
        let (spent, time) = (cpu_time() - before.1, before.0.elapsed());
        // On a busy host of virtual machines a sleep by itself costs more than all the rest.
        let sleeps = workers.stats().workers[0].sleeps as u32;
        assert!(
            spent < time / 50 + 3 * nap * sleeps,
            "an idle worker takes {spent:?} of {time:?}, {sleeps} sleeps of {nap:?}"
        );
        // Many sleeps, each at another moment after the last frame: none is slept through. The
        // clock is generous because other programs may have the CPU.
        let mut worst = Duration::ZERO;
        for number in 0..400u32 {
            let pause = Duration::from_micros(u64::from(number % 40) * 50);
            std::thread::sleep(pause);
            let start = Instant::now();
            assert!(one.send(&frame(B, A, number, 60)));
            assert_eq!(receive(&mut two), frame(B, A, number, 60));
            worst = worst.max(start.elapsed());
        }
        assert!(worst < Duration::from_secs(1), "{worst:?}");
        let worker = &workers.stats().workers[0];
        assert!(worker.sleeps > 100, "{worker:?}");
    }
}
