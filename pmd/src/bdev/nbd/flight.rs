//! What a server was asked and has not answered yet, and what its answers do.

use std::collections::VecDeque;
use std::time::Instant;

use super::negotiation::Export;
use super::replies::{Asker, Command};
use crate::bdev::slots::Slots;
use crate::bdev::{Done, IoError, Op, Request, bytes};

/// A request in flight.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) request: Request,
    /// When its time is up.
    pub(super) until: Instant,
    /// Which one it is: those that wait longer are asked first again.
    pub(super) number: u64,
    /// How much of the request is done, in bytes.
    pub(super) at: u64,
    /// The command of it that the server was asked, if it was.
    pub(super) command: Option<Command>,
    /// All is done, and a flush follows because the server knows no FUA.
    pub(super) flushing: bool,
    /// Distinguishes this command's answer from that to another one in the same slot.
    pub(super) serial: u32,
}

impl Slot {
    /// The next command for it.
    pub(super) fn next(&self, export: &Export, block: u32) -> (Op, Command) {
        let Request {
            op, offset, len, ..
        } = self.request;
        if self.flushing || op == Op::Flush {
            return (Op::Flush, Command::new(false, 0, 0));
        }
        let most = match op {
            Op::Read | Op::Write => export.max_payload,
            _ => !(block - 1),
        };
        let left = u32::try_from(len - self.at).unwrap_or(u32::MAX).min(most);
        (op, Command::new(op == Op::Read, offset + self.at, left))
    }
}

/// What is in flight, and what was answered.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) slots: Slots<Slot>,
    /// What the server is still to be asked, in this order.
    pub(super) waiting: VecDeque<u64>,
    /// How many commands it is asked.
    pub(super) asked: usize,
    pub(super) done: Vec<Done>,
    /// A write of which not everything is in the output yet: slot and bytes of its command.
    pub(super) writing: Option<(u64, u32)>,
    /// Whether a FUA write takes a flush.
    pub(super) flush_for_fua: bool,
}

impl Flight {
    pub(super) fn finish(&mut self, token: u64, result: Result<(), IoError>) {
        if let Some(slot) = self.slots.take(token) {
            self.done.push(slot.request.done(result));
        }
    }
}

/// The slot's number and the serial of a handle.
fn split(handle: u64) -> (u64, u32) {
    (handle & 0xffff_ffff, (handle >> 32) as u32)
}

impl Asker for Flight {
    fn command(&mut self, handle: u64) -> Option<&mut Command> {
        let (token, serial) = split(handle);
        // Nobody can answer what was not asked to the end.
        let half = self.writing.is_some_and(|(writing, _)| writing == token);
        let slot = self.slots.get_mut(token)?;
        match slot.serial == serial && !half {
            true => slot.command.as_mut(),
            false => None,
        }
    }

    fn data(&mut self, handle: u64, at: u32, data: &[u8]) {
        let slot = self.slots.get_mut(split(handle).0);
        if let Some((slot, into)) =
            slot.and_then(|slot| Some((slot.at, slot.request.data.as_ref()?)))
        {
            bytes::write_at(into, slot + u64::from(at), data);
        }
    }

    fn zeroes(&mut self, handle: u64, at: u32, len: u32) {
        let slot = self.slots.get_mut(split(handle).0);
        if let Some((slot, into)) =
            slot.and_then(|slot| Some((slot.at, slot.request.data.as_ref()?)))
        {
            bytes::zero_at(into, slot + u64::from(at), len as usize);
        }
    }

    fn end(&mut self, handle: u64, error: u32) {
        let (token, _) = split(handle);
        let Some(slot) = self.slots.get_mut(token) else {
            return;
        };
        let Some(command) = slot.command.take() else {
            return;
        };
        self.asked = self.asked.saturating_sub(1);
        if error != 0 {
            return self.finish(token, Err(meaning(error)));
        }
        slot.at += u64::from(command.len);
        if slot.at < slot.request.len {
            return self.waiting.push_back(token);
        }
        let written = matches!(slot.request.op, Op::Write | Op::WriteZeroes { .. });
        if written && slot.request.fua && self.flush_for_fua && !slot.flushing {
            slot.flushing = true;
            return self.waiting.push_back(token);
        }
        self.finish(token, Ok(()));
    }
}

/// An error of the protocol's. Its numbers are those of Linux, and others mean EINVAL.
fn meaning(error: u32) -> IoError {
    match i32::try_from(error) {
        Ok(
            errno @ (libc::EPERM
            | libc::EIO
            | libc::ENOMEM
            | libc::EINVAL
            | libc::ENOSPC
            | libc::EOVERFLOW
            | libc::EOPNOTSUPP),
        ) => IoError::from_errno(errno),
        _ => IoError::Io(libc::EINVAL),
    }
}
