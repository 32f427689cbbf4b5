//! A front-end that sends what a test says, right or wrong.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::bench::Bench;
use crate::protocol::{
    HEADER_LEN, MemRegion, Message, Reply, Request, VringAddr, VringFd, VringState,
};

/// Where the script's memory is for the front-end.
pub(super) const USER: u64 = 0x7f00_0000_0000;
/// Length of one region.
pub(super) const LEN: u64 = 0x10_0000;
pub(super) const BIT30: u64 = 1 << 30;
/// All protocol features that a session offers for a net device that tracks what is in flight: MQ,
/// RARP, REPLY_ACK, MTU, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS.
pub(super) const ALL: u64 = 1 | 4 | 8 | 16 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;

pub(super) struct Script {
    pub(super) stream: UnixStream,
}

impl Script {
    pub(super) fn new(bench: &Bench) -> Self {
        Self {
            stream: bench.stream(),
        }
    }

    /// As [`Script::new`], with all protocol features and the device features `bits`.
    pub(super) fn negotiated(bench: &Bench, bits: u64) -> Self {
        let mut script = Self::new(bench);
        script.tell(&Request::SetProtocolFeatures(ALL), &[]);
        script.ok(&Request::SetFeatures(bits | BIT30), &[]);
        script
    }

    pub(super) fn raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(sent) => sent,
            // Whoever is refused may not get to say everything.
            Err(_) => return,
        };
        let _ = self.stream.write_all(&bytes[sent..]);
    }

    /// Sends a request that wants no answer.
    pub(super) fn tell(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) {
        self.raw(&request.to_message(false).to_bytes(), fds);
    }

    /// Sends a request and returns what it says.
    pub(super) fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Reply {
        let message = request.to_message(true);
        self.raw(&message.to_bytes(), fds);
        let reply = self.message().expect("a reply");
        assert_eq!(reply.request, message.request);
        assert_eq!(reply.flags, 5);
        Reply::parse(&reply).unwrap()
    }

    pub(super) fn ok(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask(request, fds), Reply::U64(0), "{request:?}");
    }

    pub(super) fn refused(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask(request, fds), Reply::U64(1), "{request:?}");
    }

    /// The next message from the session; `None` if it hung up.
    pub(super) fn message(&mut self) -> Option<Message> {
        match self.hear() {
            Ok(message) => Some(message),
            Err(error) => {
                let kind = error.kind();
                let gone = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                assert!(gone.contains(&kind), "{error}");
                None
            }
        }
    }

    /// The next message, or why there is none.
    pub(super) fn hear(&mut self) -> std::io::Result<Message> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let (request, flags, size) = Message::parse_header(&header);
        let mut payload = vec![0; size as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Message {
            request,
            flags,
            payload,
        })
    }

    /// Asserts that the session hung up without a word.
    pub(super) fn is_closed(&mut self) {
        assert_eq!(self.message(), None);
    }

    /// Announces `file` as one region at guest address 0.
    pub(super) fn set_memory(&mut self, file: &OwnedFd) {
        self.ok(&Request::SetMemTable(vec![region(0)]), &[file.as_fd()]);
    }

    /// Sets up ring `index` up to its kick.
    pub(super) fn prepare(&mut self, index: u32) {
        self.ok(&Request::SetVringNum(state(index, 256)), &[]);
        self.ok(&Request::SetVringBase(state(index, 0)), &[]);
        self.ok(&Request::SetVringAddr(addr(index)), &[]);
    }

    /// Starts ring `index`.
    pub(super) fn start(&mut self, index: u32) {
        self.prepare(index);
        self.ok(&kick(index), &[eventfd().as_fd()]);
    }
}

pub(super) fn eventfd() -> OwnedFd {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub(super) fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

/// The `nth` region, of the whole file.
pub(super) fn region(nth: u64) -> MemRegion {
    MemRegion {
        guest_addr: nth * LEN,
        size: LEN,
        user_addr: USER + nth * LEN,
        mmap_offset: 0,
    }
}

/// Ring `index` in the first region.
pub(super) fn addr(index: u32) -> VringAddr {
    let base = USER + u64::from(index) * 0x4000;
    VringAddr {
        index,
        flags: 0,
        desc: base,
        avail: base + 0x1000,
        used: base + 0x2000,
        log: 0,
    }
}

pub(super) fn fd(index: u32, nofd: bool) -> VringFd {
    VringFd {
        index: index as u8,
        nofd,
    }
}

pub(super) fn kick(index: u32) -> Request {
    Request::SetVringKick(fd(index, false))
}

pub(super) fn call(index: u32) -> Request {
    Request::SetVringCall(fd(index, false))
}

pub(super) fn polled(index: u32) -> Request {
    Request::SetVringKick(fd(index, true))
}
