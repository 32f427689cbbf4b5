//! One connected socket: bytes to whole messages, whole messages to bytes.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use thiserror::Error;

use super::frames::{FrameError, Frames, wait};
use super::{Gone, Incoming};
use crate::protocol::{HEADER_LEN, Message};

/// File descriptors that may come with a message.
const MAX_FDS: usize = 8;

/// Longest payload taken. The longest in use has a little over 4 KiB.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// How long a front-end may take to read a reply.
const SEND_DEADLINE: Duration = Duration::from_secs(3);

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

/// A connection: whole messages, and the file descriptors that came with them.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    frames: Frames<HEADER_LEN>,
    heard: bool,
}

impl Wire {
    /// Takes a connected, non-blocking socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            frames: Frames::new(MAX_FDS),
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
        let Some(frame) = self.frames.receive(self.socket.as_fd(), payload_len)? else {
            return Ok(Received::Nothing);
        };
        self.heard = true;
        let (request, flags, _) = Message::parse_header(&frame.header);
        Ok(Received::Message(Incoming {
            message: Message {
                request,
                flags,
                payload: frame.payload,
            },
            attached: frame.attached,
        }))
    }

    /// Sends all of `bytes`, and `fd` with them, or gives up when the front-end does not read them
    /// in time.
    pub fn send(&mut self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), SendError> {
        let deadline = Instant::now() + SEND_DEADLINE;
        let (mut rest, mut fd) = (bytes, fd);
        while !rest.is_empty() {
            match self.send_some(rest, fd)? {
                0 => self.wait_until_writable(deadline)?,
                sent => (rest, fd) = (rest.get(sent..).unwrap_or_default(), None),
            }
        }
        Ok(())
    }

    /// Sends as much of `bytes` as the socket takes now, and says how much that was. `fd` goes with
    /// the first of them.
    pub fn send_some(
        &mut self,
        bytes: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<usize, SendError> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = fd.as_slice();
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(SendError::Failed("no room for a descriptor".to_owned()));
            }
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
        match wait(self.socket.as_fd(), PollFlags::OUT, deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(SendError::Failed(format!(
                "the front-end did not read a reply for {} s",
                SEND_DEADLINE.as_secs()
            ))),
            Err(errno) => Err(SendError::Failed(format!(
                "cannot poll the socket: {errno}"
            ))),
        }
    }
}

/// How much follows a header.
fn payload_len(header: &[u8; HEADER_LEN]) -> Result<usize, String> {
    let (request, _, size) = Message::parse_header(header);
    match size as usize {
        size if size <= MAX_PAYLOAD => Ok(size),
        size => Err(format!(
            "message {request} announces {size} bytes of payload, {MAX_PAYLOAD} are the limit"
        )),
    }
}

impl From<FrameError> for Gone {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Closed,
            FrameError::Violation(what) => Self::Violation(what),
            FrameError::System(errno) => Self::Failed(format!("cannot read the socket: {errno}")),
        }
    }
}
