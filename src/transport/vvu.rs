//! Messages over a virtio-vhost-user PCI function.
//!
//! What comes as file descriptors over AF_UNIX is already there: memory is a window in a BAR, a
//! kick is an MSI-X vector, a call is a doorbell. A message only says that it is usable now.
//! How the function works is known to [`crate::device`] alone.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Event, Gone, Incoming, RegionRequest, Transport, TransportError};
use crate::device::{Device, DeviceError, Extent, LinkEvent, Loss, PlaceError};
use crate::memory::{Area, Region};
use crate::notify::{Call, Kick};
use crate::protocol::{HEADER_LEN, Message};

/// Protocol features that need no file descriptor and nothing of the device but to pass messages
/// on: MQ, RARP, REPLY_ACK, NET_MTU, CONFIG, RESET_DEVICE, STATUS.
const FEATURES: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 13 | 1 << 16;

/// INFLIGHT_SHMFD, which the device must have a window for.
const INFLIGHT: u64 = 1 << 12;

/// BACKEND_REQ, which the device must have a channel for.
const BACKEND_REQ: u64 = 1 << 5;

/// Answers to requests of ours that are thrown away before somebody else has his turn.
const ANSWERS: usize = 16;

/// A VVU function as a transport.
#[derive(Debug)]
pub struct VvuTransport {
    name: String,
    device: Device,
    /// The connection is still there for the device, but must end.
    doomed: Option<Gone>,
    /// The front-end hears requests of ours.
    channel: bool,
}

impl VvuTransport {
    /// A transport over a device that is up.
    pub fn new(device: Device) -> Self {
        Self {
            name: format!("vvu:{}", device.name()),
            device,
            doomed: None,
            channel: false,
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn check_ring(&self, index: u16) -> Result<(), TransportError> {
        let limit = self.max_rings();
        if index < limit {
            Ok(())
        } else {
            Err(TransportError::NoSuchRing { index, limit })
        }
    }

    /// What happened, answers included.
    fn look(&mut self) -> Option<Event> {
        if let Some(gone) = self.doomed.take() {
            self.device.disconnect();
            return Some(Event::Disconnected(gone));
        }
        Some(match self.device.next_event()? {
            LinkEvent::Connected => Event::Connected,
            LinkEvent::Disconnected(Loss::Closed) => Event::Disconnected(Gone::Closed),
            LinkEvent::Disconnected(Loss::Failed(error)) => {
                Event::Disconnected(Gone::Failed(error.to_string()))
            }
            LinkEvent::Message(bytes) => match parse(bytes) {
                Ok(message) => Event::Message(Incoming {
                    message,
                    attached: Vec::new(),
                }),
                Err(gone) => {
                    self.device.disconnect();
                    Event::Disconnected(gone)
                }
            },
        })
    }

    /// The connection must end, because nothing can be sent.
    fn doom(&mut self, error: &DeviceError) {
        self.doomed = Some(Gone::Failed(error.to_string()));
        self.device.wake();
    }
}

impl Transport for VvuTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.device.poll_fd()
    }

    fn next(&mut self) -> Option<Event> {
        for _ in 0..ANSWERS {
            let event = self.look()?;
            match &event {
                // Requests of ours ask for none, and none of the session's has another meaning.
                Event::Message(Incoming { message, .. }) if self.channel && message.is_reply() => {
                    let request = message.request;
                    tracing::debug!(request, "an answer that was not asked for is ignored");
                }
                Event::Message(_) => return Some(event),
                Event::Connected | Event::Disconnected(_) => {
                    self.channel = false;
                    return Some(event);
                }
            }
        }
        // There may be more, as the descriptor says.
        None
    }

    fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        if self.doomed.is_some() {
            return Err(TransportError::NotConnected);
        }
        match self.device.send(&[&message.to_bytes()]) {
            Ok(()) => Ok(()),
            Err(DeviceError::NotConnected) => Err(TransportError::NotConnected),
            Err(error) => {
                self.doom(&error);
                Err(TransportError::Send(error.to_string()))
            }
        }
    }

    fn protocol_features(&self) -> u64 {
        let mut features = FEATURES;
        if self.device.has_inflight() {
            features |= INFLIGHT;
        }
        if self.device.has_backend_channel() {
            features |= BACKEND_REQ;
        }
        features
    }

    fn max_rings(&self) -> u16 {
        self.device.identity().rings
    }

    fn map_memory(
        &mut self,
        regions: &[RegionRequest],
        attached: Vec<OwnedFd>,
        _whole: bool,
    ) -> Result<Vec<Region>, TransportError> {
        expect_none(&attached, "a memory region")?;
        let extents: Vec<_> = regions
            .iter()
            .map(|region| Extent {
                size: region.size,
                mmap_offset: region.mmap_offset,
            })
            .collect();
        let areas = self.device.map(&extents).map_err(map_error)?;
        let regions = regions.iter().zip(areas).map(|(region, bytes)| Region {
            guest_addr: region.guest_addr,
            user_addr: region.user_addr,
            bytes,
        });
        Ok(regions.collect())
    }

    fn map_inflight(
        &mut self,
        mmap_offset: u64,
        size: u64,
        attached: Vec<OwnedFd>,
    ) -> Result<Area, TransportError> {
        expect_none(&attached, "an in-flight buffer")?;
        self.device
            .map_inflight(mmap_offset, size)
            .map_err(map_error)
    }

    /// The device adds the buffer.
    fn send_inflight(&mut self, message: &Message, _size: u64) -> Result<(), TransportError> {
        self.send(message)
    }

    fn kick(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Kick, TransportError> {
        expect_none(&attached, "a kick")?;
        self.check_ring(index)?;
        if nofd {
            return Ok(Kick::Polled);
        }
        let fd = self
            .device
            .kick(index)
            .map_err(|error| TransportError::Send(error.to_string()))?;
        Ok(fd.map_or(Kick::Polled, Kick::Event))
    }

    fn call(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError> {
        expect_none(&attached, "a call")?;
        self.check_ring(index)?;
        if nofd {
            return Ok(Call::Silent);
        }
        let limit = self.max_rings();
        let (register, number) = self
            .device
            .doorbell(index)
            .ok_or(TransportError::NoSuchRing { index, limit })?;
        Ok(Call::Doorbell(register, number))
    }

    fn err(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError> {
        expect_none(&attached, "an error signal")?;
        self.check_ring(index)?;
        // Devices without error doorbells are common, and nobody depends on the signal.
        Ok(match self.device.error_doorbell(index) {
            Some((register, number)) if !nofd => Call::Doorbell(register, number),
            _ => Call::Silent,
        })
    }

    /// The device has kept it.
    fn backend_channel(&mut self, attached: Vec<OwnedFd>) -> Result<(), TransportError> {
        expect_none(&attached, "a channel for requests of ours")?;
        if !self.device.has_backend_channel() {
            let what = "the device carries no requests of ours";
            return Err(TransportError::Send(what.to_owned()));
        }
        self.channel = true;
        Ok(())
    }

    /// Whether anybody listens at the other end is between the device and the front-end.
    fn send_request(&mut self, message: &Message) -> bool {
        if !self.channel || self.doomed.is_some() {
            return false;
        }
        // A front-end that lets the queue fill up has had its chance.
        let sent = self.device.try_send(&[&message.to_bytes()]);
        if let Err(error) = &sent
            && !matches!(error, DeviceError::NotConnected)
        {
            self.doom(error);
        }
        self.channel = sent.unwrap_or(false);
        self.channel
    }

    fn disconnect(&mut self) {
        self.doomed = None;
        self.channel = false;
        self.device.disconnect();
    }

    fn shutdown(&mut self) {
        self.doomed = None;
        self.channel = false;
        self.device.shutdown();
    }
}

/// One buffer is one message (draft, "device operation"); bytes beyond it mean nothing.
fn parse(bytes: Vec<u8>) -> Result<Message, Gone> {
    let found = bytes.len();
    let short = || Gone::Violation(format!("a message of {found} bytes is incomplete"));
    let word = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let (Some(request), Some(flags), Some(size)) = (word(0), word(4), word(8)) else {
        return Err(short());
    };
    if flags & 3 != 1 {
        return Err(Gone::Violation(format!(
            "message {request} has version {} instead of 1",
            flags & 3
        )));
    }
    let payload = usize::try_from(size)
        .ok()
        .and_then(|size| bytes.get(HEADER_LEN..)?.get(..size))
        .ok_or_else(short)?;
    Ok(Message {
        request,
        flags,
        payload: payload.to_vec(),
    })
}

fn expect_none(attached: &[OwnedFd], what: &'static str) -> Result<(), TransportError> {
    match attached.len() {
        0 => Ok(()),
        found => Err(TransportError::Attached {
            what,
            found,
            expected: 0,
        }),
    }
}

fn map_error(error: DeviceError) -> TransportError {
    match error {
        DeviceError::Place(PlaceError::Window { start, end, window }) => TransportError::Window {
            start,
            size: end.saturating_sub(start),
            window,
        },
        error => TransportError::Send(error.to_string()),
    }
}

#[cfg(test)]
#[path = "vvu_tests.rs"]
mod tests;
