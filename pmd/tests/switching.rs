//! Mock drivers exchange frames through running workers.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use vvu_pmd::mock::{Layout, MockGuest, MockNet};
use vvu_pmd::{NetConfig, NetDevice, PortKind, Workers};

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const PATIENCE: Duration = Duration::from_secs(10);

fn card(mac: [u8; 6], pairs: u16) -> PortKind {
    PortKind::Vhost(NetConfig {
        mac,
        mtu: 1500,
        pairs,
    })
}

fn device(workers: &Workers, name: &str, mac: [u8; 6]) -> NetDevice {
    workers
        .add_port(name, card(mac, 1), None)
        .unwrap()
        .1
        .unwrap()
}

fn frame(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    for (byte, value) in frame[14..].iter_mut().zip(number..) {
        *byte = value as u8;
    }
    frame
}

fn receive(net: &mut MockNet) -> Vec<u8> {
    let start = Instant::now();
    loop {
        if let Some((_, frame)) = net.receive() {
            return frame;
        }
        assert!(start.elapsed() < PATIENCE, "no frame arrived");
        std::thread::yield_now();
    }
}

#[test]
fn two_guests_exchange_frames() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let memory = |start| MockGuest::new(start, &[1 << 20, 1 << 20, 1 << 20]);
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x10_0000), Layout::default());
    for number in 0..1000 {
        let there = frame(B, A, number, 60 + number as usize % 1440);
        assert!(one.send(&there));
        assert_eq!(receive(&mut two), there);
        let back = frame(A, B, number, 1500);
        assert!(two.send_parts(0, &back, &[0, 14, 700], number % 2 == 0));
        assert_eq!(receive(&mut one), back);
    }
    let stats = workers.stats();
    assert_eq!(stats.port("a").unwrap().rx_packets, 1000);
    assert_eq!(stats.port("a").unwrap().tx_packets, 1000);
    assert_eq!(stats.port("a").unwrap().unlearnt, 1);
    println!("{stats}");
}
