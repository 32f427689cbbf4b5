//! The same session over a virtio-vhost-user function: what a front-end gets to hear is the same,
//! and it may leave at any point.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::bench::{Bench, memory, until};
use super::fake::{FakeDevice, VERSION_1};
use super::script::{BIT30, LEN, Script, addr, call, eventfd, kick, region, state};
use crate::device::{Device, Options};
use crate::model::Shape;
use crate::model::test_rig::Rig;
use crate::protocol::{Message, Reply, Request};
use crate::session::Session;
use crate::transport::vvu::VvuTransport;

/// Protocol features that both transports carry: MQ, RARP, REPLY_ACK, MTU, CONFIG, RESET_DEVICE,
/// STATUS.
const COMMON: u64 = 1 | 4 | 8 | 16 | 1 << 9 | 1 << 13 | 1 << 16;

const BACKEND_REQ: u64 = 1 << 5;

struct VvuBench {
    rig: Rig,
    device: FakeDevice,
    session: Session,
}

impl VvuBench {
    fn new(shape: Shape) -> Self {
        let (rig, function) = Rig::new(shape);
        let options = Options {
            timeout: Duration::from_millis(500),
            ..Options::default()
        };
        let transport = VvuTransport::new(Device::open(function, options).unwrap());
        let device = FakeDevice::new(2);
        let session = Session::spawn(Box::new(transport), Box::new(device.clone())).unwrap();
        Self {
            rig,
            device,
            session,
        }
    }

    /// A front-end that is let in.
    fn script(&self) -> Script {
        let stream = UnixStream::connect(&self.rig.path).unwrap();
        let timeout = Some(Duration::from_secs(10));
        stream.set_read_timeout(timeout).unwrap();
        until("let in", || self.rig.is_connected());
        Script { stream }
    }

    fn is_idle(&self) -> bool {
        let report = self.session.status().report();
        !report.connected && report.running_rings == 0
    }
}

/// Sends a request and waits for the answer, if there will be one.
fn ask(script: &mut Script, message: &Message, fds: &[OwnedFd]) -> Option<Message> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    script.raw(&message.to_bytes(), &fds);
    let answered = message.flags & 8 != 0;
    answered.then(|| script.message().unwrap())
}

/// A whole set-up, a run and a stop; the first two messages are not acknowledged.
fn life() -> Vec<(Message, Vec<OwnedFd>)> {
    let quiet = |request: Request| (request.to_message(false), Vec::new());
    let with = |request: Request, fds| (request.to_message(true), fds);
    let plain = |request: Request| with(request, Vec::new());
    vec![
        quiet(Request::SetProtocolFeatures(COMMON)),
        quiet(Request::SetFeatures(VERSION_1 | BIT30)),
        plain(Request::GetFeatures),
        plain(Request::SetOwner),
        plain(Request::GetQueueNum),
        with(Request::SetMemTable(vec![region(0)]), vec![memory(LEN)]),
        plain(Request::SetVringNum(state(0, 256))),
        plain(Request::SetVringBase(state(0, 5))),
        plain(Request::SetVringAddr(addr(0))),
        with(call(0), vec![eventfd()]),
        with(kick(0), vec![eventfd()]),
        plain(Request::SetVringEnable(state(0, 1))),
        plain(Request::SetVringEnable(state(7, 1))),
        plain(Request::GetVringBase(state(0, 0))),
    ]
}

/// A front-end whose device changes from time to time, and where it hears of that.
fn listener(vvu: &VvuBench) -> (Script, UnixStream) {
    vvu.device.seen().changes = Some(0);
    let mut script = vvu.script();
    let all = Reply::U64(COMMON | BACKEND_REQ | 1 << 12);
    assert_eq!(script.ask(&Request::GetProtocolFeatures, &[]), all);
    let wanted = Request::SetProtocolFeatures(COMMON | BACKEND_REQ);
    script.tell(&wanted, &[]);
    script.ok(&Request::SetFeatures(VERSION_1 | BIT30), &[]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let timeout = Some(Duration::from_secs(10));
    ours.set_read_timeout(timeout).unwrap();
    script.ok(&Request::SetBackendReqFd, &[theirs.as_fd()]);
    (script, ours)
}

/// The device changes once more, and the front-end hears of it.
fn is_told(vvu: &VvuBench, channel: &mut UnixStream) {
    let mut seen = vvu.device.seen();
    seen.changes = seen.changes.map(|changes| changes + 1);
    drop(seen);
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn changes_of_the_device_are_told_through_the_function() {
    let vvu = VvuBench::new(Shape::ours());
    let (mut script, mut channel) = listener(&vvu);
    is_told(&vvu, &mut channel);
    // Nobody asked for an answer, so that none reaches the driver.
    let answer = [[2, 5, 8, 0].map(u32::to_le_bytes).as_flattened(), &[0; 4]].concat();
    channel.write_all(&answer).unwrap();
    is_told(&vvu, &mut channel);
    // A device that passes them on all the same changes nothing for anybody.
    for _ in 0..500 {
        vvu.rig.model.inject(&answer);
    }
    script.ok(&Request::SetOwner, &[]);
    is_told(&vvu, &mut channel);
    // Nor does a front-end that does not listen any more.
    drop(channel);
    vvu.device.seen().changes = Some(9);
    until("lost on the way", || {
        vvu.rig.model.status().counters.discarded > 0
    });
    script.ok(&Request::SetOwner, &[]);
    drop(script);
    until("disconnected", || vvu.is_idle());
    // The next one is told of what changes from then on.
    let (_script, mut channel) = listener(&vvu);
    is_told(&vvu, &mut channel);
    assert_eq!(vvu.session.status().report().violations, 0);
    assert_eq!(vvu.rig.model.violations(), [""; 0]);
}

#[test]
fn functions_without_a_channel_are_offered_no_front_end_that_has_one() {
    for shape in [Shape::prototype(0x1058), Shape::crosvm()] {
        let vvu = VvuBench::new(shape);
        vvu.device.seen().changes = Some(0);
        let mut script = vvu.script();
        let offered = script.ask(&Request::GetProtocolFeatures, &[]);
        assert_eq!(offered, Reply::U64(COMMON));
    }
}

#[test]
fn a_front_end_hears_the_same_over_both_transports() {
    for shape in [Shape::ours(), Shape::prototype(0x1058), Shape::crosvm()] {
        let unix = Bench::new(2);
        let mut direct = Script::new(&unix);
        let vvu = VvuBench::new(shape);
        let mut tunnelled = vvu.script();
        for (message, fds) in life() {
            let wanted = ask(&mut direct, &message, &fds);
            assert_eq!(ask(&mut tunnelled, &message, &fds), wanted, "{message:?}");
        }
        // Rings call through doorbells and are kicked through vectors.
        let again = life().split_off(5);
        for (message, fds) in &again[..7] {
            ask(&mut tunnelled, message, fds);
        }
        until("running", || !vvu.device.seen().rings.is_empty());
        vvu.rig.model.rung();
        let seen = vvu.device.seen();
        let ring = &seen.rings[&0];
        ring.call.ring();
        assert_eq!(vvu.rig.model.rung(), [0]);
        let signalled = |fd: &OwnedFd| rustix::io::read(fd, &mut [0; 8]) == Ok(8);
        assert!(signalled(&again[4].1[0]));
        rustix::io::write(&again[5].1[0], &1u64.to_ne_bytes()).unwrap();
        let kicked = ring.kick.fd().unwrap();
        until("kicked", || rustix::io::read(kicked, &mut [0; 8]) == Ok(8));
        assert_eq!(vvu.rig.model.violations(), [""; 0]);
        assert_eq!(vvu.rig.model.status().counters.violations, 0);
    }
}

#[test]
fn a_front_end_may_leave_after_any_message() {
    for shape in [Shape::ours(), Shape::prototype(0x1058), Shape::crosvm()] {
        let bench = VvuBench::new(shape);
        for stop_at in 0..=life().len() {
            for breaks in [false, true] {
                let mut script = bench.script();
                for (message, fds) in &life()[..stop_at] {
                    ask(&mut script, message, fds);
                }
                if breaks {
                    bench.rig.model.break_down();
                }
                drop(script);
                until("idle", || !bench.rig.is_connected() && bench.is_idle());
                assert!(bench.device.seen().rings.is_empty());
            }
        }
        assert_eq!(bench.rig.model.violations(), [""; 0]);
        bench.session.stop();
        assert!(bench.rig.is_quiet(), "left quiet");
    }
}
