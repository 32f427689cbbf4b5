//! The link to a front-end: who is there, messages in and out, and how to start over.
//!
//! ```text
//!            arm                front-end            both bits drop, empty rx buffer
//!   Idle ------------> Armed ----------------> Up ------------------------------------> Idle
//!    ^                   |                      |
//!    |  bring-up         |      NEEDS_RESET, broken queue, removed
//!   Broken <-------------+----------------------+
//! ```
//!
//! The status register decides, never an interrupt: it is read before every step. A connection
//! that ended is started over when [`Device::next_event`] is called again, so that the caller can let
//! go of rings and memory in between.

use std::time::{Duration, Instant};

use super::init::BUFFER_LEN;
use super::regs::{device_status, feature, link_status};
use super::{Device, DeviceError, Queue, Rule};
use crate::virtqueue::QueueError;

/// How long an ended connection's messages may stay in txq before the device is reset.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// When to look again whether they are gone.
const DRAIN_INTERVAL: Duration = Duration::from_millis(5);

/// When to try again to bring up a broken device, or one that breaks before it was of use.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// State changes in one call of [`Device::next_event`]. A device that keeps dropping us is looked at
/// again after a while.
const MAX_STEPS: usize = 8;

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// A front-end is there.
    Connected,
    /// A message, as it was in its buffer: a whole one, if the device obeys the rules.
    Message(Vec<u8>),
    /// The connection is over.
    Disconnected(Loss),
}

/// Why a connection ended.
#[derive(Debug)]
pub enum Loss {
    /// The front-end went away.
    Closed,
    /// The device, or our way to it, failed.
    Failed(DeviceError),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Link {
    /// BACKEND_UP is clear; it will be set when txq is empty.
    Idle { since: Instant },
    /// BACKEND_UP is set, nobody is there.
    Armed,
    /// A front-end is there.
    Up {
        /// It came with FRONTEND_UP, so it goes with it.
        flagged: bool,
        /// conn_generation when it came, on devices that have it.
        generation: Option<u32>,
    },
    /// The device must be brought up again, not before this.
    Broken { retry: Instant },
    /// We are done with it.
    Closed,
}

impl Link {
    pub(super) fn idle() -> Self {
        Self::Idle {
            since: Instant::now(),
        }
    }
}

/// What a step came to.
enum Step {
    /// Another state was reached: go on from there.
    Again,
    /// Nothing to do before an interrupt, or before this time has passed.
    Wait(Option<Duration>),
    /// Something to report.
    Report(LinkEvent),
}

impl Device {
    /// Becomes readable when [`Device::next_event`] has something to do.
    pub fn poll_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.events.poll_fd()
    }

    /// Makes [`Device::poll_fd`] readable.
    pub fn wake(&self) {
        self.events.poke();
    }

    /// What happened, if anything did. Never blocks for longer than a reset takes.
    pub fn next_event(&mut self) -> Option<LinkEvent> {
        // Look, clear, look again: what came in between is not lost, and what is left to be taken
        // keeps the descriptor readable.
        if let Ok(event) = self.look() {
            return Some(event);
        }
        self.events.clear();
        match self.look() {
            Ok(event) => Some(event),
            Err(delay) => {
                self.events.wake_after(delay);
                None
            }
        }
    }

    /// The next event, or how long to wait for one.
    fn look(&mut self) -> Result<LinkEvent, Option<Duration>> {
        for _ in 0..MAX_STEPS {
            match self.step() {
                Step::Again => {}
                Step::Wait(delay) => return Err(delay),
                Step::Report(event) => {
                    // There may be more, which no interrupt announces.
                    self.events.poke();
                    return Ok(event);
                }
            }
        }
        Err(Some(DRAIN_INTERVAL))
    }

    fn step(&mut self) -> Step {
        match self.link {
            Link::Closed => Step::Wait(None),
            Link::Broken { retry } => self.revive(retry),
            Link::Idle { since } => self.arm(since),
            Link::Armed => self.await_front_end(),
            Link::Up {
                flagged,
                generation,
            } => self.take_message(flagged, generation),
        }
    }

    fn revive(&mut self, retry: Instant) -> Step {
        let left = retry.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Step::Wait(Some(left));
        }
        match self.initialise_again() {
            Ok(()) => {
                tracing::info!(device = self.name(), "brought up again");
                self.revived = true;
                self.trouble = None;
                self.link = Link::idle();
                Step::Again
            }
            Err(error) => {
                // It may take hours, and the reason is the same every second.
                let trouble = Some(error.to_string());
                if self.trouble != trouble {
                    tracing::warn!(device = self.name(), %error, "cannot bring up the device again");
                }
                self.trouble = trouble;
                let retry = Instant::now() + RETRY_INTERVAL;
                self.link = Link::Broken { retry };
                Step::Wait(Some(RETRY_INTERVAL))
            }
        }
    }

    /// Brings the device up again: at once, unless that was of no use the last time.
    fn break_off(&mut self) {
        let pause = if self.revived {
            RETRY_INTERVAL
        } else {
            Duration::ZERO
        };
        let retry = Instant::now() + pause;
        self.link = Link::Broken { retry };
    }

    /// Throws away what belongs to the connection that ended, then lets the next one in.
    fn arm(&mut self, since: Instant) -> Step {
        if let Err(error) = self.check_alive() {
            self.give_up(&error);
            return Step::Again;
        }
        if self.discard().is_err() {
            self.break_off();
            return Step::Again;
        }
        if self.tx.ring.in_flight() > 0 {
            // A reply to the front-end that is gone must not reach the next one.
            if since.elapsed() > DRAIN_TIME {
                tracing::warn!(
                    device = self.name(),
                    "messages stay in txq; resetting the device"
                );
                self.break_off();
                return Step::Again;
            }
            return Step::Wait(Some(DRAIN_INTERVAL));
        }
        // The others were left without a vector at bring-up, and keep that.
        self.program_kicks(self.events.kick_vectors());
        self.set_backend_up(true);
        self.link = Link::Armed;
        Step::Again
    }

    /// Drops received messages and takes back sent ones.
    fn discard(&mut self) -> Result<(), QueueError> {
        for _ in 0..self.rx.ring.size() {
            if self.rx.ring.receive()?.is_none() {
                break;
            }
        }
        self.rx.notify();
        self.tx.ring.reclaim()?;
        Ok(())
    }

    fn await_front_end(&mut self) -> Step {
        let status = match self.check_alive() {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(device = self.name(), %error, "no front-end was there");
                self.give_up(&error);
                return Step::Again;
            }
        };
        if status & link_status::BACKEND_UP == 0 {
            // One came and went, unseen. Or the device lied, and would go on to let one in whose
            // first message is thrown away before we look again.
            self.set_backend_up(false);
            self.link = Link::idle();
            return Step::Again;
        }
        let flagged = status & link_status::FRONTEND_UP != 0;
        // crosvm's device never sets the bit and never interrupts: the first message tells.
        let told = self.identity.rule == Rule::Packed && self.rx.ring.has_used();
        if !flagged && !told {
            return Step::Wait(None);
        }
        self.link = Link::Up {
            flagged,
            generation: self.generation(),
        };
        Step::Report(LinkEvent::Connected)
    }

    fn take_message(&mut self, flagged: bool, generation: Option<u32>) -> Step {
        let status = match self.check_alive() {
            Ok(status) => status,
            Err(error) => return self.fail(error),
        };
        let mut both = link_status::BACKEND_UP;
        if flagged {
            both |= link_status::FRONTEND_UP;
        }
        // What was received when the bits have dropped belongs to nobody any more.
        if status & both != both || self.generation() != generation {
            // A device that is gone has another generation, too.
            return match self.check_alive() {
                Ok(_) => self.lose(),
                Err(error) => self.fail(error),
            };
        }
        let received = self.rx.ring.receive();
        match received {
            Ok(None) => Step::Wait(None),
            Ok(Some(bytes)) => {
                self.rx.notify();
                if bytes.is_empty() {
                    // crosvm's way to say that the front-end is gone.
                    return self.lose();
                }
                self.revived = false;
                Step::Report(LinkEvent::Message(bytes))
            }
            Err(source) => self.fail(queue_error(0, source)),
        }
    }

    fn lose(&mut self) -> Step {
        // The device may see it otherwise, and go on talking to a front-end that we gave up. Where
        // the bits have dropped already, this changes nothing.
        self.set_backend_up(false);
        self.link = Link::idle();
        Step::Report(LinkEvent::Disconnected(Loss::Closed))
    }

    fn give_up(&mut self, error: &DeviceError) {
        self.lost |= matches!(error, DeviceError::Gone);
        self.break_off();
    }

    fn fail(&mut self, error: DeviceError) -> Step {
        self.give_up(&error);
        Step::Report(LinkEvent::Disconnected(Loss::Failed(error)))
    }

    /// The link's status bits, if the device is well.
    pub(super) fn check_alive(&self) -> Result<u32, DeviceError> {
        let mut state = self.registers.common.device_status.read();
        let status = self.registers.config.status.read();
        if status == u32::MAX {
            // It may have gone in between.
            state = self.registers.common.device_status.read();
        }
        if state == u8::MAX && status == u32::MAX {
            return Err(DeviceError::Gone);
        }
        // A device that is not running any more was reset behind our back.
        if state & device_status::NEEDS_RESET != 0 || state & device_status::DRIVER_OK == 0 {
            return Err(DeviceError::NeedsReset);
        }
        Ok(status)
    }

    fn generation(&self) -> Option<u32> {
        if self.identity.features & feature::EXTENSIONS == 0 {
            return None;
        }
        let extended = self.registers.extended.as_ref()?;
        Some(extended.conn_generation.read())
    }

    /// Sends one message, whole; `parts` are put one after the other. Waits, until the deadline
    /// of the options, if the front-end does not take what was sent before.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), DeviceError> {
        let start = Instant::now();
        while !self.try_send(parts)? {
            let status = self.check_alive()?;
            if status & link_status::BACKEND_UP == 0 {
                return Err(DeviceError::NotConnected);
            }
            if start.elapsed() > self.options.timeout {
                return Err(DeviceError::Stuck(self.options.timeout));
            }
            self.events.wait_sent();
        }
        Ok(())
    }

    /// The same without waiting: whether there was room for it.
    pub fn try_send(&mut self, parts: &[&[u8]]) -> Result<bool, DeviceError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > BUFFER_LEN as usize {
            let room = BUFFER_LEN as usize;
            return Err(queue_error(1, QueueError::NoRoom { len, room }));
        }
        if !matches!(self.link, Link::Up { .. }) {
            return Err(DeviceError::NotConnected);
        }
        self.tx
            .ring
            .reclaim()
            .map_err(|source| queue_error(1, source))?;
        match self.tx.ring.send(parts) {
            Ok(()) => {}
            Err(QueueError::Full) => return Ok(false),
            Err(source) => return Err(queue_error(1, source)),
        }
        self.tx.notify();
        Ok(true)
    }

    /// Ends the connection, if there is one, and prepares for the next. Nothing is reported.
    pub fn disconnect(&mut self) {
        if matches!(self.link, Link::Up { .. } | Link::Armed) {
            self.set_backend_up(false);
            self.link = Link::idle();
        }
        self.events.poke();
    }
}

fn queue_error(index: usize, source: QueueError) -> DeviceError {
    DeviceError::Queue {
        queue: Queue::NAMES[index],
        source,
    }
}
