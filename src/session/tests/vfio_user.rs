//! The same with the function out of this process's reach: the driver has it over a vfio-user
//! socket, as `vvu net` has it from `vvu device`. Each of the three parties dies and comes back.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::JoinHandle;

use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserHeaderFlag;

use super::bench::{SocketPath, memory, until};
use super::model::{LEN, Whole, serve_in, small};
use crate::model::{FrontEnd, Model, Server, ServerStatus, Shape};
use crate::session::StopSignal;
use crate::vfio_user::VfioUserFunction;

/// A server on a thread of its own.
struct Serving {
    stop: StopSignal,
    thread: Option<JoinHandle<ServerStatus>>,
}

impl Serving {
    fn new(path: &SocketPath, model: &Model) -> Self {
        let server = Server::listen(path.path(), model.clone()).unwrap();
        let stop = StopSignal::new().unwrap();
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || server.run(stop.as_fd()))
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }

    fn finish(mut self) -> ServerStatus {
        self.stop.raise();
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A model whose window is `file`, or nothing that could be mapped.
fn model(shape: Shape, file: Option<&OwnedFd>) -> (SocketPath, Model) {
    let socket = SocketPath::new();
    let front_end = FrontEnd::Listen(socket.path().to_owned());
    let shape = small(shape);
    let model = match file {
        Some(file) => Model::with_peer_memory(shape, front_end, file.try_clone().unwrap()),
        None => Model::new(shape, front_end),
    };
    (socket, model.unwrap())
}

fn drive(path: &SocketPath, socket: SocketPath, model: Model) -> Whole {
    let function = VfioUserFunction::connect(path.path()).unwrap();
    Whole::driven(socket, model, Box::new(function))
}

#[test]
fn a_stock_front_end_is_served_through_a_socket() {
    for shape in [Shape::ours(), Shape::crosvm()] {
        let file = memory(2 * LEN);
        let path = SocketPath::new();
        let dialect = shape.dialect;
        let (socket, model) = model(shape, Some(&file));
        let serving = Serving::new(&path, &model);
        let mut whole = drive(&path, socket, model.clone());
        whole.dialect = dialect;
        for round in 1..=3 {
            serve_in(&whole, whole.connect(), &file);
            until("disconnected", || whole.is_idle());
            let status = whole.model.status();
            assert_eq!(status.generation, round);
            assert_eq!(status.counters.violations, 0, "{status:?}");
            assert_eq!(status.counters.broken, 0, "{status:?}");
        }
        whole.session.stop();
        until("left quiet", || model.status().device_status == 0);
        let served = serving.finish();
        assert_eq!((served.clients, served.violations), (1, 0));
        assert!(!path.path().exists(), "the socket file is left behind");
    }
}

#[test]
fn a_server_that_is_restarted_is_found_again() {
    let file = memory(2 * LEN);
    let path = SocketPath::new();
    let (socket, first) = model(Shape::ours(), Some(&file));
    let mut serving = Serving::new(&path, &first);
    let whole = drive(&path, socket, first);
    for _ in 0..3 {
        let frontend = whole.connect();
        until("connected", || whole.session.status().report().connected);
        assert_eq!(serving.finish().clients, 1);
        until("disconnected", || whole.is_idle());
        drop(frontend);
        serving = Serving::new(&path, &whole.model);
        serve_in(&whole, whole.connect(), &file);
        until("disconnected", || whole.is_idle());
    }
    whole.session.stop();
    serving.finish();
}

#[test]
fn one_driver_at_a_time() {
    let file = memory(2 * LEN);
    let path = SocketPath::new();
    let (socket, model) = model(Shape::ours(), Some(&file));
    let serving = Serving::new(&path, &model);
    let whole = drive(&path, socket, model);
    let second = VfioUserFunction::connect(path.path()).err().unwrap();
    assert!(second.to_string().contains("another client"), "{second}");
    serve_in(&whole, whole.connect(), &file);
    whole.session.stop();
    let whole = drive(&path, whole.socket, whole.model);
    serve_in(&whole, whole.connect(), &file);
    whole.session.stop();
    let served = serving.finish();
    assert_eq!((served.clients, served.turned_away), (2, 1));
}

#[test]
fn without_a_file_for_the_window_the_reason_is_given() {
    let path = SocketPath::new();
    let (socket, model) = model(Shape::ours(), None);
    let serving = Serving::new(&path, &model);
    let whole = drive(&path, socket, model);
    let mut frontend = whole.connect();
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let file = memory(LEN);
    let table = [VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: LEN,
        userspace_addr: 0x1000_0000,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }];
    assert!(frontend.set_mem_table(&table).is_err());
    let report = || whole.session.status().report();
    until("reported", || report().last_error.is_some());
    let error = report().last_error.unwrap();
    assert!(error.contains("--peer-memory"), "{error}");
    whole.session.stop();
    serving.finish();
}
