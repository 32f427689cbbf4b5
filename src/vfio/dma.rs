//! Which addresses a function may use for our memory.

use std::path::Path;

/// Where addresses begin: behind everything that a PC has below 4 GiB.
const FIRST: u64 = 1 << 32;

/// Hands out ranges of I/O addresses, upwards, around those that the IOMMU group must not use.
#[derive(Debug)]
pub(super) struct Iovas {
    next: u64,
    /// First and last address of each range.
    reserved: Vec<(u64, u64)>,
}

impl Iovas {
    /// For an IOMMU group, as /sys describes it.
    pub(super) fn of_group(function: &Path) -> Self {
        let path = function.join("iommu_group/reserved_regions");
        Self::new(&std::fs::read_to_string(path).unwrap_or_default())
    }

    /// `regions` has lines of first address, last address and type.
    fn new(regions: &str) -> Self {
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let mut reserved: Vec<_> = regions
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((hex(words.next()?)?, hex(words.next()?)?))
            })
            .collect();
        reserved.sort_unstable();
        Self {
            next: FIRST,
            reserved,
        }
    }

    /// `len` addresses, aligned to `align`, a power of two.
    pub(super) fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        let mut start = self.next.checked_next_multiple_of(align)?;
        // Sorted, so one pass is enough: what was passed stays behind.
        for (first, last) in &self.reserved {
            let end = start.checked_add(len)?;
            if *first < end && *last >= start {
                start = last.checked_add(1)?.checked_next_multiple_of(align)?;
            }
        }
        self.next = start.checked_add(len)?;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ranges_are_left_out() {
        let mut iovas = Iovas::new(
            "0x00000000fee00000 0x00000000feefffff msi\n\
             0x0000000140000000 0x00000001ffffffff reserved\n\
             0x0000000100000000 0x00000001000fffff direct\n\
             nonsense\n",
        );
        assert_eq!(iovas.take(0x1000, 0x1000), Some(0x1_0010_0000));
        assert_eq!(iovas.take(0x20_0000, 0x20_0000), Some(0x1_0020_0000));
        assert_eq!(iovas.take(0x4000_0000, 0x20_0000), Some(0x2_0000_0000));
        assert_eq!(iovas.take(u64::MAX, 0x1000), None);
        assert_eq!(iovas.take(0x1000, 0x1000), Some(0x2_4000_0000));
    }
}
