//! A guest's network card as a port (VIRTIO 1.2, 5.1.6): its transmit queues are what comes from
//! the port, its receive queues are what goes to it.
//!
//! The header before each frame (5.1.6) is judged on the way in. On the way out it asks for what
//! the sender asked for, if this guest takes that; otherwise the frame is completed first, which
//! costs a copy more.

mod rx;
mod tx;

pub use rx::VhostRx;
pub use tx::VhostTx;
pub(super) use tx::{Sent, put};

/// Length of the longest header without a hash: with the number of merged buffers, at offset 10.
pub(super) const HEADER: usize = 12;
