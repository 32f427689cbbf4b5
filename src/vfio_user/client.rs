//! The client: commands with a deadline.
//!
//! A command waits for its reply; a write to registers does not, as on a PCI bus: the server
//! handles messages one after the other, so the next read waits for it. Nothing waits for longer
//! than its deadline, and many waits together for no longer than an account of them allows. What
//! goes wrong ends the connection, for good: from then on nothing is sent or waited for.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use zerocopy::{FromBytes, IntoBytes};

use super::VfioUserError;
use super::message::{self, Access, HEADER_LEN, Header, Version, command};
use super::patience::Patience;
use crate::socket::{Frame, FrameError, Frames, MAX_FDS, call, send, wait};

/// How long the server may keep us waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// For the answer to one command.
    pub(super) request: Duration,
    /// For answers before it has to be quick again: this long at once, and half of the time
    /// after that. A bring-up has hundreds of commands.
    pub(super) requests: Duration,
    /// For room to write registers, moments aside: this long at once, and a tenth of the time after
    /// that. Those who write are workers, too, who ring doorbells; whatever else they serve waits
    /// meanwhile.
    pub(super) writes: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(5),
            requests: Duration::from_secs(20),
            writes: Duration::from_millis(500),
        }
    }
}

/// A server that reads all the time makes room within this time, however fast registers are
/// written; it may be scheduled late.
const MOMENT: Duration = Duration::from_millis(20);

/// Longest message taken. A read of configuration space is the longest that is asked for.
const MAX_MESSAGE: usize = 16 << 10;

/// Bytes to read or write in one message, if the server takes as much.
const MAX_TRANSFER: u32 = 4096;

/// Set in the ids of commands that want no reply: an error reply to one, which some servers
/// send, is none to another.
const POSTED: u16 = 1 << 15;

/// Patience with one server, over all connections to it.
#[derive(Debug, Clone)]
pub(super) struct Deadlines {
    times: Times,
    /// Only on the way when the socket is full.
    writes: Arc<Mutex<Patience>>,
}

impl From<Times> for Deadlines {
    fn from(times: Times) -> Self {
        Self {
            times,
            writes: Arc::new(Mutex::new(Patience::new(times.writes, 10, MOMENT))),
        }
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Client {
    /// For messages to people.
    name: String,
    socket: OwnedFd,
    next_id: AtomicU16,
    replies: Mutex<Replies>,
    deadlines: Deadlines,
    /// Why the connection was given up.
    gone: OnceLock<String>,
    limits: Limits,
}

/// Held by whoever waits for a reply.
#[derive(Debug)]
struct Replies {
    frames: Frames<HEADER_LEN>,
    patience: Patience,
}

/// What the server takes in one message.
#[derive(Debug, Clone, Copy)]
struct Limits {
    fds: usize,
    transfer: usize,
}

impl Client {
    /// Connects to the server at `path` and agrees on a version.
    pub(super) fn connect(
        path: &Path,
        name: &str,
        deadlines: Deadlines,
    ) -> Result<Self, VfioUserError> {
        let mut client = Self {
            name: name.to_owned(),
            socket: call(path).map_err(VfioUserError::Connect)?,
            next_id: AtomicU16::new(0),
            replies: Mutex::new(Replies {
                frames: Frames::new(MAX_FDS),
                patience: Patience::new(deadlines.times.requests, 2, Duration::ZERO),
            }),
            deadlines,
            gone: OnceLock::new(),
            limits: Limits {
                fds: 1,
                transfer: 1,
            },
        };
        client.limits = client.negotiate()?;
        Ok(client)
    }

    fn negotiate(&self) -> Result<Limits, VfioUserError> {
        let version = Version {
            major: message::MAJOR,
            minor: 0,
        };
        let capabilities = message::capabilities(MAX_TRANSFER);
        let body = [version.as_bytes(), capabilities.as_bytes()];
        let reply = self.request(command::VERSION, &body, &[])?;
        let (version, text): (Version, _) =
            message::split(&reply.payload).ok_or_else(|| short(command::VERSION))?;
        if version.major != message::MAJOR {
            return Err(VfioUserError::Unfit {
                found: format!("vfio-user {}.{}", version.major, version.minor),
                expected: "version 0",
            });
        }
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        let json: serde_json::Value = match text {
            [] => serde_json::Value::Null,
            text => serde_json::from_slice(text).map_err(|error| {
                VfioUserError::Violation(format!("its capabilities are not JSON: {error}"))
            })?,
        };
        let number = |name| json.get("capabilities")?.get(name)?.as_u64();
        // What is not said is one descriptor, and far more data than is sent here.
        let fds = number("max_msg_fds").unwrap_or(1).clamp(1, MAX_FDS as u64);
        let transfer = number("max_data_xfer_size")
            .unwrap_or(MAX_TRANSFER.into())
            .clamp(8, MAX_TRANSFER.into());
        Ok(Limits {
            fds: fds as usize,
            transfer: transfer as usize,
        })
    }

    /// File descriptors that the server takes with one message.
    pub(super) fn max_fds(&self) -> usize {
        self.limits.fds
    }

    /// Becomes ready, with a hang-up, when the connection is over.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.get().is_some()
    }

    /// Sends a command and waits for what it is answered with.
    pub(super) fn request(
        &self,
        command: u16,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Frame<HEADER_LEN>, VfioUserError> {
        let mut replies = self.replies();
        let start = Instant::now();
        let time = replies.patience.left().min(self.deadlines.times.request);
        let result = self
            .alive()
            .and_then(|()| self.exchange(&mut replies, command, body, fds, start + time))
            .map_err(|error| match error {
                VfioUserError::Timeout { what, .. } => VfioUserError::Timeout { what, after: time },
                error => error,
            });
        replies.patience.spend(start);
        result.inspect_err(|error| {
            if !matches!(error, VfioUserError::Refused { .. }) {
                self.give_up(error);
            }
        })
    }

    /// The same, answered with a value of fixed size.
    pub(super) fn ask<T: FromBytes>(
        &self,
        command: u16,
        body: &[u8],
    ) -> Result<(T, Frame<HEADER_LEN>), VfioUserError> {
        let reply = self.request(command, &[body], &[])?;
        let value = message::read(&reply.payload).ok_or_else(|| short(command));
        Ok((value.inspect_err(|error| self.give_up(error))?, reply))
    }

    fn exchange(
        &self,
        replies: &mut Replies,
        command: u16,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<Frame<HEADER_LEN>, VfioUserError> {
        let what = message::name(command);
        let late = || VfioUserError::Timeout {
            what,
            after: self.deadlines.times.request,
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) & !POSTED;
        let header = header(id, command, 0, body);
        while !self.send(&header, body, fds)? {
            if !self.wait(PollFlags::OUT, deadline)? {
                return Err(late());
            }
        }
        loop {
            let Some(frame) = replies.frames.receive(self.socket.as_fd(), payload_len)? else {
                if !self.wait(PollFlags::IN, deadline)? {
                    return Err(late());
                }
                continue;
            };
            let reply: Header = zerocopy::transmute!(frame.header);
            if reply.flags & message::KIND != message::REPLY {
                return Err(VfioUserError::Violation(format!(
                    "it sent command {} to a client, which serves none",
                    reply.command
                )));
            }
            if reply.id & POSTED != 0 {
                tracing::debug!(
                    function = self.name,
                    command = message::name(reply.command),
                    error = reply.error,
                    "a write was refused"
                );
            } else if reply.id == id && reply.command == command {
                return accept(&reply, what).map(|()| frame);
            } else {
                return Err(VfioUserError::Violation(format!(
                    "it answered {} ({}) instead of {what} ({id})",
                    message::name(reply.command),
                    reply.id
                )));
            }
            // Each of them may be read at once, and there may be many.
            if Instant::now() >= deadline {
                return Err(late());
            }
        }
    }

    /// Writes registers without waiting for more than room in the socket.
    fn post(&self, access: &Access, data: &[u8]) -> Result<(), VfioUserError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) | POSTED;
        let body = [access.as_bytes(), data];
        let header = header(id, command::REGION_WRITE, message::NO_REPLY, &body);
        if self.send(&header, &body, &[])? {
            return Ok(());
        }
        let mut patience = self
            .deadlines
            .writes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let time = patience.left();
        let result = loop {
            match self.wait(PollFlags::OUT, start + time + MOMENT) {
                Ok(true) => {}
                Ok(false) => break Err(VfioUserError::Stuck(self.deadlines.times.writes)),
                Err(error) => break Err(error),
            }
            match self.send(&header, &body, &[]) {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
        };
        patience.spend(start);
        result
    }

    /// Reads from a region; all ones if that cannot be done.
    pub(super) fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        for (chunk, at) in data
            .chunks_mut(self.limits.transfer)
            .zip((0..).step_by(self.limits.transfer))
        {
            if let Err(error) = self.read_chunk(region, offset.saturating_add(at), chunk) {
                tracing::debug!(function = self.name, region, offset, %error, "cannot read");
                chunk.fill(u8::MAX);
            }
        }
    }

    fn read_chunk(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), VfioUserError> {
        let access = Access {
            offset,
            region,
            count: data.len() as u32,
        };
        let (_, reply): (Access, _) = self.ask(command::REGION_READ, access.as_bytes())?;
        let found = reply.payload.get(size_of::<Access>()..).unwrap_or_default();
        if found.len() != data.len() {
            let error = VfioUserError::Violation(format!(
                "it answered a read of {} bytes with {}",
                data.len(),
                found.len()
            ));
            self.give_up(&error);
            return Err(error);
        }
        data.copy_from_slice(found);
        Ok(())
    }

    /// Writes to a region. Nobody hears whether it could be done; the next read comes after it.
    pub(super) fn write(&self, region: u32, offset: u64, data: &[u8]) {
        let access = Access {
            offset,
            region,
            count: data.len() as u32,
        };
        let posted = self.alive().and_then(|()| self.post(&access, data));
        if let Err(error) = posted {
            self.give_up(&error);
        }
    }

    fn send(
        &self,
        header: &Header,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<bool, VfioUserError> {
        let mut parts = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(&[]),
            IoSlice::new(&[]),
        ];
        for (part, bytes) in parts.iter_mut().skip(1).zip(body) {
            *part = IoSlice::new(bytes);
        }
        Ok(send(self.socket.as_fd(), &parts, fds)?)
    }

    /// Waits until the socket is ready for `flags`; `false` if the deadline passed.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<bool, VfioUserError> {
        wait(self.socket.as_fd(), flags, deadline).map_err(system("cannot wait for the server"))
    }

    fn alive(&self) -> Result<(), VfioUserError> {
        match self.gone.get() {
            None => Ok(()),
            Some(reason) => Err(VfioUserError::Gone(reason.clone())),
        }
    }

    /// Ends the connection, for everybody who has it.
    fn give_up(&self, error: &VfioUserError) {
        if self.gone.set(error.to_string()).is_ok() {
            tracing::warn!(function = self.name, %error, "the function is gone");
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }

    /// The same, because nobody wants it any more.
    pub(super) fn hang_up(&self) {
        if self.gone.set("it was given back".to_owned()).is_ok() {
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }

    fn replies(&self) -> MutexGuard<'_, Replies> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn header(id: u16, command: u16, flags: u32, body: &[&[u8]]) -> Header {
    let len: usize = body.iter().map(|part| part.len()).sum();
    Header {
        id,
        command,
        size: (HEADER_LEN + len) as u32,
        flags,
        error: 0,
    }
}

/// How much follows a header.
fn payload_len(header: &[u8; HEADER_LEN]) -> Result<usize, String> {
    message::payload_len(header, MAX_MESSAGE)
}

fn accept(reply: &Header, what: &'static str) -> Result<(), VfioUserError> {
    if reply.flags & message::ERROR == 0 {
        return Ok(());
    }
    // Some servers send no reason.
    let number = i32::try_from(reply.error)
        .ok()
        .filter(|error| (1..4096).contains(error));
    Err(VfioUserError::Refused {
        what,
        reason: number.map_or(Errno::IO, Errno::from_raw_os_error),
    })
}

fn short(command: u16) -> VfioUserError {
    VfioUserError::Violation(format!(
        "its answer to {} is too short",
        message::name(command)
    ))
}

pub(super) fn system(what: &'static str) -> impl Fn(Errno) -> VfioUserError {
    move |reason| VfioUserError::System { what, reason }
}

impl From<FrameError> for VfioUserError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Closed,
            FrameError::Violation(what) => Self::Violation(what),
            FrameError::System(source) => system("the server's socket failed")(source),
        }
    }
}
