//! The same session over a virtio-vhost-user function: what a front-end gets to hear is the same,
//! and it may leave at any point.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::bench::{Bench, memory, until};
use super::fake::{FakeDevice, VERSION_1};
use super::script::{BIT30, LEN, Script, addr, call, eventfd, kick, region, state};
use crate::device::{Device, Options};
use crate::model::Shape;
use crate::model::test_rig::Rig;
use crate::protocol::{Message, Request};
use crate::session::Session;
use crate::transport::vvu::VvuTransport;

/// Protocol features that both transports carry: MQ, RARP, REPLY_ACK, MTU, CONFIG, RESET_DEVICE,
/// STATUS.
const COMMON: u64 = 1 | 4 | 8 | 16 | 1 << 9 | 1 << 13 | 1 << 16;

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
