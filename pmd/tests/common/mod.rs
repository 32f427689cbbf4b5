//! What the tests with running workers share.
#![allow(clippy::unwrap_used, dead_code)]

use std::time::{Duration, Instant};

use vvu_pmd::mock::{MockGuest, MockNet};
use vvu_pmd::stats::Drop;
use vvu_pmd::{NetConfig, NetDevice, PortKind, Workers};

/// A guest's address.
pub(crate) const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
/// Another's.
pub(crate) const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A network card.
pub(crate) fn card(mac: [u8; 6], pairs: u16) -> PortKind {
    PortKind::Vhost(NetConfig {
        mac,
        pairs,
        ..NetConfig::default()
    })
}

/// The device of a new port with one pair of queues.
pub(crate) fn device(workers: &Workers, name: &str, mac: [u8; 6]) -> NetDevice {
    let (_, device) = workers.add_port(name, card(mac, 1), None).unwrap();
    device.unwrap()
}

/// A guest's memory, in pieces.
pub(crate) fn memory(start: u64) -> MockGuest {
    MockGuest::new(start, &[1 << 20, (1 << 20) + 0x330, 5 << 20])
}

/// A frame whose bytes follow from its number.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    for (byte, value) in frame[14..].iter_mut().zip(number..) {
        *byte = value as u8;
    }
    frame
}

/// A UDP packet of a flow, with a number.
pub(crate) fn udp(to: [u8; 6], from: [u8; 6], flow: u32, number: u32) -> Vec<u8> {
    let mut frame = frame(to, from, 0, 64);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[
        0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame[34..36].copy_from_slice(&(flow as u16).to_be_bytes());
    frame[36..38].copy_from_slice(&9u16.to_be_bytes());
    frame[42..46].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Flow and number of such a packet.
pub(crate) fn flow_of(frame: &[u8]) -> (u16, u32) {
    let flow = u16::from_be_bytes(frame[34..36].try_into().unwrap());
    (flow, u32::from_be_bytes(frame[42..46].try_into().unwrap()))
}

/// Waits until `what` holds.
pub(crate) fn wait(mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "it did not happen");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The next frame that arrives.
pub(crate) fn receive(net: &mut MockNet) -> Vec<u8> {
    let start = Instant::now();
    loop {
        if let Some((_, frame)) = net.receive() {
            return frame;
        }
        assert!(start.elapsed() < PATIENCE, "no frame arrived");
        std::thread::yield_now();
    }
}

/// Frames that a port dropped.
pub(crate) fn dropped(workers: &Workers, name: &str, reason: Drop) -> u64 {
    workers.stats().port(name).unwrap().dropped(reason)
}
