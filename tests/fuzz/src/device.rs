//! A network card served on the thread of its session: what `NetDevice` is to a worker, without
//! the worker.
//!
//! The switch has the card's port and one that sends every frame back where it came from, so that
//! what a guest sends, it receives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vvu::memory::MemTable;
use vvu::virtio::{DeviceError, RingAreas, RingChange, VirtioDevice, Vring};
use vvu_pmd::NetConfig;
use vvu_pmd::net::{Fdb, Inbox, Place, Shared, Switch};
use vvu_pmd::port::{PreparedRing, Rings, RxPort, TxPort, VhostRx, VhostTx};
use vvu_pmd::stats::PortStats;
use vvu_pmd::vring::{Moved, RingError, SetupError};
use vvu_pmd::wake::Waker;

/// The card's port, and the other one.
const CARD: u16 = 0;
const ECHO: u16 = 1;

/// The card, and for whoever plays the worker its switch.
pub(crate) struct Card {
    config: NetConfig,
    switch: Arc<Mutex<Switch>>,
    waker: Arc<Waker>,
    /// Size and features of the rings that run.
    running: BTreeMap<u16, (u16, u64)>,
}

impl Card {
    pub(crate) fn new(pairs: u16) -> Option<Self> {
        let waker = Waker::new().ok()?;
        let shared = Shared {
            fdb: Arc::new(Fdb::new(300)),
            inboxes: vec![Inbox::new(1, Arc::clone(&waker))],
            pool: None,
        };
        let mut switch = Switch::new(0, shared, Arc::default())?;
        let stats = PortStats::new(2 * usize::from(pairs), &RingError::REASONS);
        let rings = || Rings::new("fuzzed".into(), Arc::clone(&stats));
        let rx = RxPort::Vhost(VhostRx::new(rings()));
        let tx = TxPort::Vhost(VhostTx::new(rings()));
        switch.add(CARD, rx, tx, Arc::clone(&stats));
        switch.place(ECHO, Place::Echo { swap: true });
        Some(Self {
            config: NetConfig {
                pairs,
                ..NetConfig::default()
            },
            switch: Arc::new(Mutex::new(switch)),
            waker,
            running: BTreeMap::new(),
        })
    }

    pub(crate) fn switch(&self) -> Arc<Mutex<Switch>> {
        Arc::clone(&self.switch)
    }

    /// Does something with the rings that queue `index` belongs to.
    fn rings<R>(&self, index: u16, what: impl FnOnce(&mut Rings) -> R) -> Result<R, DeviceError> {
        let mut switch = lock(&self.switch);
        match switch.port(CARD) {
            Some((_, TxPort::Vhost(tx))) if index.is_multiple_of(2) => Ok(what(&mut tx.rings)),
            Some((RxPort::Vhost(rx), _)) if !index.is_multiple_of(2) => Ok(what(&mut rx.rings)),
            _ => unreachable!("the port is there"),
        }
    }
}

pub(crate) fn lock(switch: &Mutex<Switch>) -> MutexGuard<'_, Switch> {
    switch.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(_: SetupError) -> DeviceError {
    DeviceError::Unsupported("such a ring")
}

impl VirtioDevice for Card {
    fn device_id(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queues(&self) -> u16 {
        2 * self.config.pairs
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        let space = self.config.space(self.config.mac, self.config.mtu, false);
        let bytes = space
            .get(offset as usize..)
            .and_then(|rest| rest.get(..data.len()));
        let access = "read";
        let len = data.len();
        data.copy_from_slice(bytes.ok_or(DeviceError::Config {
            access,
            offset,
            len,
        })?);
        Ok(())
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::Config {
            access: "write",
            offset,
            len: data.len(),
        })
    }

    fn set_features(&mut self, features: u64) -> Result<(), DeviceError> {
        assert!(self.running.is_empty(), "features change while rings run");
        assert_eq!(features & !self.features(), 0, "features not offered");
        Ok(())
    }

    fn start_ring(&mut self, ring: Vring) -> Result<(), DeviceError> {
        let (index, size, features) = (ring.index, ring.size, ring.features);
        assert!(index < self.queues());
        assert!(!self.running.contains_key(&index), "ring {index} runs");
        let kind = NetConfig::ring_kind(features);
        let prepared = PreparedRing::new(ring, kind, &self.waker).map_err(refused)?;
        let replaced = self.rings(index, |rings| rings.start(prepared))?;
        assert!(replaced.is_none());
        self.running.insert(index, (size, features));
        Ok(())
    }

    fn change_ring(&mut self, index: u16, change: RingChange) -> Result<(), DeviceError> {
        assert!(self.running.contains_key(&index), "ring {index} is stopped");
        match change {
            RingChange::Kick(kick) => {
                let watch = self.waker.watch(kick);
                let watch = watch.map_err(|error| refused(SetupError::Kick(error)))?;
                drop(self.rings(index, |rings| rings.set_kick(index, watch))?);
            }
            RingChange::Call(call) => {
                drop(self.rings(index, |rings| rings.set_call(index, call))?);
            }
            RingChange::Err(err) => {
                drop(self.rings(index, |rings| rings.set_err(index, err))?);
            }
            RingChange::Enabled(enabled) => {
                self.rings(index, |rings| rings.set_enabled(index, enabled))?;
            }
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, DeviceError> {
        assert!(
            self.running.remove(&index).is_some(),
            "ring {index} is stopped"
        );
        let stopped = self.rings(index, |rings| rings.stop(index))?;
        Ok(stopped.map_or(0, |ring| ring.base()))
    }

    fn set_memory(
        &mut self,
        memory: Arc<MemTable>,
        places: Vec<(u16, RingAreas)>,
    ) -> Result<(), DeviceError> {
        let moved: Vec<u16> = places.iter().map(|(index, _)| *index).collect();
        let running: Vec<u16> = self.running.keys().copied().collect();
        assert_eq!(
            moved, running,
            "left: rings with a new place, right: rings that run"
        );
        for (index, areas) in places {
            if let Some(&(size, features)) = self.running.get(&index) {
                let moved = Moved::new(Arc::clone(&memory), areas, size, features);
                let moved = moved.map_err(refused)?;
                drop(self.rings(index, |rings| rings.set_memory(index, moved))?);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        assert!(self.running.is_empty(), "the session stops rings first");
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        self.config.mtu = mtu;
        Ok(())
    }

    fn announce(&mut self, _mac: [u8; 6]) -> Result<(), DeviceError> {
        Ok(())
    }
}
