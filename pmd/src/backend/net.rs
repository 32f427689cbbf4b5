//! A network card as a session sees it (VIRTIO 1.2, 5.1), whose queues are a port of the switch.

use std::collections::BTreeMap;
use std::sync::Arc;

use vvu::memory::{Area, MemTable};
use vvu::virtio::{DeviceError, RingAreas, RingChange, VirtioDevice, Vring};

use super::common::{self, setup};
use crate::net::{Control, ControlPort, Fdb, NetConfig, Switch};
use crate::port::{PreparedRing, Rings, RxPort, TxPort};
use crate::vring::{Moved, SetupError};
use crate::worker::Worker;

/// VIRTIO device id of a network card.
const NETWORK: u16 = 1;

/// What must be known of a running ring to move it.
#[derive(Debug, Clone, Copy)]
struct Running {
    size: u16,
    features: u64,
}

/// A network card. The port behind it outlives its connections.
#[derive(Debug)]
pub struct NetDevice {
    config: NetConfig,
    /// The MTU as the front-end sees it: the configured one unless it said otherwise.
    mtu: u16,
    /// What the driver accepted.
    features: u64,
    port: u16,
    worker: Arc<Worker<Switch>>,
    fdb: Arc<Fdb>,
    running: BTreeMap<u16, Running>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive,
    Transmit,
    Control,
}

/// The rings that a queue of this role belongs to.
fn rings(switch: &mut Switch, port: u16, role: Role) -> Option<&mut Rings> {
    if role == Role::Control {
        return switch.control(port).map(ControlPort::rings);
    }
    match switch.port(port)? {
        (_, TxPort::Vhost(tx)) if role == Role::Receive => Some(&mut tx.rings),
        (RxPort::Vhost(rx), _) if role == Role::Transmit => Some(&mut rx.rings),
        _ => None,
    }
}

impl NetDevice {
    pub(super) fn new(
        config: NetConfig,
        port: u16,
        worker: Arc<Worker<Switch>>,
        fdb: Arc<Fdb>,
    ) -> Self {
        Self {
            mtu: config.mtu,
            features: 0,
            config,
            port,
            worker,
            fdb,
            running: BTreeMap::new(),
        }
    }

    fn known(&self, index: u16) -> Result<(), DeviceError> {
        let queues = self.queues();
        if index < queues {
            return Ok(());
        }
        Err(DeviceError::NoQueue { index, queues })
    }

    fn is_running(&self, index: u16) -> Result<(), DeviceError> {
        self.known(index)?;
        if self.running.contains_key(&index) {
            return Ok(());
        }
        Err(DeviceError::RingState {
            index,
            state: "not running",
        })
    }

    /// What queue `index` is for: even ones are receive queues, to the guest (5.1.2).
    fn role(&self, index: u16) -> Role {
        if self.config.control_queue(self.features) == Some(index) {
            Role::Control
        } else if index.is_multiple_of(2) {
            Role::Receive
        } else {
            Role::Transmit
        }
    }

    /// Runs `what` on what the driver said on its control queue, at the worker. `None` without
    /// such a queue, or without the port.
    fn with_control<R: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Control) -> R + Send + 'static,
    ) -> Option<R> {
        let port = self.port;
        let call = move |switch: &mut Switch| Some(what(switch.control(port)?.control()));
        self.config.control.then(|| self.worker.call(call).ok())??
    }

    /// Runs `what` on the rings of queue `index`, at the worker.
    fn with_rings<R: Send + 'static>(
        &self,
        index: u16,
        what: impl FnOnce(&mut Rings) -> R + Send + 'static,
    ) -> Result<R, DeviceError> {
        let (port, role) = (self.port, self.role(index));
        self.worker
            .call(move |switch| rings(switch, port, role).map(what))
            .map_err(|_| DeviceError::WorkerGone)?
            .ok_or(DeviceError::Unsupported("the port was removed"))
    }
}

impl VirtioDevice for NetDevice {
    fn device_id(&self) -> u16 {
        NETWORK
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queues(&self) -> u16 {
        self.config.queues()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        let now = |control: &mut Control| (control.mac(), control.wants_announcement());
        let (mac, announce) = self.with_control(now).unwrap_or((self.config.mac, false));
        let space = self.config.space(mac, self.mtu, announce);
        common::read_space(&space, offset, data)
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        // Read-only since VERSION_1 (5.1.4.2).
        Err(DeviceError::Config {
            access: "write",
            offset,
            len: data.len(),
        })
    }

    fn set_features(&mut self, features: u64) -> Result<(), DeviceError> {
        common::check_features(features, self.features())?;
        // Every ring brings the features it is started with; these say which it is.
        self.features = features;
        if self.config.control {
            let port = self.port;
            let negotiated = self
                .worker
                .call(move |switch| switch.negotiate(port, features));
            negotiated.map_err(|_| DeviceError::WorkerGone)?;
        }
        Ok(())
    }

    fn start_ring(&mut self, ring: Vring) -> Result<(), DeviceError> {
        let index = ring.index;
        self.known(index)?;
        if self.running.contains_key(&index) {
            return Err(DeviceError::RingState {
                index,
                state: "running already",
            });
        }
        let running = Running {
            size: ring.size,
            features: ring.features,
        };
        let mut kind = NetConfig::ring_kind(ring.features);
        // The driver may have changed its mind since it accepted its features.
        let accepts = self.with_control(|control| control.accepts());
        kind.accepts = accepts.unwrap_or(kind.accepts);
        let resumes = ring.base & 0x7fff != 0;
        let prepared = PreparedRing::new(ring, kind, self.worker.waker()).map_err(setup)?;
        drop(self.with_rings(index, move |rings| rings.start(prepared))?);
        self.running.insert(index, running);
        if index == 0 && resumes {
            // Its driver knew the network before, and may be at another place of it now.
            self.with_control(Control::ask_announcement);
        }
        Ok(())
    }

    fn change_ring(&mut self, index: u16, change: RingChange) -> Result<(), DeviceError> {
        self.is_running(index)?;
        // Old descriptors are closed on this side. The worker polls all rings after any request,
        // so a kick that went to the old descriptor is not missed.
        match change {
            RingChange::Kick(kick) => {
                let watch = self.worker.waker().watch(kick);
                let watch = watch.map_err(|error| setup(SetupError::Kick(error)))?;
                drop(self.with_rings(index, move |rings| rings.set_kick(index, watch))?);
            }
            RingChange::Call(call) => {
                drop(self.with_rings(index, move |rings| rings.set_call(index, call))?);
            }
            RingChange::Err(err) => {
                drop(self.with_rings(index, move |rings| rings.set_err(index, err))?);
            }
            RingChange::Enabled(enabled) => {
                self.with_rings(index, move |rings| rings.set_enabled(index, enabled))?;
            }
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, DeviceError> {
        self.is_running(index)?;
        let stopped = self.with_rings(index, move |rings| rings.stop(index))?;
        self.running.remove(&index);
        let stopped = stopped.ok_or(DeviceError::RingState {
            index,
            state: "not running",
        })?;
        Ok(stopped.base())
    }

    fn set_memory(
        &mut self,
        memory: Arc<MemTable>,
        places: Vec<(u16, RingAreas)>,
    ) -> Result<(), DeviceError> {
        let mut moves = Vec::new();
        for (index, areas) in places {
            self.is_running(index)?;
            if let Some(Running { size, features }) = self.running.get(&index).copied() {
                let moved = Moved::new(Arc::clone(&memory), areas, size, features);
                moves.push((index, self.role(index), moved.map_err(setup)?));
            }
        }
        let moved = moves.iter().map(|(index, ..)| *index);
        common::check_moved(self.running.keys().copied(), moved)?;
        let port = self.port;
        let old = self.worker.call(move |switch| {
            let moved = moves.into_iter();
            let moved =
                moved.map(|(index, role, to)| rings(switch, port, role)?.set_memory(index, to));
            moved.collect::<Vec<_>>()
        });
        // The old memory is unmapped on this side.
        drop(old.map_err(|_| DeviceError::WorkerGone)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.running.clear();
        self.mtu = self.config.mtu;
        self.features = 0;
        let port = self.port;
        let old = self.worker.call(move |switch| {
            let mut old = Vec::new();
            for role in [Role::Receive, Role::Transmit, Role::Control] {
                if let Some(rings) = rings(switch, port, role) {
                    old.extend(rings.stop_all());
                }
            }
            switch.negotiate(port, 0);
            old
        });
        if let Err(error) = old {
            tracing::error!(%error, "rings could not be stopped");
        }
        self.fdb.flush(port);
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        if !(NetConfig::MIN_MTU..=NetConfig::MAX_MTU).contains(&mtu) {
            return Err(DeviceError::Unsupported("an MTU outside 68 to 9216"));
        }
        self.mtu = mtu;
        Ok(())
    }

    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        let frame = vvu::memory::Mapping::anonymous(RARP_LEN)
            .map_err(|_| DeviceError::Unsupported("announcing without memory"))?;
        frame.slice().copy_from(&rarp(mac));
        let (port, frame) = (self.port, Area::from(frame));
        self.worker
            .call(move |switch| {
                switch.inject(port, frame.slice());
                frame
            })
            .map(drop)
            .map_err(|_| DeviceError::WorkerGone)
    }
}

/// Shortest Ethernet frame without its checksum.
const RARP_LEN: usize = 60;

/// A reverse ARP request, broadcast from `mac` about itself (RFC 903): it asks for nothing, but
/// every switch on its way learns where `mac` is now.
fn rarp(mac: [u8; 6]) -> [u8; RARP_LEN] {
    let mut frame = [0; RARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // EtherType RARP; hardware Ethernet, protocol IPv4, lengths 6 and 4, request reverse.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}
