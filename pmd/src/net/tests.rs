#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use vvu::memory::{Area, Mapping};

use super::fdb::Fdb;
use super::*;

use crate::mempool::Mempool;
use crate::port::{RxPort, Stats, TxPort};
use crate::stats::{Drop, PortStats, WorkerStats};
use crate::wake::Waker;

#[path = "fair_tests.rs"]
mod fair;
#[path = "ruled_tests.rs"]
mod ruled;

/// Two workers' parts of one switch, driven by hand. Ports only count.
struct Bench {
    parts: Vec<Switch>,
    ports: Vec<Stats>,
    workers: Vec<Arc<WorkerStats>>,
    pool: Arc<Mempool>,
    fdb: Arc<Fdb>,
}

fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

const ALL: [u8; 6] = [0xff; 6];

fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Area {
    let mapping = Mapping::anonymous(len).unwrap();
    mapping.slice().copy_from(&to);
    mapping.slice().offset(6).unwrap().copy_from(&from);
    mapping.into()
}

impl Bench {
    /// `here` ports with worker 0, then `there` ports with worker 1.
    fn new(here: u16, there: u16) -> Self {
        let inboxes = (0..2).map(|_| Inbox::new(4, Waker::new().unwrap()));
        let pool = Mempool::new(6, 9300).unwrap();
        let fdb = Arc::new(Fdb::new(300));
        let shared = Shared {
            fdb: Arc::clone(&fdb),
            inboxes: inboxes.collect(),
            pool: Some(Arc::clone(&pool)),
        };
        let workers: Vec<Arc<WorkerStats>> = (0..2).map(|_| Arc::default()).collect();
        let part = |(n, stats)| Switch::new(n, shared.clone(), Arc::clone(stats)).unwrap();
        let mut this = Self {
            parts: workers.iter().enumerate().map(part).collect(),
            ports: Vec::new(),
            workers,
            pool,
            fdb,
        };
        for number in 0..here + there {
            let stats = PortStats::new(0, &[]);
            let (owner, other) = if number < here { (0, 1) } else { (1, 0) };
            let tx = TxPort::Null(Arc::clone(&stats));
            this.parts[owner].add(number, RxPort::None, tx, Arc::clone(&stats));
            this.parts[other].place(number, Place::There(owner));
            this.ports.push(stats);
        }
        this
    }

    /// Port `source` sends a frame; both workers poll. Which ports got it?
    fn send(&mut self, source: u16, to: [u8; 6], from: [u8; 6]) -> Vec<usize> {
        self.send_frame(source, &frame(to, from, 60))
    }

    fn send_frame(&mut self, source: u16, frame: &Area) -> Vec<usize> {
        let before: Vec<_> = self.ports.iter().map(|p| p.tx_packets.get()).collect();
        let mut parts = self.parts.iter_mut();
        let owner = parts.position(|part| part.port(source).is_some()).unwrap();
        self.parts[owner].inject(source, frame.slice());
        for part in &mut self.parts {
            part.poll_inbox();
        }
        let got = |(n, port): (usize, &Stats)| {
            let news = port.tx_packets.get() - before[n];
            assert!(news <= 1, "port {n} got it {news} times");
            (news == 1).then_some(n)
        };
        self.ports.iter().enumerate().filter_map(got).collect()
    }

    fn later(&mut self, now: u32) {
        for part in &mut self.parts {
            part.poll(now);
        }
    }
}

#[test]
fn floods_learns_moves_and_forgets() {
    let mut b = Bench::new(4, 0);
    assert_eq!(b.send(0, mac(1), mac(0)), [1, 2, 3]);
    assert_eq!(b.ports[0].unlearnt.get(), 1);
    assert_eq!(b.send(1, mac(0), mac(1)), [0]);
    assert_eq!(b.send(0, mac(1), mac(0)), [1]);
    assert_eq!(b.send(2, mac(1), mac(0)), [1], "0 moved to port 2");
    assert_eq!(b.send(1, mac(0), mac(1)), [2]);
    b.later(301);
    assert_eq!(b.send(1, mac(0), mac(1)), [0, 2, 3], "too old");
    assert_eq!(b.ports[1].unlearnt.get(), 1);
}

#[test]
fn groups_go_everywhere_and_are_no_source() {
    let mut b = Bench::new(3, 0);
    assert_eq!(b.send(0, ALL, mac(0)), [1, 2]);
    assert_eq!(b.send(0, [1, 0, 0x5e, 0, 0, 1], mac(0)), [1, 2]);
    assert_eq!(b.ports[0].unlearnt.get(), 0);
    assert!(b.send(1, mac(0), ALL).is_empty());
    assert!(b.send(1, mac(0), [0; 6]).is_empty());
    assert_eq!(b.ports[1].drops(Drop::BadSource), 2);
}

#[test]
fn no_way_to_go_is_counted() {
    let mut b = Bench::new(1, 0);
    assert!(b.send(0, ALL, mac(0)).is_empty());
    assert!(b.send(0, mac(0), mac(0)).is_empty(), "not back to its own");
    assert_eq!(b.ports[0].drops(Drop::NoDestination), 2);
    let mut b = Bench::new(2, 0);
    b.send(1, ALL, mac(1));
    b.parts[0].remove(1);
    assert!(b.send(0, mac(1), mac(0)).is_empty(), "the port is gone");
    assert_eq!(b.ports[0].drops(Drop::NoDestination), 1);
}

#[test]
fn an_echo_port_returns_frames() {
    let mut b = Bench::new(2, 0);
    b.parts[0].place(2, Place::Echo { swap: true });
    assert_eq!(b.send(0, mac(9), mac(0)), [0, 1]);
    b.parts[0].remove(1);
    assert_eq!(b.send(0, mac(9), mac(0)), [0]);
}

#[test]
fn nothing_is_left_from_a_port_before() {
    let mut b = Bench::new(2, 0);
    b.parts[0].place(2, Place::Echo { swap: false });
    b.parts[0].place(0, Place::Absent);
    b.send(0, mac(9), mac(0));
    b.parts[0].place(0, Place::Here);
    assert_eq!(b.send(1, ALL, mac(1)), [0, 1]);
}

#[test]
fn frames_cross_workers() {
    let mut b = Bench::new(2, 2);
    assert_eq!(b.send(0, ALL, mac(0)), [1, 2, 3]);
    // Addresses learned by one worker are known to the other.
    assert_eq!(b.send(3, mac(0), mac(3)), [0]);
    assert_eq!(b.send(1, mac(3), mac(1)), [3]);
    assert_eq!(b.pool.available(), 6, "all buffers came back");
    assert_eq!(b.ports[3].tx_bytes.get(), 120);
}

#[test]
fn queues_and_pools_have_an_end() {
    let mut b = Bench::new(1, 1);
    let bytes = frame(ALL, mac(0), 9000);
    for _ in 0..7 {
        b.parts[0].inject(0, bytes.slice());
    }
    // Four are queued; the buffers of the others came back at once.
    assert_eq!(b.ports[0].drops(Drop::QueueFull), 3);
    let held: Vec<_> = (0..2).map(|_| b.pool.alloc().unwrap()).collect();
    b.parts[0].inject(0, bytes.slice());
    assert_eq!(b.ports[0].drops(Drop::NoMbuf), 1);
    b.parts[1].poll_inbox();
    assert_eq!(b.ports[1].tx_packets.get(), 4);
    assert_eq!(b.ports[1].tx_bytes.get(), 36000);
    drop(held);
    assert_eq!(b.pool.available(), 6);
}

#[test]
fn frames_for_a_port_that_left_meanwhile() {
    let mut b = Bench::new(1, 1);
    b.send(1, ALL, mac(1));
    b.parts[0].inject(0, frame(mac(1), mac(0), 60).slice());
    b.parts[1].remove(1);
    b.parts[1].poll_inbox();
    assert_eq!(b.workers[1].stray.get(), 1);
}
