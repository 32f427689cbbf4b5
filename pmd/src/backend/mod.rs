//! Where control meets data: devices as sessions see them, ports as workers serve them.
//!
//! [`Workers`] starts the threads and adds ports to their switch; [`NetDevice`] is a network card
//! whose queues are a port. What is slow (checking, mapping, unmapping, allocating) happens on
//! the caller's side; a worker only takes over what was made ready and hands back what is old.

mod net;
mod workers;

pub use net::NetDevice;
pub use workers::{BackendError, Config, GenConfig, PortId, PortKind, Workers};
