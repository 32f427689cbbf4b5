//! Captures of ports, begun and ended while frames pass.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use pcap_parser::{Block, PcapBlockOwned, PcapError};
use vvu::virtio::{RingChange, VirtioDevice};
use vvu_pmd::mock::{Layout, MockNet};
use vvu_pmd::port::capture::{FileConfig, Recorder};
use vvu_pmd::stats::Drop;
use vvu_pmd::{PortKind, Workers};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl std::ops::Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Frames of a complete file, and whether each came from the port.
fn frames(path: &Path) -> Vec<(bool, Vec<u8>)> {
    let file = std::fs::File::open(path).unwrap();
    let mut reader = pcap_parser::create_reader(1 << 20, file).unwrap();
    let mut frames = Vec::new();
    loop {
        match reader.next() {
            Ok((len, block)) => {
                if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = &block {
                    let flags = packet.options.iter().find(|option| option.code.0 == 2);
                    let came = flags.unwrap().value[0] == 1;
                    frames.push((came, packet.data[..packet.caplen as usize].to_vec()));
                }
                reader.consume(len);
            }
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(PcapError::Eof) => return frames,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn captures_begin_and_end_while_frames_pass() {
    let scratch = Scratch::new("captures");
    let workers = Workers::start(&[0]).unwrap();
    let (id, a) = workers.add_port("a", card(A, 1), None).unwrap();
    let mut a = a.unwrap();
    let mut b = device(&workers, "b", B);
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let mut number = 0;
    let mut expected = Vec::new();
    for (round, snap) in [Recorder::SNAP, 100, 20].into_iter().enumerate() {
        let path = scratch.0.join(format!("{round}.pcapng"));
        workers.start_capture(id, &path, snap).unwrap();
        expected.clear();
        for _ in 0..50 {
            number += 1;
            let sent = frame(B, A, number, 60 + number as usize * 7);
            assert!(one.send(&sent));
            assert_eq!(receive(&mut two), sent);
            expected.push((true, sent));
            let sent = frame(A, B, number, 60 + number as usize * 5);
            assert!(two.send(&sent));
            assert_eq!(receive(&mut one), sent);
            expected.push((false, sent));
        }
        // A port stays a device while it is captured.
        a.change_ring(1, RingChange::Enabled(false)).unwrap();
        a.change_ring(1, RingChange::Enabled(true)).unwrap();
        // The last one ends by beginning another.
        if round != 0 {
            workers.stop_capture(id).unwrap();
        } else {
            let next = scratch.0.join("next.pcapng");
            workers.start_capture(id, &next, 100).unwrap();
        }
        for (_, frame) in &mut expected {
            frame.truncate(snap as usize);
        }
        assert!(frames(&path) == expected, "round {round}");
        assert!(one.send(&frame(B, A, 0, 60)));
        receive(&mut two);
    }
    assert_eq!(workers.stats().port("a").unwrap().uncaptured, 0);
    workers.stop_capture(id).unwrap();
    assert!(one.send(&frame(B, A, 1, 60)));
    assert_eq!(receive(&mut two), frame(B, A, 1, 60));
}

#[test]
fn a_capture_ends_with_its_port_and_with_the_workers() {
    let scratch = Scratch::new("ends");
    let workers = Workers::start(&[0]).unwrap();
    let (null, _) = workers.add_port("null", PortKind::Null, None).unwrap();
    let (sink, _) = workers.add_port("sink", PortKind::Null, None).unwrap();
    let mut a = device(&workers, "a", A);
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let (first, second) = (scratch.0.join("first"), scratch.0.join("second"));
    workers.start_capture(null, &first, 65535).unwrap();
    workers.start_capture(sink, &second, 65535).unwrap();
    let sent = frame(B, A, 1, 100);
    assert!(one.send(&sent));
    wait(|| workers.stats().port("sink").unwrap().tx_packets == 1);
    workers.remove_port(null).unwrap();
    assert_eq!(frames(&first), [(false, sent.clone())]);
    drop(workers);
    assert_eq!(frames(&second), [(false, sent)]);
}

#[test]
fn captures_that_cannot_be() {
    let scratch = Scratch::new("cannot");
    let workers = Workers::start(&[0]).unwrap();
    let (echo, _) = workers
        .add_port("echo", PortKind::Echo { swap: true }, None)
        .unwrap();
    let (null, _) = workers.add_port("null", PortKind::Null, None).unwrap();
    let error = workers.start_capture(echo, &scratch.0.join("a"), 100);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("echo"), "{error}");
    let path = scratch.0.join("none/a");
    let error = workers.start_capture(null, &path, 100).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("none/a") && error.contains("No such file"),
        "{error}"
    );
    workers.remove_port(null).unwrap();
    assert!(workers.start_capture(null, &path, 100).is_err());
}

/// A file plays when somebody listens, and takes what is sent, complete.
#[test]
fn files_are_ports() {
    let scratch = Scratch::new("ports");
    let (input, output) = (scratch.0.join("in"), scratch.0.join("out"));
    let sent: Vec<_> = (0..300)
        .map(|number| frame(B, A, number, 60 + number as usize))
        .collect();
    // What plays is what another such port wrote.
    let workers = Workers::start(&[0]).unwrap();
    let writer = |path: &Path| {
        PortKind::File(FileConfig {
            output: Some(path.to_owned()),
            ..FileConfig::default()
        })
    };
    let (id, _) = workers.add_port("out", writer(&input), None).unwrap();
    let mut a = device(&workers, "a", A);
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    for frame in &sent {
        wait(|| one.send(frame));
    }
    wait(|| workers.stats().port("out").unwrap().tx_packets == 300);
    workers.remove_port(id).unwrap();
    drop(workers);

    let workers = Workers::start(&[0]).unwrap();
    let kind = PortKind::File(FileConfig {
        input: Some(input),
        ..FileConfig::default()
    });
    workers.add_port("in", kind, None).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(workers.stats().port("in").unwrap().rx_packets, 0);
    workers.add_port("out", writer(&output), None).unwrap();
    wait(|| workers.stats().port("out").unwrap().tx_packets == 300);
    let stats = workers.stats();
    assert_eq!(stats.port("in").unwrap().rx_packets, 300);
    assert_eq!(stats.port("out").unwrap().dropped(Drop::WriterFull), 0);
    drop(workers);
    let written: Vec<_> = frames(&output)
        .into_iter()
        .map(|(_, frame)| frame)
        .collect();
    assert!(written == sent);
}
