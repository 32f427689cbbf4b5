//! The border between control and data plane.
//!
//! A back-end is a whole VIRTIO device, [`VirtioDevice`]; the session drives it through the life
//! that a front-end asks for and hands it running rings, [`Vring`]. Neither knows how messages
//! or notifications travel.

pub mod inflight;

use std::sync::Arc;

use thiserror::Error;

use crate::memory::{Area, MemTable};
use crate::notify::{Call, Kick};

/// The three parts of a ring, as bytes (VIRTIO 1.2, 2.7 and 2.8). Their lengths fit the ring's
/// size and negotiated features: the session checked that.
#[derive(Debug, Clone)]
pub struct RingAreas {
    /// Descriptor table (split) or descriptor ring (packed).
    pub desc: Area,
    /// Driver area: available ring (split) or driver event suppression (packed).
    pub driver: Area,
    /// Device area: used ring (split) or device event suppression (packed).
    pub device: Area,
}

/// A ring that the back-end shall serve from now on.
#[derive(Debug)]
pub struct Vring {
    /// Queue index within the device, from 0.
    pub index: u16,
    /// Number of descriptors: 1 to 32768, a power of two for split rings.
    pub size: u16,
    /// Where the ring is.
    pub areas: RingAreas,
    /// Where to begin, as in SET_VRING_BASE: for split rings the next available index in the low
    /// 16 bits; for packed rings bits 0-14 and 15 are the available index and wrap counter, bits
    /// 16-30 and 31 the used ones.
    pub base: u32,
    /// Negotiated feature bits of the device.
    pub features: u64,
    /// Whether the front-end wants the ring processed: a ring that is started but not enabled is
    /// left alone, save that a net device drops what arrives for it.
    pub enabled: bool,
    /// Front-end to us.
    pub kick: Kick,
    /// Us to front-end: buffers were used.
    pub call: Call,
    /// Us to front-end: the ring is broken.
    pub err: Call,
    /// What the addresses in the ring's descriptors mean.
    pub memory: Arc<MemTable>,
    /// The ring's region of the front-end's in-flight buffer, if there is one: at least
    /// [`inflight::needed`] bytes of shared memory, which the front-end can write, too.
    pub inflight: Option<Area>,
}

/// A change to a ring that runs.
#[derive(Debug)]
pub enum RingChange {
    /// A new way to be kicked. The ring must be looked at once, because a kick may be lost.
    Kick(Kick),
    /// A new way to call. The new one must be rung once if the old one may have been lost.
    Call(Call),
    /// A new way to report errors.
    Err(Call),
    /// Processing wanted or not (SET_VRING_ENABLE).
    Enabled(bool),
}

/// Why a device refuses what a front-end asks for. The session answers the message with an error
/// or ends the connection.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A feature that was not offered, or a combination that VIRTIO forbids.
    #[error("features {acked:#x} are not a valid subset of the offered {offered:#x}")]
    Features {
        /// What the front-end acknowledged.
        acked: u64,
        /// What the device offers.
        offered: u64,
    },
    /// A queue index that the device does not have.
    #[error("queue {index} does not exist, the device has {queues}")]
    NoQueue {
        /// Index asked for.
        index: u16,
        /// Number of queues.
        queues: u16,
    },
    /// The ring is in the wrong state for this.
    #[error("queue {index} is {state}")]
    RingState {
        /// Queue index.
        index: u16,
        /// What it is instead.
        state: &'static str,
    },
    /// An access outside the configuration space, or to a read-only field.
    #[error("configuration space has no {access} of {len} bytes at {offset}")]
    Config {
        /// "read" or "write".
        access: &'static str,
        /// Offset into the device's configuration structure.
        offset: u32,
        /// Length of the access.
        len: usize,
    },
    /// The device has no such operation or refuses the value.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The thread that serves the rings is gone.
    #[error("the worker does not answer")]
    WorkerGone,
}

/// A VIRTIO device as a back-end implements it.
///
/// One front-end at a time drives it, from one thread. Calls that touch running rings return only
/// when the data plane has taken note: after `set_memory`, nothing reads the old memory; after
/// `stop_ring`, nothing touches the ring.
pub trait VirtioDevice: Send {
    /// VIRTIO device id (VIRTIO 1.2, section 5): 1 is a network card.
    fn device_id(&self) -> u16;

    /// Feature bits offered: the device's own (0-23, 50-63) and the reserved ones that its rings
    /// implement (24-49). The session adds bit 30, which belongs to vhost-user.
    fn features(&self) -> u64;

    /// Number of queues.
    fn queues(&self) -> u16;

    /// Whether the device keeps book of what it has taken and not given back, in a buffer that
    /// outlives it, and does that again when a ring starts (vhost-user INFLIGHT_SHMFD). For devices
    /// whose requests must not be lost: disks, not networks.
    fn tracks_inflight(&self) -> bool {
        false
    }

    /// Bytes of configuration space from `offset` on (VIRTIO 1.2, 2.5). All of `data` or an error.
    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError>;

    /// How often the configuration space has changed by itself, for devices where that happens. The
    /// front-end is told when the number is another one.
    fn config_changes(&self) -> Option<u64> {
        None
    }

    /// The driver writes configuration space.
    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError>;

    /// The driver accepted `features` (without bit 30). May come again with other bits while no
    /// ring runs, and with bit 26 (VHOST_F_LOG_ALL) toggled at any time.
    fn set_features(&mut self, features: u64) -> Result<(), DeviceError>;

    /// Serve this ring. It must not be running.
    fn start_ring(&mut self, ring: Vring) -> Result<(), DeviceError>;

    /// Something about a running ring changes.
    fn change_ring(&mut self, index: u16, change: RingChange) -> Result<(), DeviceError>;

    /// Stop serving a ring: everything taken from it is given back first. Returns where it
    /// stopped, in the form of [`Vring::base`].
    fn stop_ring(&mut self, index: u16) -> Result<u32, DeviceError>;

    /// The front-end's memory is now `memory`; `rings` are the new places of all running rings.
    fn set_memory(
        &mut self,
        memory: Arc<MemTable>,
        rings: Vec<(u16, RingAreas)>,
    ) -> Result<(), DeviceError>;

    /// Back to the beginning: rings stopped, memory forgotten, features cleared. At a reset and
    /// at the end of each connection.
    fn reset(&mut self);

    /// The front-end's view of the link's MTU (vhost-user NET_SET_MTU).
    fn set_mtu(&mut self, _mtu: u16) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("MTU"))
    }

    /// Announce `mac` to the network on the guest's behalf (vhost-user SEND_RARP).
    fn announce(&mut self, _mac: [u8; 6]) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("announcing a MAC address"))
    }
}
