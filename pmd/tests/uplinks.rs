//! Uplinks and the kernel's own network stack at their other side, in network namespaces that
//! nothing else is in.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::*;
use nix::sched::{CloneFlags, unshare};
use vvu_pmd::mock::{Layout, MockNet};
use vvu_pmd::net::feature;
use vvu_pmd::port::uplink::{TapConfig, XdpConfig, XdpMode};
use vvu_pmd::stats::Drop;
use vvu_pmd::{PortKind, Workers};

/// Runs `test` in a network namespace of its own; says SKIPPED where that cannot be had.
fn in_namespace(test: impl FnOnce()) {
    if !rustix::process::geteuid().is_root() {
        skip("network namespaces take root");
        return;
    }
    // The namespace is this thread's, and goes when its last user does.
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        skip(&format!("no network namespace: {errno}"));
        return;
    }
    run("ip link set lo up");
    test();
}

fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {why}");
    println!("SKIPPED: {why}");
}

/// Runs a command of words.
fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
}

fn tap(name: &str, queues: u16) -> PortKind {
    PortKind::Tap(TapConfig {
        name: name.into(),
        queues,
        mtu: None,
    })
}

fn xdp(name: &str, mode: XdpMode) -> PortKind {
    PortKind::Xdp(XdpConfig {
        name: name.into(),
        queue: 0,
        mode,
    })
}

/// The stack has 10.0.0.`mine` at `interface`, with hardware address A or B; 10.0.0.`other` is
/// behind it.
fn stack_at(interface: &str, mine: u8, other: u8) {
    let hardware = |number: u8| format!("02:00:00:00:00:{:02x}", number + 9);
    let address = hardware(mine);
    run(&format!("ip link set {interface} address {address} up"));
    run(&format!("ip address add 10.0.0.{mine}/24 dev {interface}"));
    let address = hardware(other);
    run(&format!(
        "ip neighbour add 10.0.0.{other} lladdr {address} dev {interface}"
    ));
}

/// Sum of 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

/// The next UDP datagram from the stack that the guest receives: its payload. Its checksum must
/// be right, if `summed`.
fn datagram(guest: &mut MockNet, summed: bool) -> Vec<u8> {
    loop {
        let frame = receive(guest);
        if frame[12..14] == [8, 0] && frame[23] == 17 {
            let len = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
            let all = sum(&frame[26..34]) + 17 + len as u32 + sum(&frame[34..34 + len]);
            assert!(!summed || all.is_multiple_of(0xffff), "{frame:02x?}");
            return frame[42..34 + len].to_vec();
        }
    }
}

/// A UDP datagram from 10.0.0.2 to 10.0.0.1, without a checksum.
fn to_stack(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame(A, B, 0, 42);
    frame[12..14].copy_from_slice(&[8, 0]);
    let total = (28 + payload.len()) as u16;
    frame[14..34].copy_from_slice(&[
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1,
    ]);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    let sum = sum(&frame[14..34]);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[34..36].copy_from_slice(&7777u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    frame[40..42].fill(0);
    frame.extend_from_slice(payload);
    frame
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + seed * 31 + at / 251) as u8)
        .collect()
}

/// Waits until the kernel sends through a veth, which is some time after both ends are up.
fn carries(interface: &str) {
    wait(|| {
        let output = Command::new("ip")
            .args(["link", "show", interface])
            .output();
        String::from_utf8_lossy(&output.unwrap().stdout).contains("state UP")
    });
}

/// Datagrams between a guest and the stack, both ways, through the port of this name.
fn exchange(workers: &Workers, uplink: &str, summed: bool) {
    let mut b = device(workers, "b", B);
    let layout = Layout {
        features: !feature::OFFLOADS,
        ..Layout::default()
    };
    let mut guest = MockNet::start(&mut b, memory(0x1000), layout);
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    for (seed, len) in [1, 18, 64, 500, 1400, 1472].into_iter().enumerate() {
        let sent = pattern(seed, len);
        socket.send_to(&sent, "10.0.0.2:7777").unwrap();
        assert_eq!(datagram(&mut guest, summed), sent);
        let sent = pattern(seed + 100, len);
        assert!(guest.send(&to_stack(port, &sent)));
        let mut got = [0; 2000];
        let len = socket.recv(&mut got);
        let len = len.unwrap_or_else(|error| panic!("{error}\n{}", workers.stats()));
        assert_eq!(got[..len], sent);
    }
    // And after a sleep of the worker.
    for number in 0..50 {
        std::thread::sleep(Duration::from_millis(2));
        socket.send_to(&[number; 30], "10.0.0.2:7777").unwrap();
        assert_eq!(datagram(&mut guest, summed), [number; 30]);
    }
    let stats = workers.stats();
    assert!(stats.workers[0].sleeps > 10);
    let port = stats.port(uplink).unwrap();
    assert!(port.rx_packets >= 56 && port.tx_packets >= 6, "{port:?}");
    nothing_lost(workers, uplink);
}

/// Nothing was dropped, unless nobody else was there yet when the kernel said something by itself.
fn nothing_lost(workers: &Workers, name: &str) {
    let stats = workers.stats();
    let port = stats.port(name).unwrap();
    let alone = port.dropped(Drop::NoDestination) + port.dropped(Drop::NoRing);
    assert_eq!(port.dropped_all(), alone, "{stats}");
}

fn interfaces() -> String {
    // Of this thread, which may have another namespace than the process.
    std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
}

#[test]
fn tap_and_the_stack() {
    in_namespace(|| {
        let workers = Workers::start(&[0]).unwrap();
        workers.add_port("tap", tap("t0", 1), None).unwrap();
        stack_at("t0", 1, 2);
        exchange(&workers, "tap", true);
        // It goes with its port.
        drop(workers);
        wait(|| !interfaces().contains("t0:"));
    });
}

#[test]
fn packet_socket_and_the_stack() {
    in_namespace(|| {
        run("ip link add v0 type veth peer name v1");
        stack_at("v0", 1, 2);
        let workers = Workers::start(&[0]).unwrap();
        workers
            .add_port("packet", PortKind::Packet("v1".into()), None)
            .unwrap();
        carries("v0");
        exchange(&workers, "packet", true);
    });
}

#[test]
fn xdp_and_the_stack() {
    in_namespace(|| {
        run("ip link add v0 type veth peer name v1");
        stack_at("v0", 1, 2);
        let workers = Workers::start(&[0]).unwrap();
        workers
            .add_port("xdp", xdp("v1", XdpMode::Copy), None)
            .unwrap();
        carries("v0");
        // A veth leaves checksums to the other end, and XDP has no place to say so.
        exchange(&workers, "xdp", false);
    });
}

/// A thread with a network namespace of its own that does what it is told.
struct Stack(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Stack {
    fn new() -> Self {
        let (sender, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            jobs.into_iter().for_each(|job| job());
        });
        Self(sender)
    }

    /// Runs `what` there, later.
    fn start<R: Send + 'static>(
        &self,
        what: impl FnOnce() -> R + Send + 'static,
    ) -> mpsc::Receiver<R> {
        let (sender, result) = mpsc::channel();
        let job = move || sender.send(what()).unwrap_or_default();
        self.0.send(Box::new(job)).unwrap();
        result
    }

    /// Runs `what` there.
    fn call<R: Send + 'static>(&self, what: impl FnOnce() -> R + Send + 'static) -> R {
        self.start(what).recv_timeout(PATIENCE).unwrap()
    }
}

/// Sends `len` bytes and receives as many, and compares them.
fn converse(stream: TcpStream, mine: usize, theirs: usize, len: usize) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut out = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        out.write_all(&pattern(mine, len)).unwrap();
        out.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == pattern(theirs, len), "{} bytes arrived", got.len());
}

/// Both stacks talk TCP to each other.
fn talk(a: &Stack, b: &Stack) {
    const LEN: usize = 4 << 20;
    let listener = b.call(|| TcpListener::bind("10.0.0.2:0").unwrap());
    let address = listener.local_addr().unwrap();
    let there = b.start(move || converse(listener.accept().unwrap().0, 2, 1, LEN));
    let here = a.start(move || converse(TcpStream::connect(address).unwrap(), 1, 2, LEN));
    here.recv_timeout(PATIENCE).unwrap();
    there.recv_timeout(PATIENCE).unwrap();
}

/// Frames that are longer than the wire takes pass between two stacks as they are.
#[test]
fn large_frames_pass_between_taps() {
    let Some((a, b)) = stacks() else { return };
    let workers = Arc::new(Workers::start(&[0]).unwrap());
    for (stack, name, queues, mine, other) in [(&a, "a", 1, 1, 2), (&b, "b", 4, 2, 1)] {
        let workers = Arc::clone(&workers);
        stack.call(move || {
            workers.add_port(name, tap("t0", queues), None).unwrap();
            stack_at("t0", mine, other);
        });
    }
    talk(&a, &b);
    large(&workers, &["a", "b"]);
}

/// The same between a TAP and a packet socket on a veth.
#[test]
fn large_frames_pass_a_packet_socket() {
    let Some((a, b)) = stacks() else { return };
    let workers = Arc::new(Workers::start(&[0]).unwrap());
    let theirs = Arc::clone(&workers);
    a.call(move || {
        theirs.add_port("a", tap("t0", 1), None).unwrap();
        stack_at("t0", 1, 2);
    });
    let theirs = Arc::clone(&workers);
    b.call(move || {
        run("ip link add v0 type veth peer name v1");
        stack_at("v0", 2, 1);
        let kind = PortKind::Packet("v1".into());
        theirs.add_port("b", kind, None).unwrap();
    });
    talk(&a, &b);
    large(&workers, &["a", "b"]);
}

fn stacks() -> Option<(Stack, Stack)> {
    let mut stacks = None;
    in_namespace(|| stacks = Some((Stack::new(), Stack::new())));
    stacks
}

/// Frames of these ports were longer than any wire's, and none was lost for a reason of ours.
fn large(workers: &Workers, names: &[&str]) {
    let stats = workers.stats();
    for name in names {
        let port = stats.port(name).unwrap();
        assert!(port.rx_bytes > 1514 * port.rx_packets, "{port:?}");
        for reason in [
            Drop::BadOffload,
            Drop::Refused,
            Drop::TooLong,
            Drop::OverMtu,
        ] {
            assert_eq!(port.dropped(reason), 0, "{port:?}");
        }
    }
}

/// Traffic comes from all queues of a TAP, and goes to all.
#[test]
fn tap_with_queues() {
    in_namespace(|| {
        let workers = Workers::start(&[0]).unwrap();
        workers.add_port("tap", tap("t0", 4), None).unwrap();
        stack_at("t0", 1, 2);
        let mut b = device(&workers, "b", B);
        let layout = Layout {
            features: !feature::OFFLOADS,
            ..Layout::default()
        };
        let mut guest = MockNet::start(&mut b, memory(0x1000), layout);
        // Many flows, so that the kernel uses every queue.
        for number in 0..64 {
            let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(&[number; 20], "10.0.0.2:7777").unwrap();
            assert_eq!(datagram(&mut guest, true), [number; 20]);
            let port = socket.local_addr().unwrap().port();
            assert!(guest.send(&to_stack(port, &[number; 40])));
            let mut got = [0; 100];
            assert_eq!(socket.recv(&mut got).unwrap(), 40);
            assert_eq!(got[..40], [number; 40]);
        }
        nothing_lost(&workers, "tap");
        // One that was made with several queues can be joined with one.
        run("ip tuntap add p0 mode tap multi_queue vnet_hdr");
        workers.add_port("joined", tap("p0", 1), None).unwrap();
        run("ip tuntap add p1 mode tap vnet_hdr");
        workers.add_port("persistent", tap("p1", 1), None).unwrap();
        drop(workers);
        assert!(interfaces().contains("p1:"));
    });
}

#[test]
fn impossible_uplinks_are_refused_with_a_reason() {
    in_namespace(|| {
        let workers = Workers::start(&[0]).unwrap();
        run("ip link add v0 type veth peer name v1");
        run("ip tuntap add dev lone mode tap vnet_hdr");
        let refused = |kind: PortKind, parts: &[&str]| {
            let result = workers.add_port("x", kind.clone(), None);
            let Err(error) = result.map_err(|error| error.to_string()) else {
                panic!("{kind:?} was accepted");
            };
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error}");
            }
        };
        for name in ["", "sixteen-letters-", "a/b", "a b", "..", "tap%d"] {
            refused(tap(name, 1), &["1 to 15 characters"]);
        }
        refused(tap("v0", 1), &["v0", "no TAP"]);
        refused(tap("lone", 2), &["lone", "another number of queues"]);
        refused(
            PortKind::Packet("none".into()),
            &["no network interface none"],
        );
        refused(xdp("none", XdpMode::Auto), &["no network interface none"]);
        let zero_copy = ["v1", "zero-copy", "mode=auto"];
        refused(xdp("v1", XdpMode::ZeroCopy), &zero_copy);
        run("ip link set v1 mtu 9000");
        refused(xdp("v1", XdpMode::Auto), &["v1", "9000", "3818"]);
        // A tap that others have.
        workers.add_port("mine", tap("mine", 1), None).unwrap();
        refused(tap("mine", 1), &["mine", "busy"]);
        // An interface that is not up takes nothing.
        let mut b = device(&workers, "b", B);
        let mut guest = MockNet::start(&mut b, memory(0x1000), Layout::default());
        run("ip link set mine down");
        assert!(guest.send(&to_stack(9, b"nobody")));
        wait(|| dropped(&workers, "mine", Drop::LinkDown) == 1);
    });
}

/// Two switches with a veth between them: what one guest sends is what the other gets, tags,
/// requests and all.
#[test]
fn packet_sockets_at_both_ends_of_a_veth() {
    in_namespace(|| {
        run("ip link add v0 type veth peer name v1");
        let workers: Vec<_> = (0..2).map(|_| Workers::start(&[0]).unwrap()).collect();
        for (workers, interface) in workers.iter().zip(["v0", "v1"]) {
            let kind = PortKind::Packet(interface.into());
            workers.add_port("packet", kind, None).unwrap();
        }
        let (mut a, mut b) = (device(&workers[0], "a", A), device(&workers[1], "b", B));
        let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
        let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
        for (number, len) in [60, 61, 64, 96, 97, 1000, 1514].into_iter().enumerate() {
            let sent = frame(B, A, number as u32, len);
            assert!(one.send(&sent));
            assert_eq!(receive_of(&mut two, A), sent);
            let sent = frame(A, B, number as u32, len);
            assert!(two.send(&sent));
            assert_eq!(receive_of(&mut one, B), sent);
        }
        // The kernel takes a tag out of a frame that it receives.
        for (kind, tci) in [(0x8100u16, 7u16), (0x8100, 0xe000), (0x88a8, 0x2fff)] {
            let mut tagged = udp(B, A, 3, 9);
            let tag = [kind.to_be_bytes(), tci.to_be_bytes()].concat();
            tagged.splice(12..12, tag);
            assert!(one.send(&tagged));
            assert_eq!(receive_of(&mut two, A), tagged, "{kind:x} {tci:x}");
        }
        // A checksum to be filled in, behind a tag: the request moves with the checksum.
        let mut tagged = udp(B, A, 3, 9);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        let asking = [1, 0, 0, 0, 0, 0, 38, 0, 6, 0];
        assert!(one.send_asking(&asking, &tagged));
        let (header, got) = loop {
            if let Some((_, header, got)) = two.receive_asked()
                && got[6..12] == A
            {
                break (header, got);
            }
            std::thread::yield_now();
        };
        assert_eq!((header, got), (asking, tagged));
        for workers in &workers {
            nothing_lost(workers, "packet");
        }
    });
}

/// The next frame with this source: others, from the kernel itself, may come between.
fn receive_of(guest: &mut MockNet, source: [u8; 6]) -> Vec<u8> {
    loop {
        let frame = receive(guest);
        if frame[6..12] == source {
            return frame;
        }
    }
}

/// A switch with a packet socket at one end of a veth, one with an AF_XDP socket at the other.
fn packet_and_xdp(test: impl FnOnce(&[Workers], MockNet, MockNet)) {
    in_namespace(|| {
        run("ip link add v0 type veth peer name v1");
        let workers: Vec<_> = (0..2).map(|_| Workers::start(&[0]).unwrap()).collect();
        let packet = PortKind::Packet("v0".into());
        workers[0].add_port("uplink", packet, None).unwrap();
        let xdp = xdp("v1", XdpMode::Auto);
        workers[1].add_port("uplink", xdp, None).unwrap();
        let (mut a, mut b) = (device(&workers[0], "a", A), device(&workers[1], "b", B));
        let one = MockNet::start(&mut a, memory(0x1000), Layout::default());
        let two = MockNet::start(&mut b, memory(0x1000), Layout::default());
        test(&workers, one, two);
    });
}

#[test]
fn xdp_keeps_every_byte() {
    packet_and_xdp(|workers, mut one, mut two| {
        for (number, len) in [60, 61, 64, 96, 97, 1000, 1514].into_iter().enumerate() {
            let sent = frame(B, A, number as u32, len);
            assert!(one.send(&sent));
            assert_eq!(receive_of(&mut two, A), sent);
            let sent = frame(A, B, number as u32, len);
            assert!(two.send(&sent));
            assert_eq!(receive_of(&mut one, B), sent);
        }
        // There is nobody to fill in a checksum later.
        let asking = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0];
        let mut sent = udp(A, B, 3, 9);
        let pseudo = sum(&sent[26..34]) + 17 + 30;
        sent[38..40].copy_from_slice(&30u16.to_be_bytes());
        sent[40..42].copy_from_slice(&(pseudo as u16).to_be_bytes());
        assert!(two.send_asking(&asking, &sent));
        let got = receive_of(&mut one, B);
        assert_eq!((sum(&got[34..]) + pseudo) % 0xffff, 0);
        assert!(got[..40] == sent[..40] && got[42..] == sent[42..]);
        // Longer than a chunk.
        assert!(two.send(&frame(A, B, 0, 5000)));
        wait(|| dropped(&workers[1], "uplink", Drop::SmallBuffer) == 1);
        for workers in workers {
            assert_eq!(dropped(workers, "uplink", Drop::KernelFull), 0);
        }
    });
}

/// What the kernel lost between the two ends, as it may on a busy machine.
fn lost_by_the_veth() -> u64 {
    let table = interfaces();
    let ends = table
        .lines()
        .filter(|line| line.trim_start().starts_with('v'));
    let drops = ends.map(|line| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map(|word| word.parse().unwrap())
            .collect();
        numbers[3] + numbers[11]
    });
    drops.sum()
}

/// More frames than all rings hold, both ways: each arrives or is counted, and none is stuck.
#[test]
fn overload_is_accounted_for() {
    const FRAMES: u64 = 8000;
    packet_and_xdp(|workers, mut one, mut two| {
        let mut got = [0; 2];
        let mut sent = [0; 2];
        let (to_two, to_one) = (frame(B, A, 1, 200), frame(A, B, 2, 200));
        let start = std::time::Instant::now();
        let settled = |got: &[u64; 2]| {
            let lost = |of: usize, port: &str| {
                let stats = workers[of].stats();
                stats.port(port).unwrap().dropped_all()
            };
            // Where they came from a guest, passed the veth, and went to a guest.
            let lost = lost(0, "a") + lost(0, "uplink") + lost(1, "uplink") + lost(1, "b");
            got[0] + got[1] + lost + lost_by_the_veth()
        };
        let alone = settled(&[0, 0]);
        while sent != [FRAMES; 2] || settled(&got) - alone < 2 * FRAMES {
            assert!(
                start.elapsed() < PATIENCE,
                "{got:?}\n{}\n{}",
                workers[0].stats(),
                workers[1].stats()
            );
            for _ in 0..64 {
                sent[0] += u64::from(sent[0] < FRAMES && one.send(&to_two));
                sent[1] += u64::from(sent[1] < FRAMES && two.send(&to_one));
            }
            // One of them reads seldom.
            while let Some((_, frame)) = two.receive() {
                got[0] += u64::from(frame == to_two);
            }
            if sent == [FRAMES; 2] || sent[1] % 1000 < 100 {
                while let Some((_, frame)) = one.receive() {
                    got[1] += u64::from(frame == to_one);
                }
            }
        }
        assert!(got[0] > 0 && got[1] > 0, "{got:?}");
    });
}
