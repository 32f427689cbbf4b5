//! What a driver must do: statements 1 to 16, on the modelled device in every dialect.
//!
//! A case gets the shape of a device. The driver is the real one, `vvu::device`, and above it,
//! where a statement is about what a front-end is served, transport, session and data plane.

mod bring_up;
mod connections;
mod driven;
mod memory;
mod messages;
mod served;
mod signals;
mod watched;

use vvu::model::Shape;

/// A case's name and what it does.
type Case = (&'static str, fn(&Shape));

/// A dialect's name and its shape.
type Dialect = (&'static str, fn() -> Shape);

/// Whose devices there are or were.
pub(crate) const DIALECTS: [Dialect; 4] = [
    ("ours", Shape::ours),
    ("prototype-1058", || Shape::prototype(0x1058)),
    ("prototype-106b", || Shape::prototype(0x106b)),
    ("crosvm", Shape::crosvm),
];

/// In the order of the checklist.
pub(crate) const CASES: &[Case] = crate::cases! {
    bring_up:
        c01_identity
        c02_capabilities
        c03_status_is_one_store
        c04_receive_buffers;
    connections: c05_message_before_interrupt;
    messages: c06_sent_chains;
    signals: c07_doorbells c08_kick_vectors;
    memory: c09_rules c10_new_memory c11_garbage_in_rings;
    connections: c12_a_thousand_front_ends;
    signals: c13_early_kicks;
    messages: c14_features_without_descriptors c15_replies;
};
