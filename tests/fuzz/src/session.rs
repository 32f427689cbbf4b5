//! A front-end that does what the input says, on a real session over AF_UNIX, with rings that run
//! and are served.
//!
//! The session runs on this thread. Its transport is the real one in a wrapper that lets the
//! front-end take its next step when there is nothing to receive.

use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vvu::memory::Region;
use vvu::notify::{Call, Kick};
use vvu::protocol::{FLAG_REPLY, HEADER_LEN, Message, VERSION};
use vvu::session::{Status, StopSignal, run as run_session};
use vvu::transport::unix::UnixTransport;
use vvu::transport::{Event, RegionRequest, Transport, TransportError};
use vvu_pmd::net::Switch;

use crate::Input;
use crate::device::{Card, lock};

/// Length of the front-end's memory, one file.
pub const MEMORY: u64 = 0x1_0000;

/// Where the parts of ring 0 are in it if the front-end means well, and how far the next ring is.
pub const PARTS: [u64; 3] = [0, 0x400, 0x600];
/// See [`PARTS`].
pub const RING: u64 = 0x1000;
/// Entries of such a ring.
pub const SIZE: u16 = 64;

/// What happens next; the numbers are those of the input.
pub mod op {
    /// A message: u8 request, u8 flags, u8 file descriptors, a part as its payload.
    pub const MESSAGE: u8 = 0;
    /// Bytes, whatever they mean: a part.
    pub const BYTES: u8 = 1;
    /// The front-end writes its memory: u16 offset, a part.
    pub const WRITE: u8 = 2;
    /// It makes a chain of a ring at [`super::PARTS`] available: u8 ring, u16 head.
    pub const OFFER: u8 = 3;
    /// It writes a descriptor of such a ring: u8 ring, u8 index, u64 address, u32 length, u16
    /// flags, u16 next.
    pub const DESCRIPTOR: u8 = 4;
    /// The rings are polled: u8 how often.
    pub const POLL: u8 = 5;
    /// The worker would sleep.
    pub const SLEEP: u8 = 6;
    /// The memory's file gets another length: u16.
    pub const TRUNCATE: u8 = 7;
    /// The front-end hangs up, and connects again.
    pub const RECONNECT: u8 = 8;
    /// Number of operations.
    pub const COUNT: u8 = 9;
}

/// File descriptors that come with a message: how many, and of what kind they are.
pub mod fds {
    /// Eventfds.
    pub const EVENT: u8 = 0x10;
    /// The memory's file.
    pub const MEMORY: u8 = 0x20;
    /// Ends of a pipe.
    pub const PIPE: u8 = 0x30;
    /// As for [`MEMORY`], and one eventfd at the end.
    pub const MIXED: u8 = 0x40;
    /// Most that come with one message: one more than is allowed.
    pub const MOST: u8 = 9;
}

/// Connections of one front-end.
const CONNECTIONS: u32 = 8;

/// The front-end, and the transport that it is behind.
struct Scripted {
    inner: UnixTransport,
    path: PathBuf,
    stream: Option<UnixStream>,
    connections: u32,
    input: Input,
    memory: OwnedFd,
    event: OwnedFd,
    pipe: OwnedFd,
    switch: Arc<Mutex<Switch>>,
    stop: StopSignal,
}

impl Scripted {
    /// The next step. False if there is none.
    fn step(&mut self) -> bool {
        if self.stream.is_none() {
            return self.connect();
        }
        self.hear();
        if self.input.is_empty() {
            return false;
        }
        match self.input.u8() % op::COUNT {
            op::MESSAGE => self.message(),
            op::BYTES => {
                let bytes = self.input.part();
                if !self.say(&bytes, &[]) {
                    self.stream = None;
                }
            }
            op::WRITE => {
                let offset = self.input.u16().into();
                let _ = rustix::io::pwrite(&self.memory, &self.input.part(), offset);
            }
            op::OFFER => self.offer(),
            op::DESCRIPTOR => {
                let ring = RING * u64::from(self.input.u8() % 4);
                let at = ring + 16 * u64::from(self.input.u8());
                let _ = rustix::io::pwrite(&self.memory, &self.input.bytes(16), at);
            }
            op::POLL => {
                for _ in 0..self.input.u8() {
                    lock(&self.switch).poll(0);
                }
            }
            op::SLEEP => {
                let mut switch = lock(&self.switch);
                switch.enable_kicks();
                switch.disable_kicks();
            }
            op::TRUNCATE => {
                let _ = ftruncate(&self.memory, self.input.u16().into());
            }
            _ => self.stream = None,
        }
        true
    }

    fn connect(&mut self) -> bool {
        self.connections += 1;
        if self.input.is_empty() || self.connections > CONNECTIONS {
            return false;
        }
        // Replies of the last one, and its memory, do not matter any more.
        let _ = ftruncate(&self.memory, MEMORY);
        self.stream = UnixStream::connect(&self.path).ok();
        self.stream
            .as_ref()
            .is_some_and(|stream| stream.set_nonblocking(true).is_ok())
    }

    fn message(&mut self) {
        let request = self.input.u8().into();
        let flags = self.input.u8().into();
        let kinds = self.input.u8();
        let message = Message {
            request,
            flags,
            payload: self.input.part(),
        };
        let (memory, event, pipe) = (&self.memory, &self.event, &self.pipe);
        let (first, last) = match kinds & 0xf0 {
            fds::MEMORY => (memory, memory),
            fds::PIPE => (pipe, pipe),
            fds::MIXED => (memory, event),
            _ => (event, event),
        };
        let mut all = vec![first.as_fd(); usize::from((kinds & 0xf).min(fds::MOST))];
        if let Some(end) = all.last_mut() {
            *end = last.as_fd();
        }
        if !self.say(&message.to_bytes(), &all) {
            self.stream = None;
        }
    }

    /// Sends all of `bytes`. False if the session hung up.
    fn say(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let Some(stream) = &self.stream else {
            return false;
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let parts = [IoSlice::new(bytes)];
        let sent = sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL);
        // A part holds less than the socket takes, and the session has read what came before.
        sent == Ok(bytes.len())
    }

    fn offer(&mut self) {
        let [_, avail, _] = PARTS;
        let ring = avail + RING * u64::from(self.input.u8() % 4);
        let head = self.input.u16();
        let mut index = [0; 2];
        let _ = rustix::io::pread(&self.memory, &mut index, ring + 2);
        let index = u16::from_le_bytes(index);
        let slot = ring + 4 + 2 * u64::from(index % SIZE);
        let _ = rustix::io::pwrite(&self.memory, &head.to_le_bytes(), slot);
        let next = index.wrapping_add(1).to_le_bytes();
        let _ = rustix::io::pwrite(&self.memory, &next, ring + 2);
    }

    /// Reads what the session says: whole replies and nothing else.
    fn hear(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut header = [0; HEADER_LEN];
        loop {
            match stream.read_exact(&mut header) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.stream = None;
                    return;
                }
            }
            let (_, flags, size) = Message::parse_header(&header);
            assert_eq!(flags, VERSION | FLAG_REPLY);
            let mut payload = vec![0; size as usize];
            assert!(stream.read_exact(&mut payload).is_ok(), "half a reply");
        }
    }
}

impl Transport for Scripted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.inner.poll_fd()
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.inner.next() {
                return Some(event);
            }
            if !self.step() {
                self.stop.raise();
                return None;
            }
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        self.inner.send(message)
    }

    fn protocol_features(&self) -> u64 {
        self.inner.protocol_features()
    }

    fn max_rings(&self) -> u16 {
        self.inner.max_rings()
    }

    fn map_memory(
        &mut self,
        regions: &[RegionRequest],
        attached: Vec<OwnedFd>,
        whole: bool,
    ) -> Result<Vec<Region>, TransportError> {
        self.inner.map_memory(regions, attached, whole)
    }

    fn kick(&mut self, ring: u16, nofd: bool, fds: Vec<OwnedFd>) -> Result<Kick, TransportError> {
        self.inner.kick(ring, nofd, fds)
    }

    fn call(&mut self, ring: u16, nofd: bool, fds: Vec<OwnedFd>) -> Result<Call, TransportError> {
        self.inner.call(ring, nofd, fds)
    }

    fn err(&mut self, ring: u16, nofd: bool, fds: Vec<OwnedFd>) -> Result<Call, TransportError> {
        self.inner.err(ring, nofd, fds)
    }

    fn disconnect(&mut self) {
        self.inner.disconnect();
        self.stream = None;
    }

    fn shutdown(&mut self) {
        self.inner.shutdown();
    }
}

/// Serves the front-end until it has nothing more to say.
pub fn run(data: &[u8]) {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let Ok(event) = eventfd(0, flags) else {
        return;
    };
    let before = event.as_raw_fd();
    serve(data, event);
    let after = eventfd(0, flags).map_or(before, |fd| fd.as_raw_fd());
    assert_eq!(after, before, "descriptors were left open");
}

fn serve(data: &[u8], event: OwnedFd) {
    let mut input = Input::new(data);
    let pairs = u16::from(input.u8() % 2) + 1;
    let path = PathBuf::from(format!("/tmp/vvu-fuzz-{}.sock", std::process::id()));
    let memory = memfd_create("vvu-fuzz", MemfdFlags::CLOEXEC);
    let (Ok(memory), Ok((pipe, _end))) = (memory, rustix::pipe::pipe()) else {
        return;
    };
    let (Ok(inner), Ok(stop)) = (UnixTransport::listen(&path), StopSignal::new()) else {
        return;
    };
    let Some(card) = Card::new(pairs) else {
        return;
    };
    let status = Arc::new(Status::default());
    let scripted = Scripted {
        inner,
        path,
        stream: None,
        connections: 0,
        input,
        memory,
        event,
        pipe,
        switch: card.switch(),
        stop: stop.clone(),
    };
    run_session(
        Box::new(scripted),
        Box::new(card),
        &stop,
        Arc::clone(&status),
    );
    let report = status.report();
    assert!(!report.connected && report.running_rings == 0, "{report:?}");
}
