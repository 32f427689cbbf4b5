//! The catalogue of hostile front-ends, against a session at its socket and against the device
//! model with the real driver and a session behind it. Nothing is left over, whatever ended a
//! connection was counted, and an honest front-end is served afterwards.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::bench::{SocketPath, alone, until};
use super::catalogue::{Attack, attacks, set_up};
use super::fake::FakeDevice;
use super::hostile::count;
use super::script::Script;
use crate::device::{Device, Options};
use crate::model::Shape;
use crate::model::test_rig::Rig;
use crate::session::Session;
use crate::transport::unix::UnixTransport;
use crate::transport::vvu::VvuTransport;

/// Somebody who is to be attacked.
struct Target {
    path: PathBuf,
    device: FakeDevice,
    session: Session,
    rig: Option<Rig>,
    _socket: Option<SocketPath>,
}

impl Target {
    fn unix() -> Self {
        let socket = SocketPath::new();
        let transport = UnixTransport::listen(socket.path()).unwrap();
        let device = FakeDevice::new(2);
        Self {
            path: socket.path().to_owned(),
            session: Session::spawn(Box::new(transport), Box::new(device.clone())).unwrap(),
            device,
            rig: None,
            _socket: Some(socket),
        }
    }

    fn tunnel(shape: Shape) -> Self {
        let rig = Rig::kind(Shape {
            window: 64 << 20,
            ..shape
        });
        let options = Options {
            timeout: Duration::from_secs(10),
            ..Options::default()
        };
        let transport = VvuTransport::new(Device::open(rig.model.function(), options).unwrap());
        let device = FakeDevice::new(2);
        Self {
            path: rig.path.clone(),
            session: Session::spawn(Box::new(transport), Box::new(device.clone())).unwrap(),
            device,
            rig: Some(rig),
            _socket: None,
        }
    }

    fn call(&self) -> Script {
        let stream = UnixStream::connect(&self.path).unwrap();
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).unwrap();
        stream.set_write_timeout(timeout).unwrap();
        Script { stream }
    }

    /// Why messages were refused and connections ended, counted.
    fn reasons(&self) -> u64 {
        let report = self.session.status().report();
        let model = self.rig.as_ref().map(|rig| rig.model.status().counters);
        // A message that is longer than the driver's buffers breaks the device, by the book.
        let model = model.map_or(0, |model| model.refused + model.violations + model.broken);
        report.violations + report.nacks + model
    }

    /// What people are told.
    fn told(&self) -> (Option<String>, Option<String>) {
        let model = self
            .rig
            .as_ref()
            .and_then(|rig| rig.model.status().last_refusal);
        (self.session.status().report().last_error, model)
    }

    fn is_idle(&self) -> bool {
        let report = self.session.status().report();
        let free = self.rig.as_ref().is_none_or(|rig| !rig.is_connected());
        free && !report.connected && report.running_rings == 0
    }

    /// So many pieces of an honest set-up.
    fn begin(&self, script: &mut Script, pieces: usize) {
        for (bytes, fd) in set_up().iter().take(pieces) {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            script.raw(bytes, &fds);
        }
    }

    /// An honest front-end, from its first word to its last.
    fn serve(&self) {
        let mut script = self.call();
        self.begin(&mut script, usize::MAX);
        let mut last = 0;
        while last != 11 {
            let message = script.hear();
            last = message
                .unwrap_or_else(|error| panic!("{error}: {:?}", self.told()))
                .request;
        }
        drop(script);
        until("idle", || self.is_idle());
    }

    fn suffer(&self, attack: &Attack) {
        let before = self.reasons();
        let mut script = self.call();
        self.begin(&mut script, attack.after);
        for (bytes, kinds) in &attack.pieces {
            let fds: Vec<OwnedFd> = kinds.iter().map(|kind| kind.open()).collect();
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            script.raw(bytes, &fds);
        }
        // Is anybody still there?
        let probe = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let mut alive = false;
        if attack.cut {
            let _ = script.stream.shutdown(Shutdown::Write);
            while script.hear().is_ok() {}
        } else {
            script.raw(&probe, &[]);
            let asks = |bytes: &&(Vec<u8>, _)| bytes.0.starts_with(&probe[..4]);
            let mut wanted = usize::from(attack.after > 0) + 1;
            wanted += attack.pieces.iter().filter(asks).count();
            while wanted > 0 {
                match script.hear() {
                    Ok(message) => wanted -= usize::from(message.request == 1),
                    Err(error) => {
                        let hangs = error.kind() == std::io::ErrorKind::WouldBlock;
                        assert!(!hangs, "{}: it hangs", attack.name);
                        break;
                    }
                }
            }
            alive = wanted == 0;
        }
        drop(script);
        until(&attack.name, || self.is_idle());
        let reasons = self.reasons() - before;
        assert!(
            alive || attack.cut || reasons > 0 && self.told() != (None, None),
            "{}, after {}: dropped without a reason",
            attack.name,
            attack.after
        );
    }

    /// An honest start that ends after so many bytes; how many there are.
    fn leave_after(&self, bytes: usize) -> usize {
        let mut script = self.call();
        let mut sent = 0;
        for (message, fd) in set_up() {
            let part = message.len().min(bytes - sent);
            if part == 0 {
                break;
            }
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            script.raw(&message[..part], &fds);
            sent += part;
        }
        let _ = script.stream.shutdown(Shutdown::Write);
        while script.hear().is_ok() {}
        until("idle", || self.is_idle());
        sent
    }

    /// All of it or one in so many, and what is left of it.
    fn survive(self, one_in: usize) {
        self.serve();
        self.serve();
        let left = || (count("fd"), count("task"));
        let (before, maps) = (left(), count("map_files"));
        let attacks = attacks();
        assert!(attacks.len() > 3000, "{}", attacks.len());
        for attack in attacks.iter().step_by(one_in) {
            self.suffer(attack);
        }
        self.serve();
        let total = self.leave_after(usize::MAX);
        for bytes in 1..total {
            self.leave_after(bytes);
        }
        self.serve();
        // A thousand that only look in.
        for _ in 0..1000 {
            drop(self.call());
        }
        self.serve();
        until("all is given back", || {
            // The allocator may have mapped memory of its own.
            left() == before && count("map_files") <= maps + 8
        });
        assert!(self.device.seen().rings.is_empty());
        self.session.stop();
        until("the thread is gone", || count("task") < before.1);
    }
}

#[test]
fn a_session_survives_the_catalogue() {
    alone("session::tests::abuse::at_a_socket");
}

#[test]
#[ignore = "run by a_session_survives_the_catalogue, in a process of its own"]
fn at_a_socket() {
    Target::unix().survive(1);
}

#[test]
fn a_model_and_its_driver_survive_the_catalogue() {
    alone("session::tests::abuse::through_a_device");
}

#[test]
#[ignore = "run by a_model_and_its_driver_survive_the_catalogue, in a process of its own"]
fn through_a_device() {
    Target::tunnel(Shape::ours()).survive(1);
    for shape in [Shape::prototype(0x1058), Shape::crosvm()] {
        Target::tunnel(shape).survive(5);
    }
}
