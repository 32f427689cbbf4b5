//! One connected socket: bytes to whole messages, whole messages to bytes.
//!
//! Reading never blocks and never takes a byte of the next message, so that file descriptors
//! stay with the message whose header they came with.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, recvmsg, sendmsg,
};

use thiserror::Error;

use super::{Gone, Incoming};
use crate::protocol::{HEADER_LEN, Message};

/// File descriptors that may come with a message.
const MAX_FDS: usize = 8;

/// Longest payload taken. The longest in use has a little over 4 KiB.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// How long a front-end may take to read a reply.
const SEND_DEADLINE: Duration = Duration::from_secs(3);

/// How far the message that is being read has come.
#[derive(Debug)]
enum Progress {
    Header {
        bytes: [u8; HEADER_LEN],
        have: usize,
    },
    Payload {
        request: u32,
        flags: u32,
        bytes: Vec<u8>,
        have: usize,
    },
}

impl Progress {
    const START: Self = Self::Header {
        bytes: [0; HEADER_LEN],
        have: 0,
    };
}

/// Why bytes could not be sent.
#[derive(Debug, Error)]
pub enum SendError {
    /// The front-end is not there any more.
    #[error("the front-end closed the connection")]
    Closed,
    /// Another reason.
    #[error("{0}")]
    Failed(String),
}

/// What a look at the socket brought.
#[derive(Debug)]
pub enum Received {
    /// A message is complete.
    Message(Incoming),
    /// There is no more to read for now.
    Nothing,
}

/// A connection. See the [module](self).
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    progress: Progress,
    attached: Vec<OwnedFd>,
    heard: bool,
}

impl Wire {
    /// Takes a connected, non-blocking socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            progress: Progress::START,
            attached: Vec::new(),
            heard: false,
        }
    }

    /// The socket, to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether a whole message ever arrived.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// Reads until a message is complete or there is nothing to read.
    pub fn receive(&mut self) -> Result<Received, Gone> {
        loop {
            if let Some(message) = self.complete()? {
                let attached = std::mem::take(&mut self.attached);
                self.heard = true;
                return Ok(Received::Message(Incoming { message, attached }));
            }
            if !self.read()? {
                return Ok(Received::Nothing);
            }
        }
    }

    /// The message, if all of it is there; turns a complete header into the wait for its payload.
    fn complete(&mut self) -> Result<Option<Message>, Gone> {
        if let Progress::Header { bytes, have } = &self.progress
            && *have == HEADER_LEN
        {
            let (request, flags, size) = Message::parse_header(bytes);
            let size = size as usize;
            if size > MAX_PAYLOAD {
                return Err(Gone::Violation(format!(
                    "message {request} announces {size} bytes of payload, {MAX_PAYLOAD} are the \
                     limit"
                )));
            }
            self.progress = Progress::Payload {
                request,
                flags,
                bytes: vec![0; size],
                have: 0,
            };
        }
        match &mut self.progress {
            Progress::Payload {
                request,
                flags,
                bytes,
                have,
            } if *have == bytes.len() => {
                let message = Message {
                    request: *request,
                    flags: *flags,
                    payload: std::mem::take(bytes),
                };
                self.progress = Progress::START;
                Ok(Some(message))
            }
            _ => Ok(None),
        }
    }

    /// Reads some bytes of the current part; `false` if there are none now.
    fn read(&mut self) -> Result<bool, Gone> {
        let begins = matches!(self.progress, Progress::Header { have: 0, .. });
        let (buffer, have) = match &mut self.progress {
            Progress::Header { bytes, have } => (bytes.as_mut_slice(), have),
            Progress::Payload { bytes, have, .. } => (bytes.as_mut_slice(), have),
        };
        let rest = buffer.get_mut(*have..).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let result = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(rest)],
            &mut control,
            flags,
        );
        let received = match result {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::CONNRESET) => return Err(Gone::Closed),
            Err(errno) => return Err(Gone::Failed(format!("cannot read the socket: {errno}"))),
        };
        *have += received.bytes;
        let before = self.attached.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.attached.extend(fds);
            }
        }
        if !begins && self.attached.len() > before {
            return Err(Gone::Violation(
                "file descriptors came within a message instead of at its beginning".to_owned(),
            ));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.attached.len() > MAX_FDS {
            return Err(Gone::Violation(format!(
                "a message came with more than {MAX_FDS} file descriptors"
            )));
        }
        if received.bytes == 0 {
            return Err(Gone::Closed);
        }
        Ok(true)
    }

    /// Sends all of `bytes`, or gives up when the front-end does not read them in time.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let deadline = Instant::now() + SEND_DEADLINE;
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.send_some(rest)? {
                0 => self.wait_until_writable(deadline)?,
                sent => rest = rest.get(sent..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Sends as much of `bytes` as the socket takes now, and says how much that was.
    pub fn send_some(&mut self, bytes: &[u8]) -> Result<usize, SendError> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let mut control = SendAncillaryBuffer::default();
            return match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(sent) => Ok(sent),
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::CONNRESET) => Err(SendError::Closed),
                Err(errno) => {
                    let what = format!("cannot write the socket: {errno}");
                    Err(SendError::Failed(what))
                }
            };
        }
    }

    fn wait_until_writable(&self, deadline: Instant) -> Result<(), SendError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SendError::Failed(format!(
                "the front-end did not read a reply for {} s",
                SEND_DEADLINE.as_secs()
            )));
        }
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::from_borrowed_fd(
            self.socket.as_fd(),
            PollFlags::OUT,
        )];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(SendError::Failed(format!(
                "cannot poll the socket: {errno}"
            ))),
        }
    }
}
