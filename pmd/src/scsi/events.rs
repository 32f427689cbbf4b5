//! The event queue (VIRTIO 1.2, 5.6.6.3): units that come, go and change.

use super::config::feature;
use super::domain::Address;
use super::served::Served;
use super::wire::{self, EVENT};

/// Index of the queue.
pub(super) const INDEX: u16 = 1;

/// Numbers of events and reasons.
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
const MISSED: u32 = 1 << 31;
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;

/// What a driver hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Only that others were missed.
    None,
    /// A unit is there.
    Added(Address),
    /// A unit is not there any more.
    Removed(Address),
    /// A unit is different, as this additional sense code and qualifier say.
    Changed { address: Address, code: u16 },
}

impl Event {
    /// What a driver must have accepted to hear of it.
    fn needs(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Added(_) | Self::Removed(_) => feature::HOTPLUG,
            Self::Changed { .. } => feature::CHANGE,
        }
    }

    /// As the driver reads it.
    fn bytes(self, missed: bool) -> [u8; EVENT] {
        let (event, lun, reason) = match self {
            Self::None => (0, [0; 8], 0),
            Self::Added(address) => (TRANSPORT_RESET, address.bytes(), RESCAN),
            Self::Removed(address) => (TRANSPORT_RESET, address.bytes(), REMOVED),
            // The code below, its qualifier above.
            Self::Changed { address, code } => {
                (PARAM_CHANGE, address.bytes(), code.swap_bytes().into())
            }
        };
        let event: u32 = event | if missed { MISSED } else { 0 };
        let mut bytes = [0; EVENT];
        let (first, rest) = bytes.split_at_mut(4);
        first.copy_from_slice(&event.to_le_bytes());
        let (second, third) = rest.split_at_mut(8);
        second.copy_from_slice(&lun);
        third.copy_from_slice(&u32::to_le_bytes(reason));
        bytes
    }
}

/// The event queue's own part.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// The next one, for which there was no buffer yet.
    next: Option<(Event, bool)>,
    /// All that there was has been told.
    idle: bool,
}

impl EventQueue {
    /// Whether buffers are wanted: the others stay where they are.
    pub(super) fn wants_buffers(&self, served: &Served) -> bool {
        self.next.is_some() && served.takes()
    }

    /// There is something to be told.
    pub(super) fn look(&mut self) {
        self.idle = false;
    }

    /// One round. Returns how many events were told.
    pub(super) fn poll(&mut self, served: &mut Served) -> usize {
        let mut count = 0;
        // As many as there can be; one that is made meanwhile comes with a letter.
        while served.takes() && (!self.idle || self.next.is_some()) {
            let Some((event, missed)) = self.take(served) else {
                self.idle = true;
                break;
            };
            served.ring.take_burst(1);
            let Some(chain) = served.ring.chains().first().copied() else {
                self.next = Some((event, missed));
                break;
            };
            let bytes = event.bytes(missed);
            // A buffer that is too short gets what fits.
            wire::write(served.ring.taken().writable(&chain), 0, &bytes);
            let len = chain.write_len().min(EVENT as u32);
            served.ring.give_back(len);
            served.ring.finish();
            count += 1;
        }
        count
    }

    /// The next event that the driver wants to hear of.
    fn take(&mut self, served: &Served) -> Option<(Event, bool)> {
        let mut lost = false;
        loop {
            let (event, missed) = self
                .next
                .take()
                .or_else(|| served.face.board().next_event())?;
            lost |= missed;
            if event.needs() & !served.features == 0 {
                return Some((event, lost));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_layout_that_drivers_read() {
        let address = Address { target: 2, lun: 5 };
        let bytes = Event::Removed(address).bytes(false);
        assert_eq!(bytes, [1, 0, 0, 0, 1, 2, 0x40, 5, 0, 0, 0, 0, 2, 0, 0, 0]);
        let changed = Event::Changed {
            address,
            code: 0x2a09,
        };
        let bytes = changed.bytes(true);
        assert_eq!(bytes[..4], [3, 0, 0, 0x80]);
        assert_eq!(bytes[12..], [0x2a, 9, 0, 0]);
        assert_eq!(Event::None.bytes(true)[..4], [0, 0, 0, 0x80]);
    }
}
