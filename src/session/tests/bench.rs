//! What every test needs: a session at a fresh socket, memory, patience.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::fake::FakeDevice;
use crate::session::{Session, StatusReport};
use crate::transport::unix::UnixTransport;

/// A socket path of nobody else's, removed at the end.
pub(in crate::session) struct SocketPath(PathBuf);

impl SocketPath {
    pub(in crate::session) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvu-session-{}-{number}.sock", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(in crate::session) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A session with a fake device, listening.
pub(super) struct Bench {
    pub(super) socket: SocketPath,
    pub(super) device: FakeDevice,
    session: Session,
}

impl Bench {
    pub(super) fn new(queues: u16) -> Self {
        Self::with(FakeDevice::new(queues))
    }

    pub(super) fn with(device: FakeDevice) -> Self {
        let socket = SocketPath::new();
        let transport = UnixTransport::listen(socket.path()).unwrap();
        let session = Session::spawn(Box::new(transport), Box::new(device.clone())).unwrap();
        Self {
            socket,
            device,
            session,
        }
    }

    pub(super) fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket.path()).unwrap();
        let timeout = Some(Duration::from_secs(10));
        stream.set_read_timeout(timeout).unwrap();
        stream.set_write_timeout(timeout).unwrap();
        stream
    }

    pub(super) fn report(&self) -> StatusReport {
        self.session.status().report()
    }

    /// Waits until the status is as it should be.
    pub(super) fn until(&self, what: &str, good: impl Fn(&StatusReport) -> bool) {
        until(what, || good(&self.report()));
    }

    pub(super) fn stop(self) {
        self.session.stop();
    }
}

pub(super) fn until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !good() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Memory of a front-end: a file of `len` bytes.
pub(super) fn memory(len: u64) -> OwnedFd {
    let file = memfd_create("vvu-session-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

/// Runs the ignored test `name` in a process of its own, where nothing else opens descriptors.
pub(super) fn alone(name: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
