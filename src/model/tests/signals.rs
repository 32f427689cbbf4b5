//! Kicks, doorbells, vectors: nothing is lost, nothing spins.

use std::os::fd::{AsFd, OwnedFd};

use super::bench::{Bench, until};
use crate::model::kicks::{self, Bell};
use crate::model::{NO_VECTOR, Shape};

fn event() -> OwnedFd {
    kicks::event().unwrap()
}

fn is_signalled(fd: &OwnedFd) -> bool {
    kicks::take(fd.as_fd())
}

impl Bench {
    fn shared(&self) -> &crate::model::Shared {
        self.model.shared()
    }

    /// The selector, as a driver uses it: what reads back.
    fn map(&self, ring: u16, vector: u16) -> u16 {
        let at = self
            .shared()
            .layout
            .get(crate::model::layout::Kind::Selector);
        self.model.write_bar(at.bar, at.offset, &ring.to_le_bytes());
        self.model
            .write_bar(at.bar, at.offset + 2, &vector.to_le_bytes());
        let mut data = [0; 2];
        self.model.read_bar(at.bar, at.offset + 2, &mut data);
        u16::from_le_bytes(data)
    }
}

#[test]
fn a_kick_waits_for_its_vector_and_the_vector_for_its_reader() {
    let bench = Bench::new(Shape::ours());
    let (kick, vector) = (event(), event());
    bench
        .shared()
        .kicks
        .set_kick(5, Some(kick.try_clone().unwrap()));
    kicks::signal(kick.as_fd());
    let relayed = || bench.model.status().counters.kicks;
    assert_eq!(bench.map(5, 9), 9);
    bench.model.read_config(0, &mut [0; 4]);
    assert_eq!(relayed(), 0, "nobody is there to be told");
    bench.model.set_vector(9, Some(vector.try_clone().unwrap()));
    until("told", || is_signalled(&vector));
    assert_eq!(relayed(), 1);
    // Unmapped, it stays where it is; mapped again, it is found.
    assert_eq!(bench.map(5, NO_VECTOR), NO_VECTOR);
    kicks::signal(kick.as_fd());
    assert!(!is_signalled(&vector));
    assert_eq!(bench.map(5, 9), 9);
    until("found", || is_signalled(&vector));
    // Another descriptor takes its place; the old one means nothing any more.
    let next = event();
    bench
        .shared()
        .kicks
        .set_kick(5, Some(next.try_clone().unwrap()));
    kicks::signal(kick.as_fd());
    kicks::signal(next.as_fd());
    until("the new one", || is_signalled(&vector));
    assert!(is_signalled(&kick), "still there");
    bench.shared().kicks.drop_all();
    kicks::signal(next.as_fd());
    assert!(!is_signalled(&vector));
}

#[test]
fn a_vector_that_nobody_hears_is_pending() {
    let bench = Bench::new(Shape::ours());
    assert!(bench.shared().kicks.fire(70));
    assert!(!bench.shared().kicks.fire(3 + 256));
    let at = bench
        .shared()
        .layout
        .get(crate::model::layout::Kind::Pending);
    assert_eq!(bench.u32(at.bar, at.offset + 8), 1 << 6);
    let vector = event();
    bench
        .model
        .set_vector(70, Some(vector.try_clone().unwrap()));
    assert!(is_signalled(&vector));
    assert_eq!(bench.u32(at.bar, at.offset + 8), 0);
}

#[test]
fn vectors_are_granted_as_far_as_they_exist() {
    for shape in [Shape::ours(), Shape::prototype(0x1058), Shape::crosvm()] {
        let bench = Bench::new(shape.clone());
        let most = shape.vectors - 1;
        assert_eq!(bench.map(0, most), most);
        assert_eq!(bench.map(0, most + 1), NO_VECTOR);
        assert_eq!(bench.map(shape.usable_rings(), 1), NO_VECTOR);
        assert_eq!(bench.map(u16::MAX, 1), NO_VECTOR);
        assert_eq!(bench.map(1, 1), 1);
        bench.model.reset();
        assert_eq!(bench.shared().kicks.selector(), [0, NO_VECTOR]);
    }
}

#[test]
fn a_doorbell_is_rung_by_any_write_at_its_place_and_nowhere_else() {
    for multiplier in [2, 4, 4096] {
        let bench = Bench::new(Shape {
            multiplier,
            ..Shape::ours()
        });
        let (call, err) = (event(), event());
        let kicks = &bench.shared().kicks;
        kicks.set_bell(Bell::Call, 7, Some(call.try_clone().unwrap()));
        kicks.set_bell(Bell::Err, 7, Some(err.try_clone().unwrap()));
        let stride = u64::from(multiplier);
        for data in [&[0][..], &[7, 0], &[1, 2, 3, 4], &[0xff; 8]] {
            bench.model.write_bar(0, 7 * stride, data);
            assert!(is_signalled(&call));
            assert!(!is_signalled(&err));
            bench.model.write_bar(0, (256 + 7) * stride, data);
            assert!(is_signalled(&err));
            assert!(!is_signalled(&call));
            for elsewhere in [7 * stride - 1, 7 * stride + 1, 6 * stride, 512 * stride] {
                bench.model.write_bar(0, elsewhere, data);
            }
            assert!(!is_signalled(&call) && !is_signalled(&err));
        }
        kicks.set_bell(Bell::Call, 7, None);
        bench.model.write_bar(0, 7 * stride, &[7, 0]);
        assert!(!is_signalled(&call));
    }
}
