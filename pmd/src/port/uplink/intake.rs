//! From frames in one memory to a burst, and when to look for them.

use vvu::memory::VolatileSlice;

use crate::port::Stats;
use crate::port::burst::{BURST, Burst, Place};
use crate::port::head::{Heads, PLAIN};

/// The frames found in one round.
#[derive(Debug)]
pub(super) struct Intake {
    places: Box<[Place; BURST]>,
    len: usize,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            places: Box::new([Place::default(); BURST]),
            len: 0,
        }
    }
}

impl Intake {
    /// Forgets all frames.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Whether a burst is complete.
    pub(super) fn is_full(&self) -> bool {
        self.len == BURST
    }

    /// Adds a frame.
    pub(super) fn add(&mut self, place: Place) {
        if let Some(next) = self.places.get_mut(self.len) {
            *next = place;
            self.len += 1;
        }
    }

    /// Judges the frames, which are in `memory`, and hands them to `each`, unless there are none.
    pub(super) fn deliver(
        &self,
        heads: &mut Heads,
        memory: VolatileSlice<'_>,
        stats: &Stats,
        each: &mut impl FnMut(&Burst<'_>) -> bool,
    ) {
        let places = self.places.get(..self.len).unwrap_or(&[]);
        heads.clear();
        for (item, place) in (0u16..).zip(places) {
            let bytes = memory.subslice(place.offset, place.len).ok();
            // A short way for frames that ask for nothing, and one that says what is wrong.
            if place.header == PLAIN && bytes.is_some_and(|bytes| heads.push_plain(item, bytes, 0))
            {
                continue;
            }
            let (bytes, header) = (bytes.into_iter(), &place.header);
            let pushed = heads.push_pieces(item, place.len, bytes, 0, header);
            if let Err(reason) = pushed {
                stats.dropped(reason, 1);
            }
        }
        let burst = Burst::of_places(heads, memory, places);
        if !burst.is_empty() {
            stats.rx_packets.add(burst.len() as u64);
            stats.rx_bytes.add(burst.bytes());
            each(&burst);
        }
    }
}

/// When to make a system call that may find nothing: each round while it finds something, then
/// more and more seldom. The longest pause is some microseconds of an idle worker.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pause: u8,
    left: u8,
}

impl Pace {
    /// Most rounds without a look.
    const LONGEST: u8 = 15;

    /// Whether to look in this round.
    #[inline]
    pub(super) fn due(&mut self) -> bool {
        match self.left.checked_sub(1) {
            None => true,
            Some(left) => {
                self.left = left;
                false
            }
        }
    }

    /// There was something: look again in the next round.
    pub(super) fn found(&mut self) {
        *self = Self::default();
    }

    /// There was nothing.
    pub(super) fn missed(&mut self) {
        self.pause = (2 * self.pause + 1).min(Self::LONGEST);
        self.left = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks taken in `rounds` rounds that find nothing.
    fn looks(pace: &mut Pace, rounds: u32) -> u32 {
        let mut looks = 0;
        for _ in 0..rounds {
            if pace.due() {
                looks += 1;
                pace.missed();
            }
        }
        looks
    }

    #[test]
    fn looks_become_seldom_and_frequent_again() {
        let mut pace = Pace::default();
        assert!(pace.due());
        looks(&mut pace, 100);
        assert_eq!(looks(&mut pace, 1600), 100);
        pace.found();
        assert!(pace.due());
        pace.found();
        assert!(pace.due());
        assert!(looks(&mut pace, 16) >= 4);
    }
}
