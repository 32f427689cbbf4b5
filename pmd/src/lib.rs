//! The data plane of **vvu**: from a running ring to moved bytes.
//!
//! [`Workers`] are pinned polling threads with a learning switch between the ports they serve. A
//! guest's network card is a port, and a [`NetDevice`] that a session of the `vvu` library drives
//! through [`vvu::virtio::VirtioDevice`].
//!
//! | room | what lives there |
//! |---|---|
//! | [`vring`] | the device side of one ring, and the accessors to its memory |
//! | [`mempool`] | buffers for frames that outlive a burst |
//! | [`stats`] | counters; every drop has a name |
//! | [`wake`] | where a worker sleeps, and what wakes it |
//! | [`queue`] | a queue of a storage device in service, of whatever kind |
//! | [`port`] | where frames come from and go to, a burst at a time |
//! | [`bdev`] | what is behind a disk: bytes that are read and written asynchronously |
//! | [`blk`] | the virtio block device |
//! | [`net`] | the virtio network device's face, and the switch |
//! | [`scsi`] | a pure SCSI target, and the virtio-scsi device around it |
//! | [`worker`] | one pinned polling thread |
//! | [`backend`] | where control meets data |
//!
//! A frame between two guests is copied once, from the buffer of one to the buffer of the other.

pub mod backend;
pub mod bdev;
pub mod blk;
pub mod mempool;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
pub mod net;
pub mod port;
pub mod queue;
pub mod scsi;
pub mod stats;
pub mod vring;
pub mod wake;
pub mod worker;

pub use backend::{
    BackendError, BlkDevice, BlkWorkers, Config, GenConfig, NetDevice, PortId, PortKind,
    ScsiDevice, ScsiWorkers, Workers,
};
pub use net::NetConfig;
