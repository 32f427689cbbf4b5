//! A plain function, a thread that serves it, and what happened to it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::Bytes;

use super::super::*;
use crate::memory::{Mapping, page_size};

/// Length of BAR 0, which is registers.
pub(super) const REGISTERS: u64 = 0x1000;
/// Length of BAR 2, and of what of it can be mapped.
pub(super) const WINDOW: u64 = 0x10_0000;
pub(super) const SHARED: u64 = 0x4000;
pub(super) const VECTORS: u16 = 70;

/// How long anything may take on a busy machine.
pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "it did not come to this: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What was done to a function, and what it has.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) writes: Vec<(u32, u64, Vec<u8>)>,
    pub(super) maps: Vec<Map>,
    pub(super) vectors: Vec<Option<OwnedFd>>,
    pub(super) resets: u32,
    /// Connections that were ended, with why.
    pub(super) ended: Vec<String>,
    pub(super) counters: Counters,
}

/// A piece of the client's memory.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) iova: u64,
    pub(super) len: u64,
    pub(super) file: OwnedFd,
    pub(super) bytes: Mapping,
}

/// A PCI function with registers that remember, some shared memory and interrupts.
#[derive(Debug, Clone)]
pub(super) struct Plain {
    pub(super) seen: Arc<Mutex<Seen>>,
    registers: Arc<Mutex<Vec<u8>>>,
    pub(super) memory: Arc<OwnedFd>,
}

impl Plain {
    pub(super) fn new() -> Self {
        let memory = memfd_create("vvu-plain", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, SHARED).unwrap();
        let vectors = (0..VECTORS).map(|_| None).collect();
        Self {
            seen: Arc::new(Mutex::new(Seen {
                vectors,
                ..Seen::default()
            })),
            registers: Arc::new(Mutex::new(vec![0; REGISTERS as usize])),
            memory: Arc::new(memory),
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Whether it is as if nobody had been there.
    pub(super) fn is_clean(&self) -> bool {
        let seen = self.seen();
        seen.maps.is_empty() && seen.vectors.iter().all(Option::is_none)
    }

    /// The function's DMA: reads the map at this address.
    pub(super) fn dma(&self, iova: u64, at: usize) -> u32 {
        let seen = self.seen();
        let found = seen.maps.iter().find(|map| map.iova == iova).unwrap();
        found.bytes.slice().read_obj(at).unwrap()
    }
}

impl Served for Plain {
    fn region_size(&self, region: u32) -> u64 {
        match region {
            0 => REGISTERS,
            2 => WINDOW,
            CONFIG_REGION => 256,
            _ => 0,
        }
    }

    fn shared(&self, region: u32) -> Option<Shared<'_>> {
        (region == 2).then(|| Shared {
            file: self.memory.as_fd(),
            len: SHARED,
        })
    }

    fn vectors(&self) -> u16 {
        VECTORS
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = match region {
                0 => self.registers.lock().unwrap()[at as usize],
                _ => at as u8 ^ region as u8,
            };
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        if region == 0 {
            let at = offset as usize;
            self.registers.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        }
        self.seen().writes.push((region, offset, data.to_vec()));
    }

    fn map(&mut self, iova: u64, memory: ClientMemory) -> Result<bool, Refusal> {
        let Some(file) = memory.file else {
            return match memory.writable {
                true => Err(Refusal::new(Errno::OPNOTSUPP, "no file")),
                false => Ok(false),
            };
        };
        let mapped = match memory.writable {
            true => Mapping::of_file(file.as_fd(), memory.offset, memory.len),
            false => Mapping::copy_of_file(file.as_fd(), memory.offset, memory.len),
        };
        let bytes = mapped.map_err(|error| Refusal::new(Errno::INVAL, error.to_string()))?;
        self.seen().maps.push(Map {
            iova,
            len: memory.len,
            file,
            bytes,
        });
        Ok(true)
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        let mut seen = self.seen();
        let found = seen
            .maps
            .iter()
            .position(|map| (map.iova, map.len) == (iova, len));
        seen.maps.remove(found.expect("only what was mapped"));
    }

    fn set_vector(&mut self, vector: u16, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        self.seen().vectors[usize::from(vector)] = fd;
        Ok(())
    }

    fn reset(&mut self) {
        self.seen().resets += 1;
    }
}

/// A path for a socket, in a directory of its own that goes with it.
#[derive(Debug)]
pub(super) struct SocketPath(PathBuf);

impl SocketPath {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvu-vfio-user-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path.join("s"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// Serves a function at a path, one client after the other, until it is dropped.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) function: Plain,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    pub(super) fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let function = Plain::new();
        let thread = {
            let (mut function, stop) = (function.clone(), stop.try_clone().unwrap());
            std::thread::spawn(move || while serve_one(&listener, &stop, &mut function) {})
        };
        Self {
            function,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// Waits for one of two; the second wins.
fn wait(stop: &OwnedFd, other: impl AsFd) -> bool {
    let other = other.as_fd();
    let mut fds = [
        PollFd::new(stop, PollFlags::IN),
        PollFd::from_borrowed_fd(other, PollFlags::IN),
    ];
    poll(&mut fds, None).unwrap();
    !fds[1].revents().is_empty()
}

fn serve_one(listener: &UnixListener, stop: &OwnedFd, function: &mut Plain) -> bool {
    if !wait(stop, listener) {
        return false;
    }
    let (socket, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(socket.into());
    let reason = loop {
        if !wait(stop, connection.fd()) {
            break "stopped".to_owned();
        }
        match connection.serve(function) {
            Ok(()) => {}
            Err(reason) => break reason.to_string(),
        }
    };
    connection.end(function);
    let mut seen = function.seen();
    seen.counters = connection.counters().clone();
    seen.ended.push(reason);
    true
}

/// The length that memory of `len` bytes has in the end: hugepages, if there are some.
pub(super) fn rounded(len: usize, found: usize) -> bool {
    found >= len && found.is_multiple_of(page_size())
}
