//! The front-end that a case plays: it says what the case says, right or wrong.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd as new_eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vvu::protocol::{HEADER_LEN, MemRegion, Message, Reply, Request};

use crate::{PATIENCE, QUIET};

/// Flags of a request.
pub(crate) const PLAIN: u32 = 1;
/// Flags of a request that wants to be acknowledged.
pub(crate) const NEED_REPLY: u32 = 1 | 8;
/// Flags of a reply.
pub(crate) const REPLY: u32 = 1 | 4;
/// Bit of a ring's number: no descriptor comes.
pub(crate) const NOFD: u64 = 1 << 8;

/// Request numbers.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const CREATE_CRYPTO_SESSION: u32 = 26;
    pub(crate) const REM_MEM_REG: u32 = 38;
    /// Nobody's.
    pub(crate) const UNKNOWN: u32 = 77;
}

/// Numbers of the back-end's requests.
pub(crate) mod request_of_back_end {
    pub(crate) const IOTLB: u32 = 1;
    pub(crate) const CONFIG_CHANGE: u32 = 2;
    pub(crate) const VRING_CALL: u32 = 4;
    pub(crate) const VRING_ERR: u32 = 5;
}

/// A connected front-end.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    stream: UnixStream,
}

impl From<OwnedFd> for FrontEnd {
    fn from(socket: OwnedFd) -> Self {
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }
}

impl FrontEnd {
    pub(crate) fn connect(path: &Path) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        Self::from(OwnedFd::from(stream))
    }

    /// A channel for requests of the back-end's: where they arrive, and what is handed over.
    pub(crate) fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self::from(OwnedFd::from(ours)), theirs.into())
    }

    /// Sends bytes as they are, with descriptors at the first of them. False if the other side
    /// has hung up.
    pub(crate) fn raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let flags = SendFlags::NOSIGNAL;
        match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(sent) => self.stream.write_all(&bytes[sent..]).is_ok(),
            Err(_) => false,
        }
    }

    pub(crate) fn send(
        &mut self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) {
        let message = message(request, flags, payload);
        assert!(self.raw(&message.to_bytes(), fds), "hung up: {message:?}");
    }

    /// Sends a request that has no payload and no descriptors.
    pub(crate) fn plain(&mut self, request: u32) {
        self.send(request, PLAIN, &[], &[]);
    }

    pub(crate) fn number(&mut self, request: u32, flags: u32, value: u64, fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.send(request, flags, &value.to_le_bytes(), &fds);
    }

    /// Announces memory.
    pub(crate) fn memory(&mut self, flags: u32, regions: &[MemRegion], fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let table = Request::SetMemTable(regions.to_vec()).to_message(false);
        self.send(table.request, flags, &table.payload, &fds);
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Message {
        self.receive_or_end().expect("a message")
    }

    /// The next message; `None` if the other side hangs up instead.
    #[track_caller]
    pub(crate) fn receive_or_end(&mut self) -> Option<Message> {
        let mut header = [0; HEADER_LEN];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return None,
            Err(error) => panic!("no message: {error}"),
        }
        let (request, flags, size) = Message::parse_header(&header);
        assert!(size <= 65536, "{request} has {size} bytes");
        let mut payload = vec![0; size as usize];
        self.stream.read_exact(&mut payload).expect("its payload");
        Some(Message {
            request,
            flags,
            payload,
        })
    }

    /// The descriptors that come with the next bytes, of which one is read.
    fn descriptors(&mut self) -> (u8, Vec<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let read = recvmsg(&self.stream, &mut bytes, &mut control, flags).expect("a message");
        assert_eq!(read.bytes, 1, "hung up");
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        (byte[0], fds)
    }

    /// The next message, and the descriptors that come with it.
    #[track_caller]
    pub(crate) fn receive_with(&mut self) -> (Message, Vec<OwnedFd>) {
        let (first, fds) = self.descriptors();
        let mut header = [first; HEADER_LEN];
        let rest = header.split_first_mut().expect("a header").1;
        self.stream.read_exact(rest).expect("its header");
        let (request, flags, size) = Message::parse_header(&header);
        let mut payload = vec![0; size as usize];
        self.stream.read_exact(&mut payload).expect("its payload");
        (message(request, flags, &payload), fds)
    }

    /// The next message, which must answer `request` with a number.
    pub(crate) fn answer(&mut self, request: u32) -> u64 {
        let reply = self.receive();
        assert_eq!((reply.request, reply.flags & 7), (request, REPLY));
        match Reply::parse(&reply) {
            Some(Reply::U64(value)) => value,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for something, or for the outcome of something; the reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &Request, fds: &[&OwnedFd]) -> Reply {
        let message = request.to_message(true);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.send(message.request, NEED_REPLY, &message.payload, &fds);
        let reply = self.receive();
        assert_eq!((reply.request, reply.flags), (message.request, REPLY));
        Reply::parse(&reply).expect("a reply")
    }

    /// Says something that must be agreed with.
    #[track_caller]
    pub(crate) fn ok(&mut self, request: &Request, fds: &[&OwnedFd]) {
        assert_eq!(self.ask(request, fds), Reply::U64(0), "{request:?}");
    }

    /// The other side hangs up.
    pub(crate) fn is_hung_up(&mut self) {
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if is_end(&error) => {}
            other => panic!("not hung up: {other:?}"),
        }
    }

    /// Nothing comes for a while.
    pub(crate) fn hears_nothing(&self) {
        assert!(!is_readable(&self.stream, QUIET), "something came");
    }

    /// From now on writing to it fails.
    pub(crate) fn refuse_to_read(&self) {
        self.stream.shutdown(std::net::Shutdown::Read).unwrap();
    }
}

fn is_end(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
    )
}

pub(crate) fn message(request: u32, flags: u32, payload: &[u8]) -> Message {
    Message {
        request,
        flags,
        payload: payload.to_vec(),
    }
}

fn is_readable(fd: impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

pub(crate) fn eventfd() -> OwnedFd {
    new_eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Signals an eventfd.
pub(crate) fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// How often an eventfd was signalled since this was asked last.
pub(crate) fn signals(fd: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    match rustix::io::read(fd, &mut value) {
        Ok(8) => u64::from_ne_bytes(value),
        _ => 0,
    }
}

/// Waits until an eventfd was signalled; how often.
pub(crate) fn wait_signal(fd: &OwnedFd) -> u64 {
    assert!(is_readable(fd, PATIENCE), "no signal");
    signals(fd)
}

/// A front-end's memory: `len` bytes in a file that mappings can be told by. Each 64 KiB begin
/// with `seed` plus the number of their first page.
pub(crate) fn memory(name: &str, len: u64, seed: u32) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    for at in (0..len).step_by(0x10000) {
        write_at(&file, at, seed + (at >> 12) as u32);
    }
    file
}

pub(crate) fn write_at(file: &OwnedFd, at: u64, value: u32) {
    assert_eq!(rustix::io::pwrite(file, &value.to_le_bytes(), at), Ok(4));
}

pub(crate) fn read_at(file: &OwnedFd, at: u64) -> u32 {
    let mut bytes = [0; 4];
    assert_eq!(rustix::io::pread(file, &mut bytes, at), Ok(4));
    u32::from_le_bytes(bytes)
}

/// A region at the same guest and user address.
pub(crate) fn region(address: u64, size: u64, mmap_offset: u64) -> MemRegion {
    MemRegion {
        guest_addr: address,
        size,
        user_addr: address,
        mmap_offset,
    }
}
