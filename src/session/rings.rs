//! Requests about rings: set-up, start, change, stop.

use std::os::fd::OwnedFd;

use super::SessionError;
use super::connection::{Connection, Handled, Outcome};
use super::ring::Ring;
use crate::memory::MemTable;
use crate::notify::{Call, Kick};
use crate::protocol::{Features, Reply, VringAddr, VringFd, VringState};
use crate::virtio::{RingAreas, RingChange, Vring};

/// What a new memory means for the running rings.
pub(super) struct Relocated {
    /// Rings that are in it, and where.
    pub(super) placed: Vec<(u16, RingAreas)>,
    /// Rings that are not, and why.
    pub(super) lost: Vec<(u16, SessionError)>,
}

impl Connection {
    fn ring(&mut self, index: impl Into<u32>) -> Result<&mut Ring, SessionError> {
        let index = index.into();
        let rings = self.state.rings.len();
        usize::try_from(index)
            .ok()
            .and_then(|at| self.state.rings.get_mut(at))
            .ok_or(SessionError::NoRing { index, rings })
    }

    pub(super) fn set_vring_num(&mut self, state: VringState) -> Handled {
        let ring = self.ring(state.index)?;
        let size = Some(ring.check_size(state.num)?);
        if ring.running && ring.size != size {
            return Err(SessionError::RingRuns {
                name: "SET_VRING_NUM",
                index: ring.index,
            });
        }
        let old = std::mem::replace(&mut ring.size, size);
        self.start_or_undo(state.index, |ring| ring.size = old)
    }

    /// Front-ends repeat the addresses of a running ring to switch the log flag; nothing else may
    /// change while it runs.
    pub(super) fn set_vring_addr(&mut self, addr: VringAddr) -> Handled {
        let ring = self.ring(addr.index)?;
        ring.check_addr(&addr)?;
        if ring.running {
            let same = |old: &VringAddr| {
                (old.desc, old.avail, old.used) == (addr.desc, addr.avail, addr.used)
            };
            if !ring.addr.as_ref().is_some_and(same) {
                return Err(SessionError::RingRuns {
                    name: "SET_VRING_ADDR",
                    index: ring.index,
                });
            }
        }
        let old = ring.addr.replace(addr);
        self.start_or_undo(addr.index, |ring| ring.addr = old)
    }

    pub(super) fn set_vring_base(&mut self, state: VringState) -> Handled {
        let ring = self.ring(state.index)?;
        if ring.running {
            return Err(SessionError::RingRuns {
                name: "SET_VRING_BASE",
                index: ring.index,
            });
        }
        let old = (ring.base, ring.base_given);
        (ring.base, ring.base_given) = (state.num, true);
        self.start_or_undo(state.index, |ring| (ring.base, ring.base_given) = old)
    }

    /// Stops the ring and forgets its kick and call, which the front-end sends again before it
    /// starts the ring anew.
    pub(super) fn get_vring_base(&mut self, state: VringState) -> Handled {
        self.ring(state.index)?;
        self.stop_ring(state.index)?;
        let ring = self.ring(state.index)?;
        ring.kick = None;
        ring.call = Call::Silent;
        ring.base_given = false;
        ring.settled = true;
        let base = VringState {
            index: state.index,
            num: ring.base,
        };
        Ok(Outcome::Reply(Reply::Vring(base)))
    }

    pub(super) fn set_vring_kick(&mut self, fd: VringFd, attached: Vec<OwnedFd>) -> Handled {
        let index = u16::from(fd.index);
        self.ring(index)?;
        let kick = self.transport.kick(index, fd.nofd, attached)?;
        if self.ring(index)?.running {
            let change = RingChange::Kick(kick.try_clone()?);
            self.device.change_ring(index, change)?;
            self.ring(index)?.kick = Some(kick);
        } else if self.ring(index)?.has_place() && !self.state.memory.is_empty() {
            self.start_ring(index, kick)?;
        } else {
            // Size, addresses or memory are still to come.
            self.ring(index)?.kick = Some(kick);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_call(&mut self, fd: VringFd, attached: Vec<OwnedFd>) -> Handled {
        let index = u16::from(fd.index);
        self.ring(index)?;
        let call = self.transport.call(index, fd.nofd, attached)?;
        if self.ring(index)?.running {
            let change = RingChange::Call(call.try_clone()?);
            self.device.change_ring(index, change)?;
        }
        self.ring(index)?.call = call;
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_err(&mut self, fd: VringFd, attached: Vec<OwnedFd>) -> Handled {
        let index = u16::from(fd.index);
        self.ring(index)?;
        let err = self.transport.err(index, fd.nofd, attached)?;
        if self.ring(index)?.running {
            let change = RingChange::Err(err.try_clone()?);
            self.device.change_ring(index, change)?;
        }
        self.ring(index)?.err = err;
        Ok(Outcome::Done)
    }

    pub(super) fn set_vring_enable(&mut self, state: VringState) -> Handled {
        let enabled = match state.num {
            0 => false,
            1 => true,
            other => {
                return Err(SessionError::Value {
                    name: "SET_VRING_ENABLE",
                    value: other.into(),
                });
            }
        };
        let old = self.ring(state.index)?.enabled;
        self.enable_ring(state.index, enabled)?;
        if enabled && let Err(error) = self.start_waiting(state.index) {
            self.ring(state.index)?.enabled = old;
            return Err(error);
        }
        Ok(Outcome::Done)
    }

    fn enable_ring(&mut self, index: u32, enabled: bool) -> Result<(), SessionError> {
        let ring = self.ring(index)?;
        if ring.running {
            let index = ring.index;
            self.device
                .change_ring(index, RingChange::Enabled(enabled))?;
        }
        self.ring(index)?.enabled = Some(enabled);
        Ok(())
    }

    /// A front-end without protocol features cannot enable rings one by one.
    pub(super) fn enable_all_rings(&mut self) -> Result<(), SessionError> {
        for index in 0..self.state.rings.len() {
            self.enable_ring(index as u32, true)?;
        }
        Ok(())
    }

    /// Starts a ring whose kick came first, if all the rest has come now, too. If it does not
    /// start, what came last is what is wrong with it, and is forgotten.
    fn start_or_undo(&mut self, index: u32, undo: impl FnOnce(&mut Ring)) -> Handled {
        if self.ring(index)?.is_complete()
            && let Err(error) = self.start_waiting(index)
        {
            undo(self.ring(index)?);
            return Err(error);
        }
        Ok(Outcome::Done)
    }

    /// Starts a ring that has its kick and waits for something else.
    fn start_waiting(&mut self, index: u32) -> Result<(), SessionError> {
        let no_memory = self.state.memory.is_empty();
        let ring = self.ring(index)?;
        if ring.running || !ring.has_place() || no_memory {
            return Ok(());
        }
        let Some(kick) = &ring.kick else {
            return Ok(());
        };
        let (index, kick) = (ring.index, kick.try_clone()?);
        self.start_ring(index, kick)
    }

    /// Starts rings that lost their memory, or wait for it.
    pub(super) fn start_all_waiting(&mut self) {
        for index in 0..self.state.rings.len() {
            if let Err(error) = self.start_waiting(index as u32) {
                tracing::warn!(ring = index, %error, "ring does not start");
                self.status.error(format!("ring {index}: {error}"));
            }
        }
    }

    fn start_ring(&mut self, index: u16, kick: Kick) -> Result<(), SessionError> {
        let (features, memory) = (self.state.features, self.state.memory.clone());
        let ring = self.ring(index)?;
        let (Some(areas), Some(size)) = (ring.place(features, &memory)?, ring.size) else {
            return Ok(());
        };
        let (base, settled) = (ring.base, ring.settled);
        let enabled = ring.is_enabled(features);
        let vring = Vring {
            index,
            size,
            areas,
            base,
            features: features.difference(Features::PROTOCOL_FEATURES).bits(),
            enabled,
            kick: kick.try_clone()?,
            call: ring.call.try_clone()?,
            err: ring.err.try_clone()?,
            memory,
            inflight: None,
        };
        let inflight = self.inflight_region(index, size, settled)?;
        let vring = Vring { inflight, ..vring };
        self.device.start_ring(vring)?;
        let ring = self.ring(index)?;
        ring.kick = Some(kick);
        ring.running = true;
        ring.settled = false;
        self.status.ring_started();
        tracing::info!(ring = index, size, base, enabled, "ring started");
        Ok(())
    }

    /// Stops a ring if it runs, and notes where.
    pub(super) fn stop_ring(&mut self, index: impl Into<u32>) -> Result<(), SessionError> {
        let ring = self.ring(index)?;
        if !ring.running {
            return Ok(());
        }
        let index = ring.index;
        let result = self.device.stop_ring(index);
        // A device that fails to stop a ring does not serve it any more.
        let ring = self.ring(index)?;
        ring.running = false;
        let stopped = result.map(|base| ring.base = base);
        self.status.ring_stopped();
        stopped?;
        let base = self.ring(index)?.base;
        tracing::info!(ring = index, base, "ring stopped");
        Ok(())
    }

    /// Stops all rings, whatever happens.
    pub(super) fn stop_all_rings(&mut self) {
        for index in 0..self.state.rings.len() {
            if let Err(error) = self.stop_ring(index as u32) {
                tracing::warn!(ring = index, %error, "ring does not stop");
                self.status.error(format!("ring {index}: {error}"));
            }
        }
    }

    /// Where the running rings are in a new memory.
    pub(super) fn relocate(&self, memory: &MemTable) -> Relocated {
        let (mut placed, mut lost) = (Vec::new(), Vec::new());
        for ring in self.state.rings.iter().filter(|ring| ring.running) {
            match ring.place(self.state.features, memory) {
                Ok(Some(areas)) => placed.push((ring.index, areas)),
                Ok(None) => {}
                Err(error) => lost.push((ring.index, error)),
            }
        }
        Relocated { placed, lost }
    }
}
