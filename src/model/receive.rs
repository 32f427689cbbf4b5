//! Messages of the front-end's: acted upon first, then given to the driver, one after the other.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use virtio_queue::QueueT;

use super::device::{BUDGET, Locked, Rx, State};
use super::feature;
use super::kicks::Bell;
use super::link::LinkEvent;
use super::messages::{self, Duty, Refusal};
use super::queues::QueueError;
use super::window::Placement;
use crate::notify::claim_eventfd;
use crate::pci::CROSVM_ID;
use crate::protocol::{Message, ProtocolFeatures, Request};
use crate::socket::{Gone, Incoming, Received};

/// Where a region's window offset goes in a SET_MEM_TABLE: behind 8 bytes, in each 32 the last 8.
const FIRST_OFFSET: usize = 8 + 24;
const REGION_LEN: usize = 32;
/// The same of a SET_INFLIGHT_FD: behind the size.
const INFLIGHT_OFFSET: usize = 8;

impl Locked<'_> {
    /// Something is to be done at the socket.
    pub(super) fn socket_ready(&mut self, flags: EventFlags) {
        let over = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
        if !self.state.is_connected() {
            if flags.intersects(over) {
                self.on(LinkEvent::Closed);
            }
            return;
        }
        if flags.contains(EventFlags::OUT) {
            self.transmit();
        }
        // What was said before hanging up is heard, if there is room for it.
        let free = matches!(self.state.rx, Rx::Read);
        match free {
            true => self.receive(),
            false if flags.intersects(over) => self.on(LinkEvent::Closed),
            false => {}
        }
    }

    fn receive(&mut self) {
        for _ in 0..BUDGET {
            let state = &mut *self.state;
            let (true, Rx::Read, Some(wire)) = (state.is_connected(), &state.rx, &mut state.wire)
            else {
                break;
            };
            match wire.receive() {
                Ok(Received::Message(incoming)) => self.incoming(incoming),
                Ok(Received::Nothing) => break,
                Err(Gone::Closed) => self.on(LinkEvent::Closed),
                Err(Gone::Violation(what)) => self.violation(LinkEvent::FrontEndViolation, what),
                Err(Gone::Failed(what)) => {
                    self.complain(what);
                    self.on(LinkEvent::Closed);
                }
            }
        }
        self.watch();
    }

    fn incoming(&mut self, incoming: Incoming) {
        let Incoming {
            mut message,
            attached,
        } = incoming;
        let request = message.request;
        let broken = messages::check_flags(&message).err();
        let refusal = match broken {
            None => self.act(&mut message, attached).err(),
            Some(refusal) => {
                let what = format!("the front-end's {request}: {refusal}");
                return self.violation(LinkEvent::FrontEndViolation, what);
            }
        };
        let Some(refusal) = refusal else {
            self.state.rx = Rx::Deliver(message);
            return self.deliver();
        };
        let what = format!("{} ({request}): {refusal}", messages::name(request));
        if self.wants_answer(&message) && !messages::has_answer(request) {
            self.complain(what);
            self.state.rx = Rx::Refuse(request);
            self.transmit();
        } else {
            self.violation(LinkEvent::FrontEndViolation, what);
        }
    }

    /// Whether the front-end waits for the outcome of this message.
    fn wants_answer(&self, message: &Message) -> bool {
        let acked = self.state.protocol_features;
        message.needs_reply() && acked.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Does what is the device's part of a message, before the driver sees it. Descriptors that
    /// nobody takes are closed.
    fn act(&mut self, message: &mut Message, mut fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let rings = self.shared.shape.usable_rings();
        let taken = self.state.taken();
        messages::check(message, &fds, rings, taken)?;
        match messages::duty(message.request, taken) {
            Duty::Pass | Duty::Never => Ok(()),
            Duty::MemTable => self.show(message, fds),
            Duty::Inflight => self.show_inflight(message, fds),
            Duty::Channel => self.keep_channel(message, fds),
            Duty::StopKick => {
                // The index was checked to be below `rings`, which is at most 256.
                let ring = message.payload.first().copied().unwrap_or_default();
                self.shared.kicks.set_kick(ring, None);
                Ok(())
            }
            Duty::Mask => {
                let Request::SetProtocolFeatures(bits) = messages::parse(message)? else {
                    return Ok(());
                };
                let passed = ProtocolFeatures::from_bits_retain(bits) & taken.passed();
                self.state.protocol_features = passed;
                message.payload = passed.bits().to_le_bytes().to_vec();
                Ok(())
            }
            Duty::VringFd => {
                let request = messages::parse(message)?;
                let (Request::SetVringKick(vring)
                | Request::SetVringCall(vring)
                | Request::SetVringErr(vring)) = request
                else {
                    return Ok(());
                };
                messages::check_ring(vring.index.into(), rings)?;
                let expected = usize::from(!vring.nofd);
                if fds.len() != expected {
                    return Err(Refusal::Fds {
                        found: fds.len(),
                        expected,
                    });
                }
                let fd = fds.pop();
                if let Some(fd) = &fd {
                    let claimed = claim_eventfd(fd.as_fd());
                    claimed.map_err(Refusal::NotEvent)?;
                }
                let kicks = &self.shared.kicks;
                match request {
                    Request::SetVringKick(_) => kicks.set_kick(vring.index, fd),
                    Request::SetVringCall(_) => kicks.set_bell(Bell::Call, vring.index, fd),
                    _ => kicks.set_bell(Bell::Err, vring.index, fd),
                }
                Ok(())
            }
        }
    }

    fn show(&mut self, message: &mut Message, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let Request::SetMemTable(regions) = messages::parse(message)? else {
            return Ok(());
        };
        if fds.len() != regions.len() {
            return Err(Refusal::Fds {
                found: fds.len(),
                expected: regions.len(),
            });
        }
        let told = self.state.driver_features & feature::LAYOUT != 0;
        // A driver that is not told goes by the id.
        let placement = match self.shared.shape.id {
            _ if told => Placement::Told,
            CROSVM_ID => Placement::Packed,
            _ => Placement::Whole,
        };
        let starts = self.shared.window.show(&regions, fds, placement)?;
        if told {
            for (index, start) in starts.into_iter().enumerate() {
                let at = FIRST_OFFSET + REGION_LEN * index;
                let field = message.payload.get_mut(at..at + 8);
                if let Some(field) = field {
                    field.copy_from_slice(&start.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn show_inflight(
        &mut self,
        message: &mut Message,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let Request::SetInflightFd(buffer) = messages::parse(message)? else {
            return Ok(());
        };
        let found = fds.len();
        let (Some(file), 1) = (fds.pop(), found) else {
            return Err(Refusal::Fds { found, expected: 1 });
        };
        let start = self
            .shared
            .window
            .show_inflight(buffer.mmap_offset, buffer.mmap_size, file)?;
        if let Some(field) = message
            .payload
            .get_mut(INFLIGHT_OFFSET..INFLIGHT_OFFSET + 8)
        {
            field.copy_from_slice(&start.to_le_bytes());
        }
        Ok(())
    }

    /// Gives what waits to the driver, if there is a buffer for it.
    pub(super) fn deliver(&mut self) {
        if !self.state.is_running() || self.shared.faults.holds_rx() {
            return;
        }
        let bytes = match &self.state.rx {
            _ if self.state.farewell => Vec::new(),
            Rx::Deliver(message) if self.state.is_connected() => message.to_bytes(),
            _ => return self.deliver_answer(),
        };
        match self.put(&bytes) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.broken(0, &error),
        }
        if std::mem::take(&mut self.state.farewell) {
            return self.deliver();
        }
        if let Rx::Deliver(message) = std::mem::replace(&mut self.state.rx, Rx::Read) {
            let answered = messages::has_answer(message.request) || self.wants_answer(&message);
            self.state.owed += u32::from(answered);
            self.state.counters.delivered += 1;
            if self.shared.faults.hangs_up() {
                self.on(LinkEvent::Closed);
            }
        }
        self.watch();
        self.deliver_answer();
    }

    /// Puts bytes into a buffer of the driver's; whether there was one.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<bool, QueueError> {
        let State { queues, dma, .. } = &mut *self.state;
        let [rx, _] = queues;
        let Some(buffer) = self.shared.faults.take_rx(rx, dma)? else {
            return Ok(false);
        };
        if !self.shared.faults.is_stale() {
            buffer.write(dma, bytes)?;
        }
        self.give_back(0, buffer.head, bytes.len() as u32);
        Ok(true)
    }

    /// Returns a buffer and tells the driver if it wants to know.
    pub(super) fn give_back(&mut self, index: usize, head: u16, len: u32) {
        let State { queues, dma, .. } = &mut *self.state;
        let Some(queue) = queues.get_mut(index).filter(|queue| queue.queue.ready()) else {
            return;
        };
        match self.shared.faults.give(index, queue, dma, head, len) {
            Ok(true) => {
                let vector = queue.vector;
                self.state.isr |= 1;
                self.interrupt(vector);
            }
            Ok(false) => {}
            Err(error) => self.broken(index, &error),
        }
    }
}
