//! What guests do for a living.

mod answer;
mod blast;
mod ping;
mod sink;
mod verify;

pub(super) use blast::blast;
pub(super) use ping::{Pinger, ping};
pub(super) use sink::sink;
pub(super) use verify::verify;

use std::time::{Duration, Instant};

use super::GuestError;
use super::frames::{Header, finish};
use super::machine::Machine;
use super::report::{Clock, Details};
use super::tether::Woken;

/// Frames looked at before anything else is.
const BURST: usize = 64;

/// A job's result: what there is to say, and what was wrong, if anything was.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) details: Details,
    pub(super) failure: Option<String>,
}

/// Sends a frame of `len` bytes, once there is room for it; `false` if it was never sent because
/// a signal says to stop.
fn send(
    machine: &mut Machine<'_>,
    frame: &mut Vec<u8>,
    len: usize,
    header: &Header,
) -> Result<bool, GuestError> {
    frame.clear();
    frame.resize(len, 0);
    finish(frame, header);
    let deadline = Instant::now() + machine.timeout();
    while !machine.add(frame, &[])? {
        match machine.wait(deadline, true)? {
            Woken::Stopped => return Ok(false),
            Woken::Late => {
                return Err(super::error::Fault::Stuck(machine.timeout().as_secs()).into());
            }
            Woken::Ready | Woken::Reconnected => {}
        }
    }
    machine.flush();
    Ok(true)
}

/// Waits, but no longer than until it is time to say how it goes.
fn wait(
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    deadline: Instant,
    room: bool,
) -> Result<Woken, GuestError> {
    let next = clock.tick(machine.sent(), machine.received());
    machine.wait(next.map_or(deadline, |next| next.min(deadline)), room)
}

/// A time after which nobody asks.
fn forever() -> Instant {
    Instant::now() + Duration::from_secs(86400 * 365)
}
