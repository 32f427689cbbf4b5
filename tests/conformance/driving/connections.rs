//! Front-ends come and go.

use std::time::Duration;

use vvu::model::Shape;

use super::driven::Driven;
use super::served::{Guest, Served, until};
use super::watched::Change;
use crate::driver::CONFIG;
use crate::front_end::{PLAIN, message, request};
use crate::step;

pub(super) fn c05_message_before_interrupt(shape: &Shape) {
    // The interrupt that would tell of the front-end never comes: its message does.
    let change = Change {
        silent: Some(CONFIG),
        ..Change::default()
    };
    let mut driven = Driven::changed(shape, change).unwrap();
    assert!(driven.next_within(Duration::ZERO).is_none());
    let mut front_end = driven.modelled.connect();
    for number in [1, 2, 3] {
        front_end.send(request::UNKNOWN, PLAIN, &[number], &[]);
    }
    driven.is_connected();
    for number in [1, 2, 3] {
        driven.hears(&message(request::UNKNOWN, PLAIN, &[number]).to_bytes());
    }
    driven
        .device
        .send(&[&message(request::GET_FEATURES, 5, &[0; 8]).to_bytes()])
        .unwrap();
    assert_eq!(front_end.answer(request::GET_FEATURES), 0);
}

/// What this process has: descriptors, and mappings of guests' memory.
fn holdings() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let guests = maps
        .lines()
        .filter(|line| line.contains("/memfd:vvu-guest"));
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    (descriptors, guests.count())
}

/// The drafts' devices say in their status that a front-end has gone, crosvm's by an empty buffer.
pub(super) fn c12_a_thousand_front_ends(shape: &Shape) {
    let served = Served::new(shape);
    let mut baseline = None;
    for round in 0..1000u32 {
        step(format!("front-end {round}"));
        let mut guest = Guest::started(&served);
        if round.is_multiple_of(100) {
            guest.exchange(round);
        }
        assert_eq!(served.session.status().report().running_rings, 2);
        // Something is under way when it leaves.
        guest.post_tx(round);
        guest.rings[1].notify();
        guest.front_end.plain(request::GET_FEATURES);
        drop(guest);
        until("its rings are stopped", || served.is_idle());
        if round.is_multiple_of(100) {
            // Its memory goes when the driver comes back.
            let (descriptors, _) = *baseline.get_or_insert_with(holdings);
            until("everything of it has gone", || {
                holdings() == (descriptors, 0)
            });
        }
    }
    let status = served.modelled.model.status();
    let report = served.session.status().report();
    assert_eq!(report.connections, 1000);
    // An empty buffer is the end of a connection, not a bad message.
    assert_eq!(report.violations, 0, "{:?}", report.last_error);
    assert_eq!(status.counters.violations, 0, "{:?}", status.last_refusal);
    assert_eq!(status.counters.broken, 0, "{:?}", status.last_refusal);
    assert_eq!(status.generation, 1000);
}
