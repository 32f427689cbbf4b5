//! Doorbells and kicks, as a driver uses them.

use vvu::model::{Dialect, Shape};
use vvu::protocol::{Request, VringFd};

use super::driven::Driven;
use super::served::{Guest, Served, until};
use super::watched::{Change, Store};
use crate::driver::{KICK, NONE};
use crate::front_end::{FrontEnd, PLAIN, eventfd, request, signal, signals, wait_signal};
use crate::step;

/// A device with a front-end that has said something, which is heard.
fn up(driven: &mut Driven) -> FrontEnd {
    assert!(driven.next_within(std::time::Duration::ZERO).is_none());
    let mut front_end = driven.modelled.connect();
    front_end.plain(request::GET_FEATURES);
    driven.is_connected();
    driven.next();
    front_end
}

pub(super) fn c07_doorbells(shape: &Shape) {
    let rings = shape.rings;
    for (multiplier, rings) in [(2, rings), (4, rings), (4096, rings), (4, 1), (2, 3)] {
        step(format!(
            "{rings} rings, a doorbell every {multiplier} bytes"
        ));
        let shape = Shape {
            multiplier,
            rings,
            ..shape.clone()
        };
        let mut driven = Driven::new(&shape);
        let bells = driven.modelled.found().doorbells;
        let store = |index: u32| Store {
            bar: bells.location.bar,
            offset: bells.location.offset + u64::from(index) * u64::from(multiplier),
            width: 2,
            value: index,
        };
        let mut front_end = up(&mut driven);
        let last = rings.min(256) as u16 - 1;
        for ring in [0, last / 3, last] {
            let call = eventfd();
            let number = request::SET_VRING_CALL;
            front_end.number(number, PLAIN, ring.into(), &[&call]);
            driven.next();
            let (register, value) = driven.device.doorbell(ring).unwrap();
            driven.watch.forget();
            register.write(value);
            assert_eq!(wait_signal(&call), 1);
            assert_eq!(driven.watch.stores(), [store(ring.into())]);
        }
        assert!(driven.device.doorbell(last + 1).is_none());

        // Errors have doorbells of their own behind those, on devices that have any.
        let error = eventfd();
        front_end.number(request::SET_VRING_ERR, PLAIN, last.into(), &[&error]);
        driven.next();
        driven.watch.forget();
        if let Some((register, value)) = driven.device.error_doorbell(last) {
            register.write(value);
            assert_eq!(driven.watch.stores(), [store(rings + u32::from(last))]);
        }
        let ours = shape.dialect == Dialect::Ours;
        assert_eq!(signals(&error), u64::from(ours));
    }
}

pub(super) fn c08_kick_vectors(shape: &Shape) {
    let rings = shape.rings.min(64).min(u32::from(shape.vectors) - 3) as u16;
    let driven = Driven::new(shape);
    let selector = driven.modelled.found().notifications;
    let programmed = |driven: &Driven| -> Vec<(u16, u16)> {
        let stores = driven.watch.stores();
        let stores: Vec<_> = (stores.iter())
            .filter(|store| store.inside(selector).is_some())
            .collect();
        let pairs = stores.chunks(2).map(|pair| {
            assert_eq!((pair[0].inside(selector), pair[0].width), (Some(0), 2));
            assert_eq!((pair[1].inside(selector), pair[1].width), (Some(2), 2));
            (pair[0].value as u16, pair[1].value as u16)
        });
        pairs.collect()
    };
    // Every ring that a message can name, those without a vector too.
    let all = shape.rings.min(256) as u16;
    let expected: Vec<_> = (0..all)
        .map(|ring| (ring, if ring < rings { KICK + ring } else { NONE }))
        .collect();
    assert_eq!(programmed(&driven), expected);
    for ring in 0..all {
        let kick = driven.device.kick(ring).unwrap();
        assert_eq!(kick.is_some(), ring < rings, "ring {ring}");
    }
    drop(driven);

    // A kick becomes readable here.
    let mut driven = Driven::new(shape);
    let mut front_end = up(&mut driven);
    let kick = eventfd();
    front_end.number(request::SET_VRING_KICK, PLAIN, 5, &[&kick]);
    driven.next();
    signal(&kick);
    assert!(wait_signal(&driven.device.kick(5).unwrap().unwrap()) > 0);
    drop(driven);

    // A device that grants none, or has too few: rings are polled, and are served.
    let refused = Change {
        ones: Some((selector.bar, selector.offset + 2)),
        ..Change::default()
    };
    let few = |vectors| Change {
        vectors: Some(vectors),
        ..Change::default()
    };
    for (granted, change) in [
        (0, refused),
        (2, few(5)),
        (1, few(4)),
        (0, few(3)),
        (0, few(2)),
        (0, few(1)),
        (0, few(0)),
    ] {
        step(format!("{:?} vectors", change.vectors));
        let driven = Driven::changed(shape, change.clone()).unwrap();
        let kicks = (0..8).filter(|ring| driven.device.kick(*ring).unwrap().is_some());
        assert_eq!(kicks.count(), granted);
        drop(driven);
        let served = Served::changed(shape, change);
        let mut guest = Guest::started(&served);
        guest.exchange(1);
    }
}

pub(super) fn c13_early_kicks(shape: &Shape) {
    let served = Served::new(shape);
    let mut guest = Guest::connect(&served);
    guest.set_memory();
    guest.start(0);
    guest.prepare(1);
    // Kicked, and not only before the ring has a kick: nobody says so again afterwards.
    guest.post_rx();
    guest.rings[0].notify();
    guest.post_tx(7);
    guest.rings[1].notify();
    guest.arm(1);
    guest.expect(7);

    // Kicked on a descriptor that the device does not have yet, when the worker sleeps.
    until("the worker sleeps", || served.sleeps() > 0);
    guest.post_rx();
    guest.rings[0].notify();
    let fd = VringFd {
        index: 1,
        nofd: false,
    };
    let other = eventfd();
    guest.post_tx(8);
    signal(&other);
    guest.front_end.ok(&Request::SetVringKick(fd), &[&other]);
    guest.expect(8);
    // And on that one alone from now on.
    for number in 9..20 {
        guest.post_rx();
        guest.rings[0].notify();
        guest.post_tx(number);
        signal(&other);
        guest.expect(number);
    }
}
