//! Control queues: what a driver says there, and what becomes of frames to its guest.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use vvu::virtio::VirtioDevice;
use vvu_pmd::mock::{Buffer, Layout, MockGuest, MockNet, MockQueue};
use vvu_pmd::net::feature;
use vvu_pmd::port::rss::{FlowHash, types};
use vvu_pmd::stats::Drop;
use vvu_pmd::vring::feature as ring;
use vvu_pmd::{NetConfig, NetDevice, PortKind, Workers};

const PAIRS: u16 = 4;
const OK: u8 = 0;
const ERR: u8 = 1;
/// Answers are somewhere that is not zero before.
const UNANSWERED: u8 = 0xaa;

/// A guest with a control queue.
struct Card {
    device: NetDevice,
    net: MockNet,
    control: MockQueue,
    guest: MockGuest,
    place: u64,
}

impl Card {
    fn new(workers: &Workers, refused: u64) -> Self {
        let config = NetConfig {
            mac: A,
            pairs: PAIRS,
            control: true,
            ..NetConfig::default()
        };
        let added = workers.add_port("a", PortKind::Vhost(config.clone()), Some(0));
        let mut device = added.unwrap().1.unwrap();
        assert_eq!(device.queues(), 2 * PAIRS + 1);
        let features = device.features() & !refused;
        let mut guest = MockGuest::new(0x1000, &[24 << 20]);
        let mut control = MockQueue::new(&mut guest, 16, features, 0);
        let place = guest.alloc(0x10000, 16);
        let layout = Layout {
            features,
            pairs: PAIRS,
            ..Layout::default()
        };
        let net = MockNet::start(&mut device, guest.clone(), layout);
        let (vring, ..) = control.vring(config.control_queue(features).unwrap());
        device.start_ring(vring).unwrap();
        Self {
            device,
            net,
            control,
            guest,
            place,
        }
    }

    /// Says a command, cut at `cuts`; the answer, and how many bytes were written.
    fn say_in_pieces(&mut self, command: &[u8], cuts: &[usize], room: u32) -> (u8, u32) {
        let (place, answer) = (self.place, self.place + 0xf000);
        self.guest.write(place, command);
        self.guest.write(answer, &[UNANSWERED]);
        let mut chain = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&command.len()]) {
            chain.push(Buffer {
                addr: place + from as u64,
                len: (to - from) as u32,
                writable: false,
            });
            from = to;
        }
        chain.push(Buffer {
            addr: answer,
            len: room,
            writable: true,
        });
        self.control.add(&chain).unwrap();
        self.control.submit();
        let mut used = None;
        wait(|| {
            used = self.control.used();
            used.is_some()
        });
        (self.guest.read(answer, 1)[0], used.unwrap().1)
    }

    fn say(&mut self, command: &[u8]) -> u8 {
        let (answer, written) = self.say_in_pieces(command, &[], 1);
        assert_eq!(written, 1);
        answer
    }

    fn config(&self, at: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.device.read_config(at, &mut bytes).unwrap();
        bytes
    }

    /// The next frame: its pair, its header, itself.
    fn receive(&mut self) -> (u16, Vec<u8>, Vec<u8>) {
        let mut frame = None;
        wait(|| {
            frame = self.net.receive_headed();
            frame.is_some()
        });
        frame.unwrap()
    }
}

/// A guest without.
fn other(workers: &Workers) -> (NetDevice, MockNet) {
    let mut device = device(workers, "b", B);
    let net = MockNet::start(&mut device, memory(0x1000), Layout::default());
    (device, net)
}

fn rss(hash: u32, unclassified: u16, table: &[u16], key: &[u8]) -> Vec<u8> {
    let mut command = vec![4, 1];
    command.extend(hash.to_le_bytes());
    command.extend((table.len() as u16 - 1).to_le_bytes());
    command.extend(unclassified.to_le_bytes());
    command.extend(table.iter().flat_map(|pair| pair.to_le_bytes()));
    command.extend(PAIRS.to_le_bytes());
    command.push(key.len() as u8);
    command.extend(key);
    command
}

#[test]
fn a_guest_hears_what_it_wants_to_hear() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = Card::new(&workers, 0);
    let (_b, mut b) = other(&workers);
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
    const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let tagged = |id: u8| {
        let mut tagged = frame(A, B, 0, 64);
        tagged[12..18].copy_from_slice(&[0x81, 0, 0, id, 8, 0]);
        tagged
    };
    let frames = [
        frame(A, B, 1, 60),
        frame(STRANGER, B, 2, 60),
        frame(GROUP, B, 3, 60),
        frame([0xff; 6], B, 4, 60),
        tagged(5),
    ];
    let mut lost = 0;
    let mut heard = |a: &mut Card, expected: &[usize]| {
        for frame in &frames {
            assert!(b.send(frame));
        }
        for &number in expected {
            assert_eq!(a.receive().2, frames[number]);
        }
        lost += frames.len() - expected.len();
        wait(|| dropped(&workers, "a", Drop::Filtered) == lost as u64);
        assert!(a.net.receive_headed().is_none());
    };
    // Everything, before anything is said.
    heard(&mut a, &[0, 1, 2, 3, 4]);
    assert_eq!(a.say(&[0, 0, 0]), OK);
    heard(&mut a, &[0, 3]);
    assert_eq!(a.say(&[0, 1, 1]), OK);
    heard(&mut a, &[0, 2, 3]);
    assert_eq!(a.say(&[0, 1, 0]), OK);
    let mut table = vec![1, 0, 1, 0, 0, 0];
    table.extend(STRANGER);
    table.extend([1, 0, 0, 0]);
    table.extend(GROUP);
    assert_eq!(a.say(&table), OK);
    heard(&mut a, &[0, 1, 2, 3]);
    assert_eq!(a.say(&[2, 0, 5, 0]), OK);
    heard(&mut a, &[0, 1, 2, 3, 4]);
    assert_eq!(a.say(&[2, 1, 5, 0]), OK);
    assert_eq!(a.say(&[0, 5, 1]), OK);
    heard(&mut a, &[0, 1, 2]);
    // An address of its own choice.
    assert_eq!(a.say(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), OK);
    assert_eq!(a.say(&[&[1, 1][..], &STRANGER].concat()), OK);
    assert_eq!(a.config(0, 6), STRANGER);
    heard(&mut a, &[1]);
    assert_eq!(a.say(&[0, 0, 1]), OK);
    heard(&mut a, &[0, 1, 2, 3, 4]);
    assert_eq!(workers.stats().port("a").unwrap().refused, 0);
}

#[test]
fn frames_go_to_as_many_pairs_as_were_asked_for() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = Card::new(&workers, feature::HASH_REPORT);
    let (_b, mut b) = other(&workers);
    let mut pairs = |a: &mut Card| {
        let mut seen = [0; PAIRS as usize];
        for number in 0..64 {
            assert!(b.send(&udp(A, B, number, number)));
            let (pair, _, frame) = a.receive();
            assert_eq!(flow_of(&frame).1, number);
            seen[usize::from(pair)] += 1;
        }
        seen
    };
    assert_eq!(pairs(&mut a), [64, 0, 0, 0]);
    assert_eq!(a.say(&[4, 0, 3, 0]), OK);
    let seen = pairs(&mut a);
    assert!(
        seen[..3].iter().all(|count| *count > 0) && seen[3] == 0,
        "{seen:?}"
    );
    assert_eq!(a.say(&[4, 0, 5, 0]), ERR);
    // A pair without its ring is left out.
    a.device.stop_ring(2).unwrap();
    let seen = pairs(&mut a);
    assert!(seen[0] > 0 && seen[1] == 0 && seen[2] > 0, "{seen:?}");
    // Frames from the guest are taken from all pairs.
    assert_eq!(a.say(&[4, 0, 1, 0]), OK);
    for pair in 0..PAIRS {
        let sent = frame(B, A, pair.into(), 60);
        assert!(a.net.send_parts(pair, &sent, &[], false));
        assert_eq!(receive(&mut b), sent);
    }
}

#[test]
fn flows_go_where_the_guest_says_with_their_hash() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = Card::new(&workers, 0);
    let (_b, mut b) = other(&workers);
    let key: Vec<u8> = (0..40).map(|n| n * 6 + 3).collect();
    let table = [3, 2, 1, 0, 3, 3, 2, 2];
    // Nothing is hashed before it is asked for.
    let sent = udp(A, B, 0, 0);
    assert!(b.send(&sent));
    let (pair, header, frame_) = a.receive();
    assert_eq!((pair, frame_), (0, sent));
    assert_eq!(header[..10], [0; 10]);
    assert_eq!(header[12..], [0; 8]);

    assert_eq!(a.say(&rss(types::UDPV4, 1, &table, &key)), OK);
    let hash = FlowHash::new(types::UDPV4, &key);
    for number in 0..64 {
        let sent = udp(A, B, number, number);
        let expected = hash.of(&sent);
        assert_eq!(expected.kind, 3);
        assert!(b.send(&sent));
        let (pair, header, frame) = a.receive();
        assert_eq!(frame, sent);
        assert_eq!(pair, table[expected.value as usize % table.len()]);
        assert_eq!(header[12..], expected.to_bytes());
    }
    // What has no hash of the kinds asked for.
    let sent = frame(A, B, 7, 2000);
    assert!(b.send(&sent));
    let (pair, header, frame_) = a.receive();
    assert_eq!((pair, frame_), (1, sent));
    assert_eq!(header[12..], [0; 8]);

    // A hash alone leaves the queues to us.
    let mut command = vec![4, 2];
    command.extend((types::IPV4).to_le_bytes());
    command.extend([0; 8]);
    command.push(40);
    command.extend(&key);
    assert_eq!(a.say(&command), OK);
    let hash = FlowHash::new(types::IPV4, &key);
    let sent = udp(A, B, 1, 1);
    assert!(b.send(&sent));
    let (_, header, _) = a.receive();
    assert_eq!(header[12..], hash.of(&sent).to_bytes());
    let stats = workers.stats();
    let port = stats.port("a").unwrap();
    assert_eq!(port.tx_bytes, 66 * 64 + 2000);
    assert_eq!(port.dropped_all(), 0);
}

#[test]
fn a_queue_that_is_not_there_gets_nothing() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = Card::new(&workers, 0);
    let (_b, mut b) = other(&workers);
    assert_eq!(a.say(&rss(types::ALL, 2, &[2], &[1; 40])), OK);
    a.device.stop_ring(4).unwrap();
    assert!(b.send(&udp(A, B, 1, 1)));
    wait(|| dropped(&workers, "a", Drop::NoRing) == 1);
}

#[test]
fn frames_are_completed_once_the_guest_wants_it() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = Card::new(&workers, ring::RING_PACKED);
    let (_b, mut b) = other(&workers);
    // Two datagrams of 100 bytes in one.
    let mut large = udp(A, B, 1, 1);
    large.resize(42 + 200, 0x55);
    large[38..42].fill(0);
    let asking = [1, 5, 42, 0, 100, 0, 34, 0, 6, 0];
    for (bits, whole) in [
        (feature::GUEST_CSUM | feature::GUEST_USO4, true),
        (feature::GUEST_CSUM | feature::GUEST_USO6, false),
        (0, false),
        (feature::GUEST_OFFLOADS, true),
    ] {
        let command = [&[5, 0][..], &bits.to_le_bytes()].concat();
        assert_eq!(a.say(&command), OK);
        assert!(b.send_asking(&asking, &large));
        if whole {
            let (_, header, frame) = a.receive();
            assert_eq!(header[..10], asking);
            assert_eq!(frame, large);
        } else {
            for _ in 0..2 {
                let (_, header, frame) = a.receive();
                assert_eq!(header[..10], [0; 10]);
                assert_eq!(frame.len(), 142);
            }
        }
    }
    // A ring that is started again is no other.
    assert_eq!(a.say(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), OK);
    let base = a.device.stop_ring(0).unwrap() as u16;
    let queue = a.net.queue(0);
    let (mut vring, ..) = queue.vring(0);
    vring.base = u32::from(base);
    a.device.start_ring(vring).unwrap();
    assert!(b.send_asking(&asking, &large));
    assert_eq!(a.receive().2.len(), 142);
}

#[test]
fn a_driver_that_comes_back_is_asked_to_announce_itself() {
    let workers = Workers::start(&[0]).unwrap();
    for (refused, asked) in [(0, 3), (feature::GUEST_ANNOUNCE, 1)] {
        let mut a = Card::new(&workers, refused | ring::RING_PACKED);
        assert_eq!(a.config(6, 2), [1, 0]);
        let base = a.device.stop_ring(0).unwrap();
        assert_eq!(base, 0);
        let (mut vring, ..) = a.net.queue(0).vring(0);
        vring.base = 5;
        a.net.queue(0).restart(5);
        a.device.start_ring(vring).unwrap();
        assert_eq!(a.config(6, 2), [asked, 0]);
        let answer = if asked == 3 { OK } else { ERR };
        assert_eq!(a.say(&[3, 0]), answer);
        assert_eq!(a.config(6, 2), [1, 0]);
        a.device.reset();
        assert!(a.device.stop_ring(0).is_err());
    }
}

#[test]
fn nonsense_is_answered_and_forgotten() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = Card::new(&workers, 0);
    let (_b, mut b) = other(&workers);
    let mut refused = 0;
    for command in [
        &[0][..],
        &[9, 9],
        &[0, 0],
        &[0, 0, 0, 0],
        &[1, 0, 0xff, 0xff, 0xff, 0xff],
        &[4, 0, 0, 0],
        &[0; 16384],
        // Longer than anything is taken.
        &[0; 16385],
        &[0; 50000],
    ] {
        assert_eq!(a.say(command), ERR, "{} bytes", command.len());
        refused += 1;
        assert_eq!(workers.stats().port("a").unwrap().refused, refused);
    }
    // In pieces, some of them empty, with more room than the answer takes.
    assert_eq!(a.say_in_pieces(&[0, 1, 1], &[1, 1, 2], 4), (OK, 1));
    // A table of the greatest length that is taken.
    let count = 2700u32;
    let mut table = vec![1, 0];
    table.extend(count.to_le_bytes());
    table.extend([2, 1, 1, 1, 1, 1].repeat(count as usize));
    table.extend([0; 4]);
    assert_eq!(a.say(&table), OK);
    // Without room for an answer.
    assert_eq!(a.say_in_pieces(&[0, 1, 1], &[], 0), (UNANSWERED, 0));
    assert_eq!(workers.stats().port("a").unwrap().refused, refused + 1);
    // Nothing of it stopped anything.
    assert!(b.send(&frame(A, B, 1, 60)));
    assert_eq!(a.receive().2, frame(A, B, 1, 60));
    // A chain that is none stops its ring and no other.
    let bad = Buffer {
        addr: 1 << 40,
        len: 3,
        writable: false,
    };
    a.control.add(&[bad]).unwrap();
    a.control.submit();
    let control = usize::from(2 * PAIRS);
    let broken = vvu_pmd::stats::RingState::Broken;
    wait(|| workers.stats().port("a").unwrap().rings[control] == broken);
    assert!(b.send(&frame(A, B, 2, 60)));
    assert_eq!(a.receive().2, frame(A, B, 2, 60));
}
