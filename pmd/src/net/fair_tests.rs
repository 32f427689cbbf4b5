//! Ports that all send as much as they can.

use super::*;
use crate::mock::{Buffer, MockGuest, MockQueue};
use crate::port::{BURST, PreparedRing, Rings, VhostRx, VhostTx};
use crate::vring::feature as ring;

const SIZE: u16 = 256;
const HEADER: usize = 12;

/// A guest whose transmit rings are always full, or whose receive ring is filled by hand.
struct Guest {
    memory: MockGuest,
    queues: Vec<MockQueue>,
    /// A frame to send or a buffer for each entry.
    place: u64,
    writable: bool,
}

impl Guest {
    /// A port with `queues` transmit queues, or one receive queue, in `bench`.
    fn join(b: &mut Bench, number: u16, queues: u16) -> Self {
        let mut memory = MockGuest::new(0x1000, &[2 << 20]);
        let place = memory.alloc(HEADER + 60, 8);
        memory.write(place, &[0; HEADER]);
        memory.write(place + HEADER as u64, &[ALL, mac(number as u8)].concat());
        let mut this = Self {
            memory,
            queues: Vec::new(),
            place,
            writable: queues == 0,
        };
        let waker = Waker::new().unwrap();
        let stats = Arc::clone(&b.ports[usize::from(number)]);
        let mut rings = Rings::new("guest".into(), Arc::clone(&stats));
        for index in 0..queues.max(1) {
            let mut queue = MockQueue::new(&mut this.memory, SIZE, ring::VERSION_1, 0);
            let index = 2 * index + u16::from(queues > 0);
            let (vring, ..) = queue.vring(index);
            let kind = NetConfig::ring_kind(ring::VERSION_1);
            rings.start(PreparedRing::new(vring, kind, &waker).unwrap());
            this.queues.push(queue);
        }
        let null = TxPort::Null(Arc::clone(&stats));
        let (rx, tx) = match queues {
            0 => (RxPort::None, TxPort::Vhost(VhostTx::new(rings))),
            _ => (RxPort::Vhost(VhostRx::new(rings)), null),
        };
        b.parts[0].remove(number);
        b.parts[0].add(number, rx, tx, stats);
        this
    }

    /// Offers up to `most` buffers more on each ring.
    fn offer(&mut self, most: usize) {
        let buffer = Buffer {
            addr: self.place,
            len: (HEADER + 60) as u32,
            writable: self.writable,
        };
        for queue in &mut self.queues {
            while queue.used().is_some() {}
            for _ in 0..most {
                if queue.add(&[buffer]).is_none() {
                    break;
                }
            }
            queue.publish();
        }
    }
}

#[test]
fn many_queues_are_no_larger_share() {
    let mut b = Bench::new(3, 0);
    let mut many = Guest::join(&mut b, 0, 4);
    let mut one = Guest::join(&mut b, 1, 1);
    for round in 1..=40 {
        many.offer(usize::MAX);
        one.offer(usize::MAX);
        b.parts[0].poll(0);
        for port in [0, 1] {
            let sent = b.ports[port].rx_packets.get();
            assert_eq!(sent, round * BURST as u64, "port {port}");
        }
    }
    // And each queue has its share of the port's.
    let used = many
        .queues
        .iter()
        .map(|queue| usize::from(queue.used_index()));
    for used in used {
        let share = 10 * BURST;
        assert!(used > share - usize::from(SIZE) && used <= share, "{used}");
    }
}

#[test]
fn queues_with_little_to_send_share_a_round() {
    let mut b = Bench::new(2, 0);
    let mut many = Guest::join(&mut b, 0, 4);
    for round in 1..=40 {
        many.offer(10);
        b.parts[0].poll(0);
        assert_eq!(b.ports[0].rx_packets.get(), round * 40);
    }
}

#[test]
fn nobody_always_comes_last_at_a_full_port() {
    let mut b = Bench::new(4, 0);
    let mut senders: Vec<_> = (0..3).map(|n| Guest::join(&mut b, n, 1)).collect();
    let mut receiver = Guest::join(&mut b, 3, 0);
    let mut got = [0; 3];
    // Room for one burst each round, and three that want it.
    for _ in 0..30 {
        senders.iter_mut().for_each(|guest| guest.offer(usize::MAX));
        receiver.offer(BURST);
        b.parts[0].poll(0);
        // All buffers are one: the last frame in it says whose burst came through.
        let from = receiver.memory.read(receiver.place + HEADER as u64 + 11, 1);
        got[usize::from(from[0])] += 1;
    }
    assert_eq!(b.ports[3].tx_packets.get(), 30 * BURST as u64);
    assert_eq!(b.ports[3].drops(Drop::RingFull), 60 * BURST as u64);
    assert_eq!(got, [10; 3]);
}
