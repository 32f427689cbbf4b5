//! The same session over a virtio-vhost-user function: what a front-end gets to hear is the same,
//! and it may leave at any point.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::bench::{Bench, memory, until};
use super::fake::{FakeDevice, VERSION_1};
use super::script::{BIT30, LEN, Script, addr, call, eventfd, kick, region, state};
use crate::device::fake::{Fake, Shape};
use crate::device::{Device, Options};
use crate::protocol::{Message, Request};
use crate::session::Session;
use crate::transport::vvu::VvuTransport;

/// Protocol features that both transports carry: MQ, RARP, REPLY_ACK, MTU, CONFIG, RESET_DEVICE,
/// STATUS.
const COMMON: u64 = 1 | 4 | 8 | 16 | 1 << 9 | 1 << 13 | 1 << 16;

struct VvuBench {
    front_end: Fake,
    device: FakeDevice,
    session: Session,
}

impl VvuBench {
    fn new(shape: Shape) -> Self {
        let (front_end, function) = Fake::new(shape);
        let options = Options {
            timeout: Duration::from_millis(500),
            ..Options::default()
        };
        let transport = VvuTransport::new(Device::open(function, options).unwrap());
        let device = FakeDevice::new(2);
        let session = Session::spawn(Box::new(transport), Box::new(device.clone())).unwrap();
        Self {
            front_end,
            device,
            session,
        }
    }

    fn connect(&self) {
        until("let in", || {
            self.front_end.connect();
            self.front_end.is_connected()
        });
    }

    fn is_idle(&self) -> bool {
        let report = self.session.status().report();
        !report.connected && report.running_rings == 0
    }

    /// Sends a request and waits for the answer, if there will be one.
    fn ask(&self, message: &Message) -> Option<Message> {
        self.front_end.push(&message.to_bytes());
        if message.flags & 8 == 0 {
            return None;
        }
        let mut sent = Vec::new();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while sent.is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "no reply to {message:?}"
            );
            sent = self.front_end.sent();
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(sent.len(), 1);
        let bytes = &sent[0];
        let header = bytes.first_chunk().unwrap();
        let (request, flags, size) = Message::parse_header(header);
        assert_eq!(bytes.len(), 12 + size as usize);
        Some(Message {
            request,
            flags,
            payload: bytes[12..].to_vec(),
        })
    }
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
    let unix = Bench::new(2);
    let mut script = Script::new(&unix);
    for shape in [Shape::ours(), Shape::prototype(0x1058), Shape::crosvm()] {
        let vvu = VvuBench::new(shape);
        vvu.connect();
        for (message, _) in life() {
            vvu.ask(&message);
        }
        assert_eq!(vvu.front_end.violations(), [""; 0]);
    }
    let vvu = VvuBench::new(Shape::ours());
    vvu.connect();
    for (message, fds) in life() {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        script.raw(&message.to_bytes(), &fds);
        let answer = (message.flags & 8 != 0).then(|| script.message().unwrap());
        assert_eq!(vvu.ask(&message), answer, "{message:?}");
    }
    // Rings call through doorbells and are kicked through vectors.
    for (message, _) in &life()[6..12] {
        vvu.ask(message);
    }
    until("running", || !vvu.device.seen().rings.is_empty());
    vvu.front_end.rung();
    let seen = vvu.device.seen();
    let ring = &seen.rings[&0];
    ring.call.ring();
    assert_eq!(vvu.front_end.rung(), [0]);
    vvu.front_end.kick(0);
    let kicked = ring.kick.fd().unwrap();
    assert_eq!(rustix::io::read(kicked, &mut [0; 8]), Ok(8));
}

#[test]
fn a_front_end_may_leave_after_any_message() {
    for shape in [Shape::ours(), Shape::prototype(0x1058), Shape::crosvm()] {
        let bench = VvuBench::new(shape);
        let steps = life();
        for stop_at in 0..=steps.len() {
            for leave in [Fake::disconnect, Fake::need_reset] {
                bench.connect();
                for (message, _) in &steps[..stop_at] {
                    bench.ask(message);
                }
                leave(&bench.front_end);
                bench.front_end.disconnect();
                until("idle", || bench.is_idle());
                assert!(bench.device.seen().rings.is_empty());
            }
        }
        assert_eq!(bench.front_end.violations(), [""; 0]);
        bench.session.stop();
        assert!(bench.front_end.state().2, "left quiet");
    }
}
