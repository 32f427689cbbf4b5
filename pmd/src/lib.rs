//! The data plane of **vvu**: from a running ring to moved bytes.

pub mod mempool;
pub mod net;
pub mod port;
pub mod stats;
pub mod vring;
pub mod wake;
