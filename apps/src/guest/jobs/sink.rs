//! `sink`: be there, count, answer.

use std::time::{Duration, Instant};

use super::answer::Answerer;
use super::{BURST, Outcome, forever, wait};
use crate::guest::GuestError;
use crate::guest::args::Sink;
use crate::guest::frames::{self, SNAP};
use crate::guest::machine::Machine;
use crate::guest::report::{Clock, Details};
use crate::guest::tether::Woken;

/// Runs until a signal, or for the time that was asked for.
pub(in crate::guest) fn sink(
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    options: &Sink,
) -> Result<Outcome, GuestError> {
    let mut answerer = Answerer::new(fastrand::u64(..), machine.mac());
    let end = options.seconds.map_or_else(forever, |seconds| {
        Instant::now() + Duration::from_secs(seconds)
    });
    loop {
        // As long as frames arrive, the time is looked at now and then only.
        let mut busy = false;
        for _ in 0..BURST {
            let count = machine.poll(BURST, SNAP, |frame, _, _| {
                answerer.see(frames::parse(frame).as_ref());
            })?;
            answerer.answer(machine)?;
            busy = count > 0;
            if !busy {
                break;
            }
        }
        let over = if busy {
            clock.tick(machine.sent(), machine.received());
            machine.stopped() || Instant::now() >= end
        } else {
            wait(machine, clock, end, false)? == Woken::Stopped || Instant::now() >= end
        };
        if over {
            return Ok(Outcome {
                details: Details::Sink(answerer.counts),
                failure: None,
            });
        }
    }
}
