//! A port that sends the same frame for ever, as fast as it is polled.

use vvu::memory::{Area, Mapping, MemoryError};

use super::Stats;
use super::burst::{BURST, Burst};
use super::head::{ETHERNET, Heads, MAX_FRAME};

/// Sends one frame again and again.
#[derive(Debug)]
pub struct Generator {
    frame: Area,
    stats: Stats,
}

impl Generator {
    /// A generator of frames of `size` bytes (between a bare Ethernet header and
    /// [`MAX_FRAME`]; others are brought there) from `source` to `destination`.
    pub fn new(
        size: usize,
        source: [u8; 6],
        destination: [u8; 6],
        stats: Stats,
    ) -> Result<Self, MemoryError> {
        let mapping = Mapping::anonymous(size.clamp(ETHERNET, MAX_FRAME))?;
        let mut header = [0; ETHERNET];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source);
        // An EtherType for local experiments (IEEE 802, 9.2.3): no stack takes it for its own.
        header[12..].copy_from_slice(&0x88b5u16.to_be_bytes());
        mapping.slice().copy_from(&header);
        Ok(Self {
            frame: mapping.into(),
            stats,
        })
    }

    pub(super) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        let bytes = self.frame.slice();
        heads.clear();
        heads.push_plain(0, bytes, 0);
        heads.repeat();
        // With nobody to receive there is no work: the worker may sleep.
        let met = each(&Burst::of_fixed(heads, bytes));
        if met {
            self.stats.rx_packets.add(BURST as u64);
            self.stats.rx_bytes.add((BURST * bytes.len()) as u64);
        }
        met
    }
}
