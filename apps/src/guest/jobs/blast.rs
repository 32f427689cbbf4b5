//! `blast`: as many frames as the back-end takes.

use std::time::{Duration, Instant};

use super::ping::Pinger;
use super::{BURST, Outcome, wait};
use crate::guest::GuestError;
use crate::guest::args::Blast;
use crate::guest::error::Fault;
use crate::guest::frames::{Header, Kind, SNAP, finish};
use crate::guest::machine::Machine;
use crate::guest::report::{Blasted, Clock, Details};
use crate::guest::tether::Woken;

/// How long a sink may take to say that it is there; without one we blast all the same.
const GREETING: Duration = Duration::from_secs(1);

/// Blasts, then asks the other side how much of it arrived.
pub(in crate::guest) fn blast(
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    options: &Blast,
) -> Result<Outcome, GuestError> {
    let origin = fastrand::u64(..);
    let mut pinger = Pinger::new(origin, machine);
    pinger.call(machine, clock, GREETING)?;
    let heard = pinger.value.is_some();
    // All frames in the ring must be alike.
    machine.drain()?;
    let mut frame = vec![0; usize::from(options.size).min(machine.max_frame())];
    let header = Header {
        destination: pinger.destination,
        source: machine.mac(),
        kind: Kind::Blast,
        epoch: 0,
        origin,
        sequence: 0,
        value: 0,
    };
    finish(&mut frame, &header);

    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    let mut left = options.count.unwrap_or(u64::MAX);
    let before = machine.sent().packets;
    while left > 0 && Instant::now() < end && !machine.stopped() {
        let progress = burst(machine, &frame, &mut left)?;
        if progress {
            clock.tick(machine.sent(), machine.received());
            // Whoever shares this processor, perhaps to receive all that, has a turn.
            std::thread::yield_now();
            continue;
        }
        let patience = Instant::now() + machine.timeout();
        match wait(machine, clock, patience, true)? {
            Woken::Late if Instant::now() >= patience => {
                return Err(Fault::Stuck(machine.timeout().as_secs()).into());
            }
            _ => {}
        }
    }
    machine.drain()?;
    let time = start.elapsed();
    let taken = machine.sent().packets - before - u64::from(machine.in_flight());
    let arrived = match heard && pinger.call(machine, clock, machine.timeout())? {
        true => pinger.value,
        false => None,
    };
    Ok(Outcome {
        details: Details::Blast(Blasted {
            size: frame.len(),
            taken,
            blast_seconds: time.as_secs_f64(),
            arrived,
        }),
        failure: (taken == 0).then(|| "the back-end took no frame".to_owned()),
    })
}

/// Fills the ring some times over, and empties the other one. Returns whether anything moved.
fn burst(machine: &mut Machine<'_>, frame: &[u8], left: &mut u64) -> Result<bool, GuestError> {
    let mut moved = false;
    for _ in 0..BURST {
        let sent = machine.blast(frame, (*left).min(BURST as u64))?;
        *left -= sent;
        // What a back-end sends back is counted only.
        let received = machine.poll(BURST, SNAP, |_, _, _| {})?;
        if sent == 0 && received == 0 {
            break;
        }
        moved = true;
    }
    Ok(moved)
}
