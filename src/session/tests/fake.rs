//! A device that remembers what was done to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::memory::MemTable;
use crate::virtio::{DeviceError, RingAreas, RingChange, VirtioDevice, Vring};

/// What happened to the device, and what it has now.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) features: u64,
    pub(super) rings: BTreeMap<u16, Vring>,
    /// Where the next stopped ring stops; counts up, as if the ring had been used.
    pub(super) progress: u32,
    pub(super) memory: Option<Arc<MemTable>>,
    pub(super) resets: u32,
    pub(super) starts: u32,
    pub(super) config: Vec<u8>,
    pub(super) mtu: Option<u16>,
    pub(super) announced: Option<[u8; 6]>,
    /// Whether it tracks what is in flight.
    pub(super) tracks: bool,
    /// How often its configuration has changed, if it ever does.
    pub(super) changes: Option<u64>,
    /// The next call of this name fails.
    pub(super) fail: Option<&'static str>,
    /// How long `set_memory` takes.
    pub(super) slow_memory: Duration,
}

/// A network card that moves nothing.
#[derive(Debug, Clone)]
pub(super) struct FakeDevice {
    seen: Arc<Mutex<Seen>>,
    queues: u16,
    offered: u64,
}

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const PACKED: u64 = 1 << 34;
pub(super) const MTU: u64 = 1 << 3;

impl FakeDevice {
    pub(super) fn new(queues: u16) -> Self {
        let seen = Seen {
            config: (0..24).collect(),
            tracks: true,
            ..Seen::default()
        };
        Self {
            seen: Arc::new(Mutex::new(seen)),
            queues,
            // The last two are for the session to take away.
            offered: VERSION_1 | PACKED | MTU | 1 << 29 | 1 << 26 | 1 << 33,
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn fails(&self, name: &'static str) -> Result<(), DeviceError> {
        let mut seen = self.seen();
        if seen.fail == Some(name) {
            seen.fail = None;
            return Err(DeviceError::WorkerGone);
        }
        Ok(())
    }
}

impl VirtioDevice for FakeDevice {
    fn device_id(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn tracks_inflight(&self) -> bool {
        self.seen().tracks
    }

    fn config_changes(&self) -> Option<u64> {
        self.seen().changes
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        let seen = self.seen();
        let bytes = seen
            .config
            .get(offset as usize..)
            .and_then(|rest| rest.get(..data.len()))
            .ok_or(DeviceError::Config {
                access: "read",
                offset,
                len: data.len(),
            })?;
        data.copy_from_slice(bytes);
        Ok(())
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let mut seen = self.seen();
        let bytes = seen
            .config
            .get_mut(offset as usize..)
            .and_then(|rest| rest.get_mut(..data.len()))
            .ok_or(DeviceError::Config {
                access: "write",
                offset,
                len: data.len(),
            })?;
        bytes.copy_from_slice(data);
        Ok(())
    }

    fn set_features(&mut self, features: u64) -> Result<(), DeviceError> {
        self.fails("set_features")?;
        assert!(self.seen().rings.is_empty());
        assert_eq!(features & 1 << 30, 0);
        self.seen().features = features;
        Ok(())
    }

    fn start_ring(&mut self, ring: Vring) -> Result<(), DeviceError> {
        self.fails("start_ring")?;
        let mut seen = self.seen();
        assert_eq!(ring.features, seen.features);
        seen.starts += 1;
        assert!(seen.rings.insert(ring.index, ring).is_none());
        Ok(())
    }

    fn change_ring(&mut self, index: u16, change: RingChange) -> Result<(), DeviceError> {
        self.fails("change_ring")?;
        let mut seen = self.seen();
        let ring = seen.rings.get_mut(&index).expect("the ring runs");
        match change {
            RingChange::Kick(kick) => ring.kick = kick,
            RingChange::Call(call) => ring.call = call,
            RingChange::Err(err) => ring.err = err,
            RingChange::Enabled(enabled) => ring.enabled = enabled,
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, DeviceError> {
        self.fails("stop_ring")?;
        let mut seen = self.seen();
        let ring = seen.rings.remove(&index).expect("the ring runs");
        seen.progress += 1;
        Ok(ring.base + seen.progress)
    }

    fn set_memory(
        &mut self,
        memory: Arc<MemTable>,
        rings: Vec<(u16, RingAreas)>,
    ) -> Result<(), DeviceError> {
        self.fails("set_memory")?;
        let slow = self.seen().slow_memory;
        std::thread::sleep(slow);
        let mut seen = self.seen();
        let moved: Vec<u16> = rings.iter().map(|(index, _)| *index).collect();
        assert_eq!(moved, seen.rings.keys().copied().collect::<Vec<u16>>());
        for (index, areas) in rings {
            let ring = seen.rings.get_mut(&index).unwrap();
            ring.areas = areas;
            ring.memory = Arc::clone(&memory);
        }
        seen.memory = Some(memory);
        Ok(())
    }

    fn reset(&mut self) {
        let mut seen = self.seen();
        assert!(seen.rings.is_empty(), "the session stops rings first");
        seen.features = 0;
        seen.memory = None;
        seen.resets += 1;
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        if mtu < 68 {
            return Err(DeviceError::Unsupported("an MTU below 68"));
        }
        self.seen().mtu = Some(mtu);
        Ok(())
    }

    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.seen().announced = Some(mac);
        Ok(())
    }
}
