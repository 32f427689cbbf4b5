//! Disks as SCSI units of a virtio-scsi device (VIRTIO 1.2, 5.6), around a pure [`target`].
//!
//! What a driver sees is a [`Face`]: targets with units on disks, which may come and go. Its
//! queues share nothing but that. A request queue asks the target what a command means, submits
//! what that takes to a channel of its own for each disk, and gives the chain back when all is
//! done. The control queue's task management reaches request queues by [`Letter`], wherever they
//! are served; each task that must end holds the barrier that its manager waits for.
//!
//! | file | what |
//! |---|---|
//! | `target` | what commands mean; pure |
//! | `config` | feature bits and configuration space |
//! | `wire` | layouts of requests, responses, task management and events |
//! | `domain` | targets, units and the disks behind them |
//! | `face` | what all queues of a device have in common |
//! | `served` | a ring in service, whatever it is for |
//! | `queue`, `control`, `events` | the three kinds of queue |
//! | `begin`, `step`, `orders` | a request queue's work: new commands; what becomes of them; how they must end |
//! | `tasks`, `ways` | commands under way, and the channels that they take |
//! | `store` | reservations in a file |
//! | `stats` | what was done |

mod begin;
mod config;
mod control;
mod domain;
mod events;
mod face;
mod orders;
mod queue;
mod served;
mod stats;
mod step;
mod store;
pub mod target;
mod tasks;
mod ways;
mod wire;

pub use config::{ScsiConfig, feature};
pub use domain::{Address, Disks, Lun};
pub use face::{Face, Letter, Mailbox};
pub use queue::{PrepareError, Prepared, Queue};
pub use stats::{KINDS, QueueSnapshot, Snapshot};
pub use store::{Store, StoreError};
