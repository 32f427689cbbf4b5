//! Everything but the data plane, without a machine: rust-vmm's front-end, the device model, the
//! real driver, its transport and a session.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bench::{SocketPath, memory, until};
use super::fake::{FakeDevice, VERSION_1};
use crate::device::{Device, Options};
use crate::model::{Dialect, FrontEnd, LinkState, Model, Shape};
use crate::notify::Kick;
use crate::pci::PciFunction;
use crate::session::Session;
use crate::transport::vvu::VvuTransport;

const BIT30: u64 = 1 << 30;
const USER: u64 = 0x7f00_0000_0000;
pub(super) const LEN: u64 = 0x40_0000;

pub(super) struct Whole {
    pub(super) dialect: Dialect,
    pub(super) socket: SocketPath,
    pub(super) model: Model,
    device: FakeDevice,
    pub(super) session: Session,
}

impl Whole {
    fn new(shape: Shape) -> Self {
        let socket = SocketPath::new();
        let front_end = FrontEnd::Listen(socket.path().to_owned());
        Self {
            dialect: shape.dialect,
            ..Self::with(socket, Model::new(shape, front_end).unwrap())
        }
    }

    fn with(socket: SocketPath, model: Model) -> Self {
        let function = model.function();
        Self::driven(socket, model, function)
    }

    /// The same, with a driver that has the model's function from elsewhere.
    pub(super) fn driven(socket: SocketPath, model: Model, function: Box<dyn PciFunction>) -> Self {
        let options = Options {
            timeout: Duration::from_secs(10),
            ..Options::default()
        };
        let transport = VvuTransport::new(Device::open(function, options).unwrap());
        let device = FakeDevice::new(2);
        let session = Session::spawn(Box::new(transport), Box::new(device.clone())).unwrap();
        Self {
            dialect: Dialect::Ours,
            socket,
            model,
            device,
            session,
        }
    }

    pub(super) fn connect(&self) -> Frontend {
        Frontend::connect(self.socket.path(), 2).unwrap()
    }

    /// Whether nothing of a front-end's is in the window, which begins at 0x3000 or before: looked
    /// at in steps of what `serve` leaves there.
    fn shows_nothing(&self) -> bool {
        let bar = self.model.memory_bar();
        let mut byte = [0];
        (0x3000..64 << 20).step_by(0x1000).all(|at| {
            self.model.read_bar(bar, at, &mut byte);
            byte == [0]
        })
    }

    /// Whether in-flight buffers can be had.
    fn tracks(&self) -> bool {
        let mut frontend = self.connect();
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        drop(frontend);
        until("disconnected", || self.is_idle());
        protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    pub(super) fn is_idle(&self) -> bool {
        let report = self.session.status().report();
        !report.connected && report.running_rings == 0
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn ring_at(user: u64) -> VringConfigData {
    VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr: user,
        avail_ring_addr: user + 0x1000,
        used_ring_addr: user + 0x2000,
        log_addr: None,
    }
}

pub(super) fn small(shape: Shape) -> Shape {
    Shape {
        window: 64 << 20,
        ..shape
    }
}

/// Asks for a buffer for what is in flight, and hands it over. It is the device that made it.
fn buffer(frontend: &mut Frontend) -> std::fs::File {
    let wanted = VhostUserInflight {
        num_queues: 2,
        queue_size: 256,
        ..VhostUserInflight::default()
    };
    let (given, file) = frontend.get_inflight_fd(&wanted).unwrap();
    assert_eq!((given.mmap_size, given.mmap_offset), (3 << 12, 0));
    assert_eq!(file.metadata().unwrap().len(), 3 << 12);
    assert!(file.set_len(0).is_err() && file.set_len(4 << 12).is_err());
    frontend.set_inflight_fd(&given, file.as_raw_fd()).unwrap();
    file
}

/// A front-end from its first message to a ring that runs, and everything that passes then.
fn serve(whole: &Whole, frontend: Frontend) {
    serve_in(whole, frontend, &memory(2 * LEN));
}

/// The same, with memory in this file.
pub(super) fn serve_in(whole: &Whole, mut frontend: Frontend, file: &OwnedFd) {
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(offered & (BIT30 | VERSION_1 | 1 << 33), BIT30 | VERSION_1);
    let protocol = frontend.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
    assert!(!protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(VERSION_1 | BIT30).unwrap();
    assert_eq!(frontend.get_queue_num().unwrap(), 2);

    // Two regions of one file, the second not at its beginning.
    let region = |at: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: at,
        memory_size: LEN,
        userspace_addr: USER + at,
        mmap_offset: at,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_mem_table(&[region(0), region(LEN)]).unwrap();
    let book = protocol
        .contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
        .then(|| buffer(&mut frontend));
    let (kick, call, err) = (eventfd(), eventfd(), eventfd());
    frontend.set_vring_num(1, 256).unwrap();
    frontend.set_vring_base(1, 3).unwrap();
    frontend.set_vring_addr(1, &ring_at(USER + LEN)).unwrap();
    frontend.set_vring_call(1, &call).unwrap();
    frontend.set_vring_err(1, &err).unwrap();
    frontend.set_vring_kick(1, &kick).unwrap();
    frontend.set_vring_enable(1, true).unwrap();
    {
        let seen = whole.device.seen();
        let ring = &seen.rings[&1];
        assert!(ring.enabled);
        // Memory is the front-end's, in both directions.
        rustix::io::pwrite(file, b"ours", LEN + 0x2000).unwrap();
        let mut bytes = [0; 4];
        let area = ring.areas.device.slice();
        area.read_slice(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"ours");
        area.write_slice(b"back", 4).unwrap();
        rustix::io::pread(file, &mut bytes, LEN + 0x2004).unwrap();
        assert_eq!(&bytes, b"back");
        ring.call.ring();
        until("called", || call.read().is_ok());
        ring.err.ring();
        match whole.dialect {
            Dialect::Ours => until("told of an error", || err.read().is_ok()),
            Dialect::Prototype | Dialect::Crosvm => assert!(err.read().is_err()),
        }
        assert_eq!(book.is_some(), ring.inflight.is_some());
        if let (Some(file), Some(region)) = (&book, &ring.inflight) {
            region.slice().write_slice(b"kept", 16).unwrap();
            rustix::io::pread(file, &mut bytes, 4160 + 16).unwrap();
            assert_eq!(&bytes, b"kept");
        }
        let Kick::Event(fd) = &ring.kick else {
            panic!("polled");
        };
        for _ in 0..3 {
            kick.write(1).unwrap();
            until("kicked", || rustix::io::read(fd, &mut [0; 8]).is_ok());
        }
    }
    let starts = whole.device.seen().starts;
    assert_eq!(frontend.get_vring_base(1).unwrap(), 3 + starts);
}

#[test]
fn a_stock_front_end_is_served_through_the_model() {
    for shape in [
        Shape::ours(),
        Shape {
            layout: false,
            ..Shape::ours()
        },
        Shape::prototype(0x1058),
        Shape::prototype(0x106b),
        Shape::crosvm(),
    ] {
        let whole = Whole::new(small(shape.clone()));
        let inflight = shape.dialect == Dialect::Ours && shape.layout;
        assert_eq!(whole.tracks(), inflight);
        for round in 1..=3 {
            serve(&whole, whole.connect());
            until("disconnected", || whole.is_idle());
            let status = whole.model.status();
            assert_eq!(status.generation, 1 + round);
            assert_eq!(status.counters.violations, 0, "{status:?}");
            assert_eq!(status.counters.broken, 0, "{status:?}");
            until("its memory is gone", || whole.shows_nothing());
        }
        whole.session.stop();
        assert_eq!(whole.model.status().device_status, 0, "left quiet");
    }
}

#[test]
fn the_model_goes_to_a_front_end_that_listens() {
    let socket = SocketPath::new();
    let front_end = FrontEnd::Connect(socket.path().to_owned());
    let model = Model::new(small(Shape::ours()), front_end).unwrap();
    let whole = Whole::with(socket, model);
    let listener = std::os::unix::net::UnixListener::bind(whole.socket.path()).unwrap();
    for _ in 0..2 {
        let (stream, _) = listener.accept().unwrap();
        serve(&whole, Frontend::from_stream(stream, 2));
        until("disconnected", || whole.is_idle());
    }
    whole.session.stop();
}

#[test]
fn a_known_file_can_be_the_window() {
    let socket = SocketPath::new();
    let front_end = FrontEnd::Listen(socket.path().to_owned());
    let file = memory(2 * LEN);
    let ours = file.try_clone().unwrap();
    let model = Model::with_peer_memory(small(Shape::ours()), front_end, ours).unwrap();
    let whole = Whole::with(socket, model);
    let mut frontend = whole.connect();
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let table = |file: &std::os::fd::OwnedFd| {
        [VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: LEN,
            userspace_addr: USER,
            mmap_offset: LEN,
            mmap_handle: file.as_raw_fd(),
        }]
    };
    let other = memory(2 * LEN);
    assert!(frontend.set_mem_table(&table(&other)).is_err());
    let refusal = whole.model.status().last_refusal.unwrap();
    assert!(refusal.contains("--peer-memory"), "{refusal}");
    frontend.set_mem_table(&table(&file)).unwrap();
    rustix::io::pwrite(&file, b"seen", LEN).unwrap();
    let mut bytes = [0; 4];
    whole
        .model
        .read_bar(whole.model.memory_bar(), LEN, &mut bytes);
    assert_eq!(&bytes, b"seen");
    whole.session.stop();
}

#[test]
fn a_front_end_that_waits_is_served_when_the_driver_comes() {
    let socket = SocketPath::new();
    let front_end = FrontEnd::Listen(socket.path().to_owned());
    let model = Model::new(small(Shape::ours()), front_end).unwrap();
    let frontend = Frontend::connect(socket.path(), 2).unwrap();
    until("it waits", || model.status().link == LinkState::Open);
    let whole = Whole::with(socket, model);
    serve(&whole, frontend);
    whole.session.stop();
}
