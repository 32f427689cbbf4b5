//! A connection on which anything can be said.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vvu::protocol::{Features, HEADER_LEN, Message, Request};

use crate::guest::error::{GuestError, io};

/// How long a back-end may take to answer, or to hang up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Descriptors that the kernel lets pass at once.
pub(super) const MOST_FDS: usize = 253;
/// Longest answer that is read.
const MOST_BYTES: usize = 1 << 16;

/// See the [module](self).
pub(super) struct Raw(UnixStream);

impl Raw {
    pub(super) fn new(socket: OwnedFd) -> Result<Self, GuestError> {
        Self::over(UnixStream::from(socket))
    }

    pub(super) fn over(stream: UnixStream) -> Result<Self, GuestError> {
        let failed = io("use the socket");
        stream.set_nonblocking(false).map_err(&failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(&failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(&failed)?;
        Ok(Self(stream))
    }

    /// Sends bytes with descriptors. Whether all of it could be said: who hangs up in the middle
    /// of a deed has reacted.
    pub(super) fn bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return false;
        }
        let flags = SendFlags::NOSIGNAL;
        let Ok(sent) = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags) else {
            return false;
        };
        self.0
            .write_all(bytes.get(sent..).unwrap_or_default())
            .is_ok()
    }

    /// Sends a message as it is.
    pub(super) fn message(&mut self, message: &Message, fds: &[BorrowedFd<'_>]) -> bool {
        self.bytes(&message.to_bytes(), fds)
    }

    /// Sends a request that wants no outcome.
    pub(super) fn say(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> bool {
        self.message(&request.to_message(false), fds)
    }

    /// Reads an answer; `None` if the back-end hung up, or says nothing.
    pub(super) fn answer(&mut self) -> Option<Message> {
        let mut header = [0; HEADER_LEN];
        self.0.read_exact(&mut header).ok()?;
        let (request, flags, len) = Message::parse_header(&header);
        let mut payload = vec![0; MOST_BYTES.min(len as usize)];
        self.0.read_exact(&mut payload).ok()?;
        Some(Message {
            request,
            flags,
            payload,
        })
    }

    /// Asks for a number.
    pub(super) fn ask(&mut self, request: &Request) -> Option<u64> {
        self.say(request, &[]);
        let payload = self.answer()?.payload;
        Some(u64::from_le_bytes(payload.try_into().ok()?))
    }

    /// Waits until the back-end has dealt with all that was said: it answers a harmless question,
    /// or hangs up. Whether it still talks to us.
    pub(super) fn settle(&mut self) -> bool {
        self.say(&Request::GetFeatures, &[]);
        // What was said before may have been answered, too.
        for _ in 0..64 {
            match self.answer() {
                None => return false,
                Some(answer) if answer.request == 1 => return true,
                Some(_) => {}
            }
        }
        false
    }

    /// Negotiates everything that is offered.
    pub(super) fn negotiate(&mut self) {
        let features = self.ask(&Request::GetFeatures).unwrap_or(0);
        if features & Features::PROTOCOL_FEATURES.bits() != 0 {
            let offered = self.ask(&Request::GetProtocolFeatures).unwrap_or(0);
            self.say(&Request::SetProtocolFeatures(offered), &[]);
        }
        self.say(&Request::SetOwner, &[]);
        self.say(&Request::SetFeatures(features), &[]);
    }
}
