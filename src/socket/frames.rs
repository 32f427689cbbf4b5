//! Whole frames on a connected socket: a header that says how much follows it, and the file
//! descriptors that came with its first byte.
//!
//! Reading never blocks and never takes a byte of the next frame, so that file descriptors stay
//! with the frame that they came with.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

/// File descriptors that may come with a frame at most.
pub const MAX_FDS: usize = 16;

/// Why there are no more frames to be had.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// What arrived is not what was agreed on.
    #[error("{0}")]
    Violation(String),
    /// The operating system failed.
    #[error("the socket failed: {0}")]
    System(#[from] Errno),
}

/// A frame with a header of `N` bytes.
#[derive(Debug)]
pub struct Frame<const N: usize> {
    /// The header.
    pub header: [u8; N],
    /// What followed it.
    pub payload: Vec<u8>,
    /// What came with it.
    pub attached: Vec<OwnedFd>,
}

/// The frame that is being read.
#[derive(Debug)]
pub struct Frames<const N: usize> {
    header: [u8; N],
    /// Once the header is complete.
    payload: Option<Vec<u8>>,
    /// Bytes that are there: of the header, then of the payload.
    have: usize,
    attached: Vec<OwnedFd>,
    max_fds: usize,
}

impl<const N: usize> Frames<N> {
    /// Frames that may come with so many file descriptors, up to [`MAX_FDS`].
    pub fn new(max_fds: usize) -> Self {
        Self {
            header: [0; N],
            payload: None,
            have: 0,
            attached: Vec::new(),
            max_fds: max_fds.min(MAX_FDS),
        }
    }

    /// Reads until a frame is complete or there is nothing to read. `payload_len` judges a header
    /// and says how much follows it.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        payload_len: impl Fn(&[u8; N]) -> Result<usize, String>,
    ) -> Result<Option<Frame<N>>, FrameError> {
        loop {
            if self.payload.is_none() && self.have == N {
                let len = payload_len(&self.header).map_err(FrameError::Violation)?;
                self.payload = Some(vec![0; len]);
                self.have = 0;
            }
            if let Some(payload) = self.payload.take_if(|payload| payload.len() == self.have) {
                self.have = 0;
                return Ok(Some(Frame {
                    header: self.header,
                    payload,
                    attached: std::mem::take(&mut self.attached),
                }));
            }
            if !self.read(socket)? {
                return Ok(None);
            }
        }
    }

    /// Reads some bytes of the current part; `false` if there are none now.
    fn read(&mut self, socket: BorrowedFd<'_>) -> Result<bool, FrameError> {
        let begins = self.payload.is_none() && self.have == 0;
        let buffer = match &mut self.payload {
            None => self.header.as_mut_slice(),
            Some(payload) => payload.as_mut_slice(),
        };
        let rest = buffer.get_mut(self.have..).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let result = recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut control, flags);
        let received = match result {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::CONNRESET) => return Err(FrameError::Closed),
            Err(errno) => return Err(errno.into()),
        };
        self.have += received.bytes;
        let before = self.attached.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.attached.extend(fds);
            }
        }
        if !begins && self.attached.len() > before {
            return Err(FrameError::Violation(
                "file descriptors came within a message instead of at its beginning".to_owned(),
            ));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.attached.len() > self.max_fds {
            return Err(FrameError::Violation(format!(
                "a message came with more than {} file descriptors",
                self.max_fds
            )));
        }
        if received.bytes == 0 {
            return Err(FrameError::Closed);
        }
        Ok(true)
    }
}

/// Sends `parts`, one after the other, as one frame. `false` if the socket takes nothing now.
///
/// A frame is sent whole or not at all, so that several threads can send at the same time: the
/// kernel makes one buffer of what is shorter than half the socket's, and frames here are far
/// shorter. Where it does otherwise, that is an error.
pub fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<bool, FrameError> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(FrameError::Violation(format!(
                "{} file descriptors do not fit one message",
                fds.len()
            )));
        }
        return match sendmsg(socket, parts, &mut control, flags) {
            Ok(sent) if sent == len => Ok(true),
            Ok(sent) => Err(FrameError::Violation(format!(
                "only {sent} of {len} bytes of a message could be sent"
            ))),
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(Errno::PIPE | Errno::CONNRESET) => Err(FrameError::Closed),
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Waits until a socket is ready for `flags`; `false` if the deadline has passed.
pub fn wait(socket: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(false);
    }
    let timeout = Timespec::try_from(left).unwrap_or_default();
    let mut fds = [PollFd::from_borrowed_fd(socket, flags)];
    match poll(&mut fds, Some(&timeout)) {
        // Not ready at the deadline means one more look.
        Ok(_) | Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno),
    }
}
