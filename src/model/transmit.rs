//! Messages of the driver's: to the front-end if there is one, else to nobody.

use std::os::fd::{AsFd, OwnedFd};

use virtio_queue::QueueT;

use super::device::{BUDGET, Locked, Outgoing, Rx, State};
use super::link::LinkEvent;
use super::messages::{self, Bounds, Parcel};
use crate::protocol::Reply;
use crate::socket::SendError;

impl Locked<'_> {
    /// The driver says that there is something in a queue.
    pub(super) fn notified(&mut self, queue: u64) {
        match queue {
            0 => self.deliver(),
            1 => self.transmit(),
            _ => {}
        }
    }

    /// Takes what is in txq: to the front-end if there is one, else to nobody. Then refuses what
    /// waited for those answers.
    pub(super) fn transmit(&mut self) {
        for _ in 0..BUDGET {
            if !self.flush() {
                return self.watch();
            }
            if let (Rx::Refuse(request), 0) = (&self.state.rx, self.state.owed) {
                let bytes = Reply::U64(1).to_message(*request).to_bytes();
                self.state.rx = Rx::Read;
                self.state.counters.refused += 1;
                self.send(bytes, None, None);
                continue;
            }
            if !self.take_one() {
                return self.watch();
            }
        }
        // A driver that never ends must not keep others from the lock.
        self.shared.wake();
        self.watch();
    }

    /// Discards what is in txq, nobody being there. What a driver adds meanwhile it can only
    /// blame itself for.
    pub(super) fn drain(&mut self) {
        let [_, tx] = &self.state.queues;
        for _ in 0..2 * u32::from(tx.queue.size()) {
            if !self.take_one() {
                return;
            }
        }
    }

    fn send(&mut self, bytes: Vec<u8>, head: Option<u16>, file: Option<OwnedFd>) {
        self.state.tx = Some(Outgoing {
            bytes,
            sent: 0,
            head,
            file,
        });
    }

    /// Writes what is left of a message, as far as the socket takes it; whether all of it went.
    fn flush(&mut self) -> bool {
        let state = &mut *self.state;
        while let (Some(tx), Some(wire)) = (&mut state.tx, &mut state.wire) {
            let rest = tx.bytes.get(tx.sent..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let file = tx.file.as_ref().map(AsFd::as_fd);
            match wire.send_some(rest, file) {
                Ok(0) => return false,
                Ok(sent) => {
                    tx.sent += sent;
                    tx.file = None;
                }
                Err(error) => {
                    if let SendError::Failed(what) = error {
                        self.complain(what);
                    }
                    self.on(LinkEvent::SendFailed);
                    return false;
                }
            }
        }
        if let Some(tx) = state.tx.take() {
            state.owed = state.owed.saturating_sub(1);
            state.counters.sent += 1;
            self.done(tx.head);
        }
        true
    }

    /// A buffer of txq is not needed any more.
    fn done(&mut self, head: Option<u16>) {
        if let Some(head) = head {
            self.give_back(1, head, 0);
        }
    }

    /// Takes a message out of txq; `false` if there is none, or nothing more to be done.
    fn take_one(&mut self) -> bool {
        if !self.state.is_running() || self.shared.faults.holds_tx() {
            return false;
        }
        let connected = self.state.is_connected();
        let bounds = Bounds {
            rings: self.shared.shape.rings,
            taken: self.state.taken(),
            window: self.shared.window.len(),
        };
        let State { queues, dma, .. } = &mut *self.state;
        let [_, tx] = queues;
        let buffer = match tx.take(dma, false) {
            Ok(Some(buffer)) => buffer,
            Ok(None) => return false,
            Err(error) => {
                self.broken(1, &error);
                return false;
            }
        };
        let mut head = Some(buffer.head);
        if self.shared.faults.is_early() {
            self.done(head.take());
        }
        if !connected {
            self.state.counters.discarded += 1;
            self.done(head);
            return true;
        }
        let parcel = match buffer.len {
            len if len > messages::MAX_OUTGOING => Err(format!("the driver sent {len} bytes")),
            _ => match buffer.read(&self.state.dma) {
                Ok(bytes) => messages::outgoing(bytes, bounds),
                Err(error) => {
                    self.broken(1, &error);
                    return false;
                }
            },
        };
        match parcel {
            Ok(Parcel::Reply(bytes, file)) => self.send(bytes, head, file),
            Ok(Parcel::Request { bytes, asks }) => {
                self.done(head);
                self.request(&bytes, asks);
            }
            Ok(Parcel::Nothing) => {
                self.state.counters.discarded += 1;
                self.done(head);
            }
            Err(what) => {
                self.done(head);
                self.violation(LinkEvent::DriverViolation, what);
            }
        }
        true
    }
}
