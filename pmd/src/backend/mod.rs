//! Where control meets data: devices as sessions see them, ports as workers serve them.
//!
//! [`Workers`] starts the threads and adds ports to their switch; [`NetDevice`] is a network card
//! whose queues are a port. [`Storage`] starts the threads for storage devices, whose queues share
//! nothing but their disks: each goes to the worker that has the fewest; [`BlkDevice`] is a disk,
//! [`ScsiDevice`] a host with many.
//! What is slow (checking, mapping, unmapping, allocating) happens on
//! the caller's side; a worker only takes over what was made ready and hands back what is old.

mod blk;
mod common;
mod device;
mod net;
mod ports;
mod scsi;
mod shelf;
mod storage;
mod workers;

pub use blk::{BlkDevice, BlkWorkers};
pub use device::{Front, Place, StorageDevice};
pub use net::NetDevice;
pub use ports::{BackendError, GenConfig, PortKind};
pub use scsi::{ScsiDevice, ScsiWorkers};
pub use storage::Storage;
pub use workers::{Config, PortId, Workers};
