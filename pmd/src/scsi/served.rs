//! A ring in service, whatever it is for.

use std::sync::Arc;

use vvu::notify::Call;
use vvu::virtio::Vring;

use super::face::Face;
use crate::stats::RingState;
use crate::vring::{Moved, Ring, RingError, SetupError};
use crate::wake::{Kicks, Mode, Rest, Waker, Watch};

/// A ring with what its worker knows of it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) face: Arc<Face>,
    pub(super) index: u16,
    pub(super) features: u64,
    enabled: bool,
    broken: bool,
    /// Nothing more is taken, because somebody waits for the end of what is under way.
    pub(super) draining: bool,
    pub(super) ring: Ring,
    pub(super) watch: Watch,
    pub(super) rest: Rest,
}

impl Served {
    /// Checks the ring, and lets its kick wake the sleeper of `waker`.
    pub(super) fn new(
        vring: Vring,
        face: Arc<Face>,
        waker: &Arc<Waker>,
    ) -> Result<Self, SetupError> {
        let (index, enabled, features) = (vring.index, vring.enabled, vring.features);
        let (ring, kick) = Ring::new(vring)?;
        Ok(Self {
            face,
            index,
            features,
            enabled,
            broken: false,
            draining: false,
            ring,
            watch: waker.watch(kick).map_err(SetupError::Kick)?,
            rest: Rest::default(),
        })
    }

    /// Whether chains may be taken.
    #[inline]
    pub(super) fn takes(&self) -> bool {
        !self.broken
            && match self.draining {
                false => self.enabled,
                // A ring ends behind what was in flight when it began.
                true => self.ring.is_resuming(),
            }
    }

    /// Whether chains that were in flight when the ring began are still to be taken.
    pub(super) fn is_resuming(&self) -> bool {
        !self.broken && self.ring.is_resuming()
    }

    /// Ends a round that took or gave back `count` chains.
    #[inline]
    pub(super) fn finish(&mut self, count: usize) {
        self.rest.brought = self.rest.brought.wrapping_add(count as u32);
        if !self.broken
            && let Some(error) = self.ring.failed()
        {
            self.fail(error);
        }
    }

    #[cold]
    fn fail(&mut self, error: RingError) {
        self.broken = true;
        let stats = self.face.queue_stats(self.index);
        if let Some(counter) = stats.and_then(|stats| stats.faults.get(error.reason())) {
            counter.add(1);
        }
        self.set_state();
        self.ring.report();
        let (device, ring) = (self.face.name(), self.index);
        tracing::warn!(device, ring, %error, "ring stopped: its driver broke it");
    }

    pub(super) fn set_state(&self) {
        if let Some(stats) = self.face.queue_stats(self.index) {
            stats.set_state(match (self.broken, self.enabled) {
                (true, _) => RingState::Broken,
                (false, true) => RingState::Running,
                (false, false) => RingState::Disabled,
            });
        }
    }

    pub(super) fn stopped(&self) {
        if let Some(stats) = self.face.queue_stats(self.index) {
            stats.set_state(RingState::Stopped);
        }
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.set_state();
    }

    pub(super) fn set_kick(&mut self, watch: Watch) -> Watch {
        std::mem::replace(&mut self.watch, watch)
    }

    pub(super) fn set_call(&mut self, call: Call) -> Call {
        self.ring.set_call(call)
    }

    pub(super) fn set_err(&mut self, err: Call) -> Call {
        self.ring.set_err(err)
    }

    pub(super) fn set_memory(&mut self, moved: Moved) -> Moved {
        self.ring.set_memory(moved)
    }

    /// Asks for kicks, because it shall not be looked at any more, unless there is no room for
    /// more. False if there is something.
    pub(super) fn arm(&mut self, mode: Mode, room: bool) -> bool {
        let quiet = !self.takes() || !room || !self.ring.enable_kicks();
        if quiet {
            self.rest.mode = mode;
        }
        quiet
    }

    /// Is looked at in each round, and asks for no kicks.
    pub(super) fn disarm(&mut self) {
        self.ring.disable_kicks();
        self.rest.poll();
    }

    /// These kicks came, or the worker does not sleep any more.
    pub(super) fn kicked(&mut self, kicks: &Kicks) {
        match self.rest.mode {
            Mode::Polled => {}
            Mode::Resting if !kicks.has(&self.watch) => {}
            // How long it has had nothing is not forgotten over a sleep.
            Mode::Armed => {
                self.ring.disable_kicks();
                self.rest.mode = Mode::Polled;
            }
            Mode::Resting => self.disarm(),
        }
    }
}
