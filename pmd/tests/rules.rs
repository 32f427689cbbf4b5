//! Ports with rules between mock drivers and running workers: what frames look like when they
//! arrive.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use vvu_pmd::mock::{Layout, MockNet};
use vvu_pmd::net::{Rules, VlanSet, Vlans, feature};
use vvu_pmd::port::MAX_FRAME;
use vvu_pmd::stats::Drop;
use vvu_pmd::{BackendError, NetDevice, PortId, PortKind, Workers};

fn guest(workers: &Workers, name: &str, worker: usize, rules: Rules) -> (PortId, NetDevice) {
    let mac = [2, 0, 0, 0, 1, name.as_bytes()[0]];
    let port = workers.add_port_with(name, card(mac, 1), Some(worker), rules);
    let (id, device) = port.unwrap();
    (id, device.unwrap())
}

fn drive(device: &mut NetDevice, layout: Layout) -> MockNet {
    MockNet::start(device, memory(0x1000), layout)
}

fn in_vlans(vlans: Vlans) -> Rules {
    Rules {
        vlans,
        ..Rules::default()
    }
}

fn trunk(native: Option<u16>) -> Rules {
    in_vlans(Vlans::Trunk {
        tagged: VlanSet::new([10, 20]),
        native,
    })
}

/// The same frame with a tag.
fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let [high, low] = tci.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

#[test]
fn tags_come_and_go() {
    // All with one worker, and the trunks with another.
    for (cpus, other) in [(&[0][..], 0), (&[0, 1], 1)] {
        let workers = Workers::start(cpus).unwrap();
        let (_, mut a) = guest(&workers, "a", 0, in_vlans(Vlans::Access(10)));
        let (_, mut b) = guest(&workers, "b", other, trunk(None));
        let (_, mut c) = guest(&workers, "c", other, trunk(Some(10)));
        let mut one = drive(&mut a, Layout::default());
        let mut two = drive(&mut b, Layout::default());
        let small = Layout {
            buffer: 300,
            ..Layout::default()
        };
        let mut three = drive(&mut c, small);
        for (number, len) in [14, 60, 92, 93, 96, 97, 100, 1514, MAX_FRAME - 4]
            .iter()
            .enumerate()
        {
            let bare = frame([0xff; 6], A, number as u32, *len);
            // From the access port.
            assert!(one.send_parts(0, &bare, &[7], false));
            assert_eq!(receive(&mut two), tagged(&bare, 10), "{len}");
            assert_eq!(receive(&mut three), bare);
            // With a priority: it is kept where there are tags.
            assert!(one.send(&tagged(&bare, 0xe000)));
            assert_eq!(receive(&mut two), tagged(&bare, 0xe00a));
            assert_eq!(receive(&mut three), bare);
            // From a trunk.
            assert!(two.send_parts(0, &tagged(&bare, 0x600a), &[13, 15], true));
            assert_eq!(receive(&mut one), bare);
            assert_eq!(receive(&mut three), bare);
            assert!(two.send(&tagged(&bare, 20)));
            assert_eq!(receive(&mut three), tagged(&bare, 20));
        }
        assert!(one.receive().is_none());
        assert!(two.send(&tagged(&frame(A, B, 1, 60), 30)));
        assert!(two.send(&frame(A, B, 1, 60)));
        wait(|| dropped(&workers, "b", Drop::Vlan) == 2);
    }
}

#[test]
fn requests_follow_their_frames_through_tags() {
    let workers = Workers::start(&[0]).unwrap();
    let (_, mut a) = guest(&workers, "a", 0, in_vlans(Vlans::Access(10)));
    let (_, mut b) = guest(&workers, "b", 0, trunk(None));
    let (_, mut c) = guest(&workers, "c", 0, trunk(None));
    let mut one = drive(&mut a, Layout::default());
    let mut two = drive(&mut b, Layout::default());
    let plain = Layout {
        features: !feature::GUEST_CSUM,
        ..Layout::default()
    };
    let mut three = drive(&mut c, plain);
    let mut packet = udp([0xff; 6], A, 1, 2);
    packet[40..42].fill(0);
    let asking = |start: u8| [1, 0, 0, 0, 0, 0, start, 0, 6, 0];
    assert!(one.send_asking(&asking(34), &packet));
    let arrived = |net: &mut MockNet| {
        let mut arrived = None;
        wait(|| {
            arrived = net.receive_asked();
            arrived.is_some()
        });
        let (_, header, frame) = arrived.unwrap();
        (header, frame)
    };
    let (header, frame) = arrived(&mut two);
    // As long as nobody filled it in, the request is about what is 4 bytes further on.
    assert_eq!((header, &frame), (asking(38), &tagged(&packet, 10)));
    let (header, frame) = arrived(&mut three);
    assert_eq!(header, [0; 10]);
    assert_eq!(frame[..44], tagged(&packet, 10)[..44]);
    // The sum over what the request covered is whole now.
    let words = frame[38..].chunks(2);
    let sum: u64 = words.map(|w| u64::from(w[0]) << 8 | u64::from(w[1])).sum();
    assert_eq!(sum % 0xffff, 0, "{frame:x?}");
    // And back.
    assert!(two.send_asking(&asking(38), &tagged(&packet, 10)));
    assert_eq!(arrived(&mut one), (asking(34), packet));
}

#[test]
fn a_monitor_sees_what_arrives() {
    for (cpus, other) in [(&[0][..], 0), (&[0, 1], 1)] {
        let workers = Workers::start(cpus).unwrap();
        let (watched, mut a) = guest(&workers, "a", 0, trunk(None));
        let (_, mut b) = guest(&workers, "b", 0, in_vlans(Vlans::Access(10)));
        let (monitor, mut m) = guest(&workers, "m", other, Rules::default());
        let mut one = drive(&mut a, Layout::default());
        let mut two = drive(&mut b, Layout::default());
        let mut three = drive(&mut m, Layout::default());
        workers.mirror(watched, monitor).unwrap();
        let there = tagged(&frame(B, A, 1, 1000), 10);
        assert!(one.send(&there));
        assert_eq!(receive(&mut three), there);
        assert_eq!(receive(&mut two), frame(B, A, 1, 1000));
        let back = frame(A, B, 2, 1200);
        assert!(two.send(&back));
        assert_eq!(receive(&mut one), tagged(&back, 10));
        assert_eq!(receive(&mut three), tagged(&back, 10));
        // What is dropped is seen too; what the monitor sends is not.
        assert!(one.send(&there[..17]));
        assert_eq!(receive(&mut three), there[..17]);
        assert!(three.send(&frame([0xff; 6], B, 1, 60)));
        wait(|| dropped(&workers, "m", Drop::Monitor) == 1);
        assert!(two.receive().is_none());
        // Without its monitor, a port is as it was.
        workers.remove_port(monitor).unwrap();
        assert!(one.send(&there));
        assert_eq!(receive(&mut two), frame(B, A, 1, 1000));
    }
}

#[test]
fn rules_that_contradict_each_other() {
    let workers = Workers::start(&[0]).unwrap();
    let held = Rules {
        statics: vec![A],
        ..Rules::default()
    };
    let add = |name, kind, rules| workers.add_port_with(name, kind, None, rules);
    let is_refused =
        |result: Result<_, BackendError>| matches!(result, Err(BackendError::Rules(_)));
    let null = || PortKind::Null;
    let (one, _) = add("one", null(), held.clone()).unwrap();
    assert!(is_refused(add("two", null(), held.clone())));
    assert!(is_refused(add(
        "echo",
        PortKind::Echo { swap: true },
        held.clone()
    )));
    assert!(is_refused(add(
        "vlan",
        null(),
        in_vlans(Vlans::Access(4095))
    )));
    // In VLANs of their own, both may have it; nobody is left from what was refused.
    let (two, _) = add("two", null(), in_vlans(Vlans::Access(5))).unwrap();
    assert_eq!(workers.stats().ports.len(), 2);
    assert!(matches!(
        workers.mirror(one, one),
        Err(BackendError::Rules(_))
    ));
    workers.mirror(one, two).unwrap();
    assert!(matches!(
        workers.mirror(two, one),
        Err(BackendError::Rules(_))
    ));
    // An address is free when its port is gone.
    workers.remove_port(one).unwrap();
    add("three", null(), held).unwrap();
}
