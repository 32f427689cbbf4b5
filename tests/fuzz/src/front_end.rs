//! A front-end that does what the input says: a socket, memory in a file, and things whose
//! descriptors it sends.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vvu::protocol::{HEADER_LEN, Message};

use crate::Input;

/// Length of the front-end's memory, one file.
pub const MEMORY: u64 = 0x1_0000;

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
    /// A socket, for requests of the back-end's.
    pub const SOCKET: u8 = 0x50;
    /// Most that come with one message: one more than is allowed.
    pub const MOST: u8 = 9;
}

/// Connections of one front-end.
const CONNECTIONS: u32 = 8;

/// A new eventfd.
pub(crate) fn event() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct FrontEnd {
    path: PathBuf,
    stream: Option<UnixStream>,
    connections: u32,
    pub(crate) memory: OwnedFd,
    pub(crate) event: OwnedFd,
    pipe: [OwnedFd; 2],
    /// Our end of the socket for requests of the back-end's, and the one that is handed over.
    channel: [UnixStream; 2],
}

impl FrontEnd {
    /// One that will connect to a socket that nobody else has.
    pub(crate) fn new() -> Option<Self> {
        let memory = memfd_create("vvu-fuzz", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&memory, MEMORY).ok()?;
        let (ours, theirs) = UnixStream::pair().ok()?;
        ours.set_nonblocking(true).ok()?;
        Some(Self {
            path: PathBuf::from(format!("/tmp/vvu-fuzz-{}.sock", std::process::id())),
            stream: None,
            connections: 0,
            memory,
            event: event()?,
            pipe: rustix::pipe::pipe().ok()?.into(),
            channel: [ours, theirs],
        })
    }

    /// Where it will connect.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Connects; false if it did so too often already, or nobody listens.
    pub(crate) fn connect(&mut self) -> bool {
        self.connections += 1;
        if self.connections > CONNECTIONS {
            return false;
        }
        let _ = ftruncate(&self.memory, MEMORY);
        self.stream = UnixStream::connect(&self.path).ok();
        let stream = self.stream.as_ref();
        stream.is_some_and(|stream| stream.set_nonblocking(true).is_ok())
    }

    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
    }

    /// Sends a message: u8 request, u8 flags, u8 file descriptors, a part as its payload.
    pub(crate) fn message(&mut self, input: &mut Input) {
        let request = input.u8().into();
        let flags = input.u8().into();
        let kinds = input.u8();
        let message = Message {
            request,
            flags,
            payload: input.part(),
        };
        let ([pipe, _], [_, channel]) = (&self.pipe, &self.channel);
        let (memory, event) = (self.memory.as_fd(), self.event.as_fd());
        let (first, last) = match kinds & 0xf0 {
            fds::MEMORY => (memory, memory),
            fds::PIPE => (pipe.as_fd(), pipe.as_fd()),
            fds::MIXED => (memory, event),
            fds::SOCKET => (channel.as_fd(), channel.as_fd()),
            _ => (event, event),
        };
        let mut all = vec![first; usize::from((kinds & 0xf).min(fds::MOST))];
        if let Some(end) = all.last_mut() {
            *end = last;
        }
        if !self.say(&message.to_bytes(), &all) {
            self.hang_up();
        }
    }

    /// Sends bytes, whatever they mean.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        if !self.say(bytes, &[]) {
            self.hang_up();
        }
    }

    /// Sends all of `bytes`. False if the other side hung up, or does not read.
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
        sent == Ok(bytes.len())
    }

    /// Reads what the other side says: whole messages, to be judged by `each`, and nothing else.
    pub(crate) fn hear(&mut self, each: impl Fn(&Message)) {
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
            let (request, flags, size) = Message::parse_header(&header);
            let mut payload = vec![0; size as usize];
            assert!(stream.read_exact(&mut payload).is_ok(), "half a message");
            each(&Message {
                request,
                flags,
                payload,
            });
        }
    }

    /// Says something where it hears requests of the back-end's; nothing: reads what there is.
    pub(crate) fn channel(&mut self, bytes: &[u8]) {
        let [ours, _] = &mut self.channel;
        if bytes.is_empty() {
            let _ = ours.read_to_end(&mut Vec::new());
        } else {
            let _ = ours.write(bytes);
        }
    }

    /// Writes its memory.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) {
        let _ = rustix::io::pwrite(&self.memory, bytes, offset);
    }

    /// Two bytes of its memory.
    pub(crate) fn u16(&self, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        let _ = rustix::io::pread(&self.memory, &mut bytes, offset);
        u16::from_le_bytes(bytes)
    }

    /// Gives its memory's file another length.
    pub(crate) fn truncate(&self, len: u64) {
        let _ = ftruncate(&self.memory, len);
    }
}
