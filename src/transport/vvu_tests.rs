#![allow(clippy::unwrap_used)]
use std::time::Duration;

use super::*;
use crate::device::Options;
use crate::model::Shape;
use crate::model::faults::Fault;
use crate::model::test_rig::Rig;

fn transport(shape: Shape) -> (Rig, VvuTransport) {
    let (rig, function) = Rig::new(shape);
    let options = Options {
        timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let device = Device::open(function, options).unwrap();
    (rig, VvuTransport::new(device))
}

fn connected() -> (Rig, VvuTransport) {
    let (rig, mut transport) = transport(Shape {
        window: 1 << 30,
        ..Shape::ours()
    });
    rig.connect();
    assert!(matches!(transport.next(), Some(Event::Connected)));
    (rig, transport)
}

fn raw(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let words = [request, flags, size].map(u32::to_le_bytes);
    [words.as_flattened(), payload].concat()
}

#[test]
fn messages_are_cut_from_their_buffers() {
    let (rig, mut transport) = connected();
    assert_eq!(transport.name(), "vvu:model");
    // What follows the message in its buffer means nothing.
    assert!(rig.model.inject(&raw(99, 0xd, 3, &[1, 2, 3, 4, 5])));
    let Some(Event::Message(incoming)) = transport.next() else {
        panic!("no message");
    };
    let message = Message {
        request: 99,
        flags: 0xd,
        payload: vec![1, 2, 3],
    };
    assert_eq!(incoming.message, message);
    assert!(incoming.attached.is_empty());
    transport.send(&message).unwrap();
    assert_eq!(rig.sent(), [raw(99, 0xd, 3, &[1, 2, 3])]);
    assert!(transport.next().is_none());
    assert_eq!(rig.model.violations(), [""; 0]);
}

#[test]
fn what_is_no_message_ends_the_connection() {
    for bytes in [
        raw(1, 1, 0, &[])[..11].to_vec(),
        raw(1, 1, 4, &[1, 2, 3]),
        raw(1, 1, u32::MAX, &[]),
        raw(1, 2, 0, &[]),
        raw(1, 0, 0, &[]),
    ] {
        let (rig, mut transport) = connected();
        assert!(rig.model.inject(&bytes));
        let gone = transport.next();
        assert!(
            matches!(gone, Some(Event::Disconnected(Gone::Violation(_)))),
            "{gone:?}"
        );
        assert!(!rig.is_connected());
        // And the next one is let in.
        assert!(transport.next().is_none());
        rig.connect();
        assert!(matches!(transport.next(), Some(Event::Connected)));
    }
}

#[test]
fn a_front_end_that_does_not_read_is_dropped() {
    let (rig, mut transport) = connected();
    let message = Message {
        request: 1,
        flags: 5,
        payload: vec![0; 8],
    };
    rig.model.fault(Some(Fault::TxHeld));
    let error = loop {
        if let Err(error) = transport.send(&message) {
            break error;
        }
    };
    assert!(matches!(error, TransportError::Send(_)), "{error}");
    assert!(matches!(
        transport.send(&message),
        Err(TransportError::NotConnected)
    ));
    assert!(matches!(
        transport.next(),
        Some(Event::Disconnected(Gone::Failed(_)))
    ));
    assert!(!rig.is_connected());
}

fn change() -> Message {
    Message {
        request: 2,
        flags: 1,
        payload: vec![],
    }
}

#[test]
fn requests_of_ours_go_where_a_front_end_listens() {
    let (rig, mut transport) = connected();
    assert!(!transport.send_request(&change()), "nobody listens");
    let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    assert!(matches!(
        transport.backend_channel(vec![fd]),
        Err(TransportError::Attached { found: 1, .. })
    ));
    transport.backend_channel(vec![]).unwrap();
    assert!(transport.send_request(&change()));
    assert_eq!(rig.sent(), [[0; 0]; 0], "not where replies go");
    // Answers that nobody asked for are no messages, however many come.
    for _ in 0..40 {
        assert!(rig.model.inject(&raw(2, 5, 8, &[0; 8])));
    }
    assert!(rig.model.inject(&raw(99, 1, 0, &[])));
    let message = std::iter::from_fn(|| Some(transport.next()))
        .flatten()
        .next();
    assert!(
        matches!(&message, Some(Event::Message(incoming)) if incoming.message.request == 99),
        "{message:?}"
    );
    // A device that takes none is not waited for.
    rig.model.fault(Some(Fault::TxHeld));
    let sent = (0..1000).take_while(|_| transport.send_request(&change()));
    assert!(sent.count() < 1000);
    assert!(!transport.send_request(&change()), "given up");
    rig.model.fault(None);
    // The next front-end has not said that it listens.
    transport.backend_channel(vec![]).unwrap();
    rig.connect();
    assert!(matches!(transport.next(), Some(Event::Disconnected(_))));
    assert!(!transport.send_request(&change()));
    assert_eq!(rig.model.violations(), [""; 0]);
}

#[test]
fn devices_without_a_channel_say_so() {
    let (_rig, mut transport) = transport(Shape::prototype(0x1058));
    let refused = transport.backend_channel(vec![]);
    assert!(matches!(refused, Err(TransportError::Send(_))));
    assert!(!transport.send_request(&change()));
}

#[test]
fn resources_come_without_descriptors() {
    let (rig, mut transport) = connected();
    let fd = || vec![rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap()];
    assert_eq!(transport.max_rings(), 256);
    assert!(matches!(
        transport.kick(0, false, fd()),
        Err(TransportError::Attached { found: 1, .. })
    ));
    assert!(transport.call(0, false, fd()).is_err());
    assert!(transport.err(0, false, fd()).is_err());
    assert!(transport.map_memory(&[], fd(), true).is_err());
    for result in [
        transport.kick(256, false, vec![]).map(|_| ()),
        transport.call(256, true, vec![]).map(|_| ()),
        transport.err(u16::MAX, false, vec![]).map(|_| ()),
    ] {
        assert!(matches!(
            result,
            Err(TransportError::NoSuchRing { limit: 256, .. })
        ));
    }

    let kick = transport.kick(3, false, vec![]).unwrap();
    rig.model.kick(3);
    assert!(matches!(kick, Kick::Event(_)));
    assert!(matches!(transport.kick(3, true, vec![]), Ok(Kick::Polled)));
    // Ring 100 is beyond the rings with a vector.
    assert!(matches!(
        transport.kick(100, false, vec![]),
        Ok(Kick::Polled)
    ));
    transport.call(3, false, vec![]).unwrap().ring();
    transport.call(4, true, vec![]).unwrap().ring();
    transport.err(5, false, vec![]).unwrap().ring();
    assert_eq!(rig.model.rung(), [3, 261]);
}

#[test]
fn memory_is_a_window_and_has_an_end() {
    let (_rig, mut transport) = connected();
    let region = |size, mmap_offset| RegionRequest {
        guest_addr: 0x1000,
        size,
        user_addr: 0x7f00_0000_0000,
        mmap_offset,
    };
    let regions = transport
        .map_memory(&[region(0x3000, 0x20_0000)], vec![], true)
        .unwrap();
    assert_eq!(regions.len(), 1);
    assert_eq!(regions[0].bytes.len(), 0x3000);
    assert_eq!(
        (regions[0].guest_addr, regions[0].user_addr),
        (0x1000, 0x7f00_0000_0000)
    );
    let error = transport.map_memory(&[region(2 << 30, 4096)], vec![], true);
    assert!(matches!(
        error,
        Err(TransportError::Window {
            start: 4096,
            window: 0x4000_0000,
            ..
        })
    ));
    assert!(
        transport
            .map_memory(&[region(u64::MAX, 4096)], vec![], true)
            .is_err()
    );
}

#[test]
fn features_that_need_descriptors_are_never_offered() {
    let (_rig, transport) = connected();
    let offered = transport.protocol_features();
    for bit in [1, 8, 10, 11, 14, 15, 17, 18, 19, 22] {
        assert_eq!(offered >> bit & 1, 0, "bit {bit}");
    }
    for bit in [0, 2, 3, 4, 5, 9, 12, 13, 16] {
        assert_eq!(offered >> bit & 1, 1, "bit {bit}");
    }
    assert_eq!(offered >> 24, 0);
    // In-flight buffers and requests of ours need a device that carries them.
    let (_rig, transport) = self::transport(Shape::crosvm());
    assert_eq!(transport.protocol_features() & (1 << 12 | 1 << 5), 0);
}

#[test]
fn ended_by_us_and_left_quiet() {
    let (rig, mut transport) = connected();
    transport.disconnect();
    assert!(!rig.is_connected());
    assert!(transport.next().is_none());
    rig.connect();
    assert!(matches!(transport.next(), Some(Event::Connected)));
    transport.shutdown();
    assert!(rig.is_quiet());
    assert!(transport.next().is_none());
    assert!(matches!(
        transport.send(&Message {
            request: 1,
            flags: 1,
            payload: vec![]
        }),
        Err(TransportError::NotConnected)
    ));
}
