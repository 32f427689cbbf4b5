//! Rings that rest are served when they have something, however busy others keep the worker.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use vvu_pmd::Workers;
use vvu_pmd::backend::Config;
use vvu_pmd::mock::{Layout, MockNet};
use vvu_pmd::vring::feature as ring;
use vvu_pmd::worker::Polling;

const C: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

/// Ends the loud one however the test ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn quiet_guests_are_heard_beside_a_loud_one() {
    for (polling, polled, features) in [
        (Polling::Adaptive, false, u64::MAX),
        (Polling::Adaptive, false, !ring::EVENT_IDX),
        (Polling::Adaptive, true, u64::MAX),
        (Polling::Interrupt, false, u64::MAX),
        (Polling::Always, false, u64::MAX),
    ] {
        let config = Config {
            polling,
            ..Config::default()
        };
        let workers = Workers::with_config(&[0], &config).unwrap();
        let layout = Layout {
            polled,
            features,
            ..Layout::default()
        };
        let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
        let mut c = device(&workers, "c", C);
        let mut one = MockNet::start(&mut a, memory(0x1000), layout);
        let mut two = MockNet::start(&mut b, memory(0x1000), layout);
        let mut loud = MockNet::start(&mut c, memory(0x1000), Layout::default());
        let resting = || workers.stats().workers[0].resting;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // To itself: the switch has work, nobody hears of it.
            scope.spawn(|| {
                let frame = frame(C, C, 0, 60);
                while !over.load(Ordering::Relaxed) {
                    loud.send(&frame);
                }
            });
            let _over = Over(&over);
            for number in 0..20 {
                // From rest, and hot on the heels of another frame.
                if number % 2 == 0 && polling != Polling::Always {
                    wait(|| resting() >= 2);
                }
                assert!(one.send(&frame(B, A, number, 60)));
                assert_eq!(receive(&mut two), frame(B, A, number, 60));
                assert!(two.send(&frame(A, B, number, 60)));
                assert_eq!(receive(&mut one), frame(A, B, number, 60));
            }
            if polling == Polling::Always {
                assert_eq!(resting(), 0);
                assert_eq!(workers.stats().workers[0].sleeps, 0);
            }
        });
    }
}
