//! A model between a test's driver and a test's front-end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{FrontEnd, LinkState, Model, Shape};
use crate::pci::PciFunction;
use crate::protocol::HEADER_LEN;

/// The test's side of a device: the front-end at its socket, and its inside through `model`.
#[derive(Debug, Clone)]
pub(crate) struct Rig {
    pub(crate) model: Model,
    pub(crate) path: PathBuf,
    front_end: Arc<Mutex<Option<UnixStream>>>,
}

impl Rig {
    /// A watched, cruel device, and the function through which it is driven.
    pub(crate) fn new(shape: Shape) -> (Self, Box<dyn PciFunction>) {
        let rig = Self::kind(shape);
        rig.model.watch();
        rig.model.be_cruel();
        let function = rig.model.function();
        (rig, function)
    }

    /// A device that is neither.
    pub(crate) fn kind(shape: Shape) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvu-rig-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        Self {
            model: Model::new(shape, FrontEnd::Listen(path.clone())).unwrap(),
            path,
            front_end: Arc::default(),
        }
    }

    fn has_front_end(&self) -> bool {
        matches!(
            self.model.status().link,
            LinkState::Open | LinkState::Connected
        )
    }

    /// A front-end takes the place of the one that is there; it is let in when the driver is.
    pub(crate) fn connect(&self) {
        self.disconnect();
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        *self.front_end.lock().unwrap() = Some(stream);
        until("a front-end", || self.has_front_end());
    }

    /// The front-end goes away.
    pub(crate) fn disconnect(&self) {
        *self.front_end.lock().unwrap() = None;
        until("no front-end", || !self.has_front_end());
    }

    /// Whether a front-end is there and was let in.
    pub(crate) fn is_connected(&self) -> bool {
        self.model.status().link == LinkState::Connected
    }

    /// The front-end sends a message.
    pub(crate) fn push(&self, message: &[u8]) {
        let front_end = self.front_end.lock().unwrap();
        front_end.as_ref().unwrap().write_all(message).unwrap();
    }

    /// The messages that the front-end received since it was asked last.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        let front_end = self.front_end.lock().unwrap();
        if let Some(mut stream) = front_end.as_ref()
            && let Err(error) = stream.read_to_end(&mut bytes)
        {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::WouldBlock | ErrorKind::ConnectionReset),
                "{error}"
            );
        }
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let size = u32::from_le_bytes(*bytes[8..].first_chunk().unwrap());
            let rest = bytes.split_off(HEADER_LEN + size as usize);
            messages.push(std::mem::replace(&mut bytes, rest));
        }
        messages
    }

    /// Whether the device is quiet: reset, with no driver behind it.
    pub(crate) fn is_quiet(&self) -> bool {
        let status = self.model.status();
        status.device_status == 0 && matches!(status.link, LinkState::Initial | LinkState::Open)
    }
}

pub(crate) fn until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !good() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
