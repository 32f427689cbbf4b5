//! `ping`: how long a frame takes there and back.

use std::time::{Duration, Instant};

use super::answer::Answerer;
use super::{BURST, Outcome, forever, send, wait};
use crate::guest::GuestError;
use crate::guest::args::Ping;
use crate::guest::frames::{self, ANYBODY, Header, Kind, SNAP};
use crate::guest::histogram::Histogram;
use crate::guest::machine::Machine;
use crate::guest::report::{Clock, Details, Latency};
use crate::guest::tether::Woken;

/// A probe that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// First contact: how often we call.
const CALLING: Duration = Duration::from_millis(20);

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It came back; with a value if somebody answered.
    Back(Duration),
    Lost,
    Interrupted,
    Stopped,
}

/// Somebody who sends probes.
pub(in crate::guest) struct Pinger {
    origin: u64,
    sequence: u64,
    /// Probes from this one on are waited for.
    since: u64,
    /// Who answered last.
    pub(super) destination: [u8; 6],
    /// What the last answer's value was; `None` if our own probe came back.
    pub(super) value: Option<u64>,
    answerer: Answerer,
    frame: Vec<u8>,
}

impl Pinger {
    pub(in crate::guest) fn new(origin: u64, machine: &Machine<'_>) -> Self {
        Self {
            origin,
            sequence: 0,
            since: 0,
            destination: ANYBODY,
            value: None,
            answerer: Answerer::new(origin, machine.mac()),
            frame: Vec::new(),
        }
    }

    /// Sends a probe of `len` bytes and waits for its return, no longer than `patience`.
    fn probe(
        &mut self,
        machine: &mut Machine<'_>,
        clock: &mut Clock,
        len: usize,
        patience: Duration,
    ) -> Result<Fate, GuestError> {
        let header = self.next(machine);
        let start = Instant::now();
        if !send(machine, &mut self.frame, len, &header)? {
            return Ok(Fate::Stopped);
        }
        loop {
            let mut found = None;
            machine.poll(BURST, SNAP, |frame, _, _| {
                let seen = frames::parse(frame);
                match seen {
                    Some(seen) if seen.header.origin == self.origin => {
                        if seen.header.sequence >= self.since {
                            found = Some(seen.header);
                        }
                    }
                    _ => self.answerer.see(seen.as_ref()),
                }
            })?;
            if let Some(header) = found {
                let time = start.elapsed();
                self.value = (header.kind == Kind::Answer).then_some(header.value);
                if self.value.is_some() {
                    self.destination = header.source;
                }
                return Ok(Fate::Back(time));
            }
            self.answerer.answer(machine)?;
            if start.elapsed() >= patience {
                return Ok(Fate::Lost);
            }
            match wait(machine, clock, start + patience, false)? {
                Woken::Stopped => return Ok(Fate::Stopped),
                Woken::Reconnected => return Ok(Fate::Interrupted),
                Woken::Ready | Woken::Late => {}
            }
        }
    }

    /// Sends a probe whose return nobody waits for; `false` if a signal says to stop.
    pub(in crate::guest) fn cast(&mut self, machine: &mut Machine<'_>) -> Result<bool, GuestError> {
        let header = self.next(machine);
        send(machine, &mut self.frame, 60, &header)
    }

    fn next(&mut self, machine: &Machine<'_>) -> Header {
        self.sequence += 1;
        Header {
            destination: self.destination,
            source: machine.mac(),
            kind: Kind::Probe,
            epoch: 0,
            origin: self.origin,
            sequence: self.sequence,
            value: 0,
        }
    }

    /// Calls until somebody answers, for at most `patience`; whether somebody did.
    pub(in crate::guest) fn call(
        &mut self,
        machine: &mut Machine<'_>,
        clock: &mut Clock,
        patience: Duration,
    ) -> Result<bool, GuestError> {
        let end = Instant::now() + patience;
        // A late answer is one, too.
        self.since = self.sequence + 1;
        while Instant::now() < end {
            match self.probe(machine, clock, 60, CALLING)? {
                Fate::Back(_) => return Ok(true),
                Fate::Stopped => return Ok(false),
                Fate::Lost | Fate::Interrupted => {}
            }
        }
        Ok(false)
    }
}

/// Measures round trips.
pub(in crate::guest) fn ping(
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    options: &Ping,
) -> Result<Outcome, GuestError> {
    let mut pinger = Pinger::new(fastrand::u64(..), machine);
    let mut times = Histogram::new();
    let (mut lost, mut interrupted, mut silence) = (0, 0, 0);
    let patience = machine.timeout();
    let mut silent = (!pinger.call(machine, clock, patience)? && !machine.stopped())
        .then(|| "nobody answers: neither a sink nor a back-end that sends frames back".to_owned());
    let len = usize::from(options.size).min(machine.max_frame());
    let mut next = Instant::now();
    let end = options
        .seconds
        .map_or_else(forever, |seconds| next + Duration::from_secs(seconds));
    while silent.is_none()
        && times.total() + lost + interrupted < options.count
        && Instant::now() < end
    {
        pinger.since = pinger.sequence + 1;
        match pinger.probe(machine, clock, len, PATIENCE.min(patience))? {
            Fate::Back(time) => {
                times.add(time);
                silence = 0;
            }
            Fate::Lost => {
                lost += 1;
                silence += 1;
            }
            Fate::Interrupted => {
                interrupted += 1;
                // The other side may take longer to be back.
                pinger.call(machine, clock, patience)?;
            }
            Fate::Stopped => break,
        }
        if PATIENCE * silence >= patience {
            let heard = times.total();
            silent = Some(format!("the other side fell silent after {heard} answers"));
        }
        next += Duration::from_millis(options.interval);
        if !pause(machine, clock, &mut pinger, next.min(end))? {
            break;
        }
    }
    let failure = silent.or_else(|| {
        let sent = times.total() + lost;
        (lost > 0).then(|| format!("{lost} of {sent} probes did not come back within {PATIENCE:?}"))
    });
    Ok(Outcome {
        details: Details::Ping(Latency::of(&times, lost, interrupted)),
        failure,
    })
}

/// Waits until `time`, answering others. `false` if a signal says to stop.
fn pause(
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    pinger: &mut Pinger,
    time: Instant,
) -> Result<bool, GuestError> {
    while Instant::now() < time {
        let seen = |frame: &[u8], _, _: &_| pinger.answerer.see(frames::parse(frame).as_ref());
        if machine.poll(BURST, SNAP, seen)? > 0 {
            pinger.answerer.answer(machine)?;
        } else if wait(machine, clock, time, false)? == Woken::Stopped {
            return Ok(false);
        }
    }
    Ok(!machine.stopped())
}
