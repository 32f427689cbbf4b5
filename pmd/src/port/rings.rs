//! The rings that one half of a vhost port serves: which run, which are enabled, which broke.

use std::sync::Arc;

use vvu::notify::Call;
use vvu::virtio::Vring;

use super::Stats;
use super::offload::Accepts;
use crate::stats::RingState;
use crate::vring::{Moved, Ring, RingError, SetupError};
use crate::wake::{Rest, Waker, Watch};

/// What the negotiated features say about a ring of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingKind {
    /// Length of the header before each frame.
    pub header: usize,
    /// Whether a frame may go to several chains (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
    /// Whether headers of frames to us may ask for something (VIRTIO_NET_F_CSUM).
    pub offloads: bool,
    /// What headers of frames from us may ask for.
    pub accepts: Accepts,
}

/// A ring made ready to be served, by whoever has time for it.
#[derive(Debug)]
pub struct PreparedRing {
    index: u16,
    enabled: bool,
    ring: Ring,
    kind: RingKind,
    watch: Watch,
}

impl PreparedRing {
    /// Checks the ring and lets its kick wake the sleeper of `waker`.
    pub fn new(vring: Vring, kind: RingKind, waker: &Arc<Waker>) -> Result<Self, SetupError> {
        let (index, enabled) = (vring.index, vring.enabled);
        let (ring, kick) = Ring::new(vring)?;
        Ok(Self {
            index,
            enabled,
            ring,
            kind,
            watch: waker.watch(kick).map_err(SetupError::Kick)?,
        })
    }
}

/// A ring in service.
#[derive(Debug)]
pub struct Vhost {
    pub(super) index: u16,
    pub(super) enabled: bool,
    pub(super) broken: bool,
    pub(super) kind: RingKind,
    pub(super) ring: Ring,
    pub(super) watch: Watch,
    /// Rounds since something came, while the driver has not been told that it is done.
    pub(super) lull: u8,
    pub(super) rest: Rest,
}

impl Vhost {
    /// Where the ring would go on.
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    fn state(&self) -> RingState {
        match (self.broken, self.enabled) {
            (true, _) => RingState::Broken,
            (false, true) => RingState::Running,
            (false, false) => RingState::Disabled,
        }
    }

    /// Stops the ring if it failed: counted, reported, and logged once, because it is not polled
    /// again.
    #[inline]
    pub(super) fn check(&mut self, name: &str, stats: &Stats) -> bool {
        match self.ring.failed() {
            None => true,
            Some(error) => {
                self.stop(error, name, stats);
                false
            }
        }
    }

    #[cold]
    fn stop(&mut self, error: RingError, name: &str, stats: &Stats) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        stats.fault(error.reason());
        stats.set_ring(self.index, RingState::Broken);
        self.ring.report();
        tracing::warn!(port = name, ring = self.index, %error, "ring stopped: its driver broke it");
    }
}

/// The rings of one half of a port.
#[derive(Debug)]
pub struct Rings {
    pub(super) name: Arc<str>,
    pub(super) stats: Stats,
    pub(super) all: Vec<Vhost>,
    /// Places in `all` of the rings that are enabled and not broken.
    pub(super) live: Vec<u16>,
    /// Places in `all` of the rings that each round looks at.
    pub(super) polled: Vec<u16>,
}

impl Rings {
    /// No rings yet.
    pub fn new(name: Arc<str>, stats: Stats) -> Self {
        Self {
            name,
            stats,
            all: Vec::new(),
            live: Vec::new(),
            polled: Vec::new(),
        }
    }

    /// Which rings can take frames, and which are looked at.
    pub(super) fn refresh(&mut self) {
        self.live.clear();
        let live = |(_, ring): &(usize, &Vhost)| ring.enabled && !ring.broken;
        self.live.extend(
            self.all
                .iter()
                .enumerate()
                .filter(live)
                .map(|(n, _)| n as u16),
        );
        self.refresh_polled();
    }

    fn get(&mut self, index: u16) -> Option<&mut Vhost> {
        self.all.iter_mut().find(|ring| ring.index == index)
    }

    /// Serves a ring from now on. Returns one of the same index that it replaces.
    pub fn start(&mut self, prepared: PreparedRing) -> Option<Vhost> {
        let replaced = self.stop(prepared.index);
        let ring = Vhost {
            index: prepared.index,
            enabled: prepared.enabled,
            broken: false,
            kind: prepared.kind,
            ring: prepared.ring,
            watch: prepared.watch,
            lull: 0,
            rest: Rest::default(),
        };
        self.stats.set_ring(ring.index, ring.state());
        let place = self.all.partition_point(|other| other.index < ring.index);
        self.all.insert(place, ring);
        self.refresh();
        replaced
    }

    /// Serves a ring no longer. Returns it, for somebody with time to unmap its memory.
    pub fn stop(&mut self, index: u16) -> Option<Vhost> {
        let place = self.all.iter().position(|ring| ring.index == index)?;
        let mut ring = self.all.remove(place);
        if !ring.broken {
            ring.ring.finish();
        }
        self.stats.set_ring(index, RingState::Stopped);
        self.refresh();
        Some(ring)
    }

    /// Serves no ring any longer.
    pub fn stop_all(&mut self) -> Vec<Vhost> {
        let all = std::mem::take(&mut self.all);
        self.refresh();
        for ring in &all {
            self.stats.set_ring(ring.index, RingState::Stopped);
        }
        all
    }

    /// Whether ring `index` is served.
    pub fn has(&self, index: u16) -> bool {
        self.all.iter().any(|ring| ring.index == index)
    }

    /// Whether the front-end wants ring `index` processed. False if it is not there.
    pub fn set_enabled(&mut self, index: u16, enabled: bool) -> bool {
        let Some(ring) = self.get(index) else {
            return false;
        };
        ring.enabled = enabled;
        let state = ring.state();
        self.stats.set_ring(index, state);
        self.refresh();
        true
    }

    /// Another kick. Returns the old one.
    pub fn set_kick(&mut self, index: u16, watch: Watch) -> Option<Watch> {
        Some(std::mem::replace(&mut self.get(index)?.watch, watch))
    }

    /// Another call. Returns the old one.
    pub fn set_call(&mut self, index: u16, call: Call) -> Option<Call> {
        Some(self.get(index)?.ring.set_call(call))
    }

    /// Another way to report errors. Returns the old one.
    pub fn set_err(&mut self, index: u16, err: Call) -> Option<Call> {
        Some(self.get(index)?.ring.set_err(err))
    }

    /// Moves ring `index` to a new memory. Returns the old one.
    pub fn set_memory(&mut self, index: u16, moved: Moved) -> Option<Moved> {
        Some(self.get(index)?.ring.set_memory(moved))
    }
}
