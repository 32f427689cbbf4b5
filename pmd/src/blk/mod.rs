//! A disk as a VIRTIO device (VIRTIO 1.2, 5.2).
//!
//! What a driver sees of a disk is its [`Face`]: features, configuration space, id. A [`Queue`]
//! is one of its request queues in service: it takes a burst of chains, makes requests of them,
//! submits them to its own channel of the disk, and gives each chain back when its request is
//! done, in whatever order that is. Chains and requests meet in the queue's slots, of which there
//! are no more than the ring has entries; each carries its memory, so that a ring can be stopped
//! or moved without anybody having to trust the disk.
//!
//! | file | what |
//! |---|---|
//! | `config` | feature bits and configuration space |
//! | `request` | what a chain asks for |
//! | `queue` | a ring in service |
//! | `slots` | requests in flight |
//! | `stats` | what was done |
//!
//! This room does not know who polls it, nor what is behind the disk.

mod config;
mod face;
mod queue;
mod request;
mod slots;
mod stats;

pub use config::{BlkConfig, feature};
pub use face::Face;
pub use queue::{PrepareError, Prepared, Queue};
pub use slots::Lists;
pub use stats::{KINDS, QueueSnapshot, Snapshot, TIMED};
