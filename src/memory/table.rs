//! The region table: guest and front-end addresses to bytes.

use vm_memory::VolatileSlice;

use super::{Area, MemoryError};

/// One region of a front-end's memory.
#[derive(Debug, Clone)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
    /// Address of the first byte in the front-end's own address space ("user address").
    pub user_addr: u64,
    /// The bytes, mapped here.
    pub bytes: Area,
}

impl Region {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A front-end's memory: an immutable set of regions, sorted by guest address.
///
/// A changed memory is a new table; regions that stay share their mapping with the old one.
#[derive(Debug, Clone, Default)]
pub struct MemTable {
    regions: Box<[Region]>,
}

impl MemTable {
    /// Checks and sorts `regions`. Guest ranges must not be empty, wrap or overlap; user ranges
    /// must not wrap.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.guest_addr);
        for region in &regions {
            if region.bytes.is_empty() {
                return Err(MemoryError::Empty(region.guest_addr));
            }
            for start in [region.guest_addr, region.user_addr] {
                // The last byte's address must exist; the end itself may be 2^64.
                if start.checked_add(region.size() - 1).is_none() {
                    return Err(MemoryError::Overflow {
                        start,
                        len: region.size(),
                    });
                }
            }
        }
        for pair in regions.windows(2) {
            if let [low, high] = pair
                && high.guest_addr - low.guest_addr < low.size()
            {
                return Err(MemoryError::Overlap(low.guest_addr, high.guest_addr));
            }
        }
        Ok(Self {
            regions: regions.into(),
        })
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of all regions together.
    pub fn len(&self) -> u64 {
        self.regions.iter().map(Region::size).sum()
    }

    /// Whether no memory is known.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Whether bytes of a region went missing: see [`Mapping::is_lost`](super::Mapping::is_lost).
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.bytes.is_lost())
    }

    /// Whether the kernel can pin the pages of all regions: see
    /// [`Mapping::is_pinnable`](super::Mapping::is_pinnable).
    pub fn is_pinnable(&self) -> bool {
        self.regions.iter().all(|region| region.bytes.is_pinnable())
    }

    /// The region that holds guest address `addr`.
    #[inline]
    pub fn region(&self, addr: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|r| r.guest_addr <= addr);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (addr - region.guest_addr < region.size()).then_some(region)
    }

    /// As many of the `len` bytes at guest address `addr` as one region holds: at least one, and
    /// all of them unless the range runs past its region. Callers that may meet a buffer across
    /// two regions ask again for the rest. `None` if `addr` is nobody's, or `len` is zero.
    #[inline]
    pub fn guest(&self, addr: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let region = self.region(addr)?;
        let offset = addr - region.guest_addr;
        if len == 0 {
            return None;
        }
        let there = (region.size() - offset) as usize;
        let bytes = region.bytes.slice();
        bytes.subslice(offset as usize, len.min(there)).ok()
    }

    /// The `len` bytes at the front-end's own address `addr`, which is how messages name rings.
    /// `None` unless one region holds them all.
    pub fn user(&self, addr: u64, len: usize) -> Option<Area> {
        self.regions.iter().find_map(|region| {
            let offset = addr.checked_sub(region.user_addr)?;
            region.bytes.sub(usize::try_from(offset).ok()?, len)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::Mapping;

    fn region(guest_addr: u64, user_addr: u64, len: usize) -> Region {
        Region {
            guest_addr,
            user_addr,
            bytes: Mapping::anonymous(len).unwrap().into(),
        }
    }

    #[test]
    fn addresses_at_the_edges_of_regions() {
        let table = MemTable::new(vec![
            region(0x10_0000, 0x7000_0000, 0x3000),
            region(0x1000, 0x5000_0000, 0x2000),
            region(0x3000, 0x6000_0000, 0x1000),
        ])
        .unwrap();
        assert_eq!(table.len(), 0x6000);
        assert!(table.guest(0xfff, 1).is_none());
        assert_eq!(table.guest(0x1000, 0x2000).unwrap().len(), 0x2000);
        // Contiguous for the guest, two mappings here: only the first part comes back.
        assert_eq!(table.guest(0x2fff, 2).unwrap().len(), 1);
        assert_eq!(table.guest(0x3000, 1).unwrap().len(), 1);
        assert!(table.guest(0x4000, 1).is_none());
        assert!(table.guest(0x1000, 0).is_none());
        assert!(table.guest(u64::MAX, usize::MAX).is_none());
        assert_eq!(table.guest(0x10_2fff, usize::MAX).unwrap().len(), 1);

        assert_eq!(table.user(0x5000_1000, 0x1000).unwrap().len(), 0x1000);
        assert!(table.user(0x5000_1000, 0x1001).is_none());
        assert!(table.user(0x4fff_ffff, 1).is_none());
        assert!(table.user(u64::MAX, 1).is_none());
    }

    #[test]
    fn bad_tables_are_refused() {
        let err = |regions| MemTable::new(regions).unwrap_err();
        assert!(matches!(
            err(vec![
                region(0x1000, 0, 0x1001),
                region(0x2000, 0x10000, 0x1000)
            ]),
            MemoryError::Overlap(0x1000, 0x2000)
        ));
        assert!(matches!(
            err(vec![region(u64::MAX - 0xffe, 0, 0x1000)]),
            MemoryError::Overflow { .. }
        ));
        assert!(matches!(
            err(vec![region(0, u64::MAX - 0xffe, 0x1000)]),
            MemoryError::Overflow { .. }
        ));
        // The very last byte of the address space may be memory.
        assert!(MemTable::new(vec![region(u64::MAX - 0xfff, 0, 0x1000)]).is_ok());
    }

    #[test]
    fn a_mapping_keeps_to_its_file() {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        use std::os::fd::AsFd;
        use vm_memory::Bytes;

        let file = memfd_create("vvu-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 0x3000).unwrap();
        assert!(matches!(
            Mapping::of_file(file.as_fd(), 0x2000, 0x1001),
            Err(MemoryError::ShortFile { .. })
        ));
        assert!(matches!(
            Mapping::of_file(file.as_fd(), u64::MAX, 2),
            Err(MemoryError::Overflow { .. })
        ));
        // An offset inside a page lands on that byte.
        let whole = Mapping::of_file(file.as_fd(), 0, 0x3000).unwrap();
        let part = Mapping::of_file(file.as_fd(), 0x1010, 0x20).unwrap();
        part.slice().write_obj(0xa5u8, 3).unwrap();
        assert_eq!(whole.slice().read_obj::<u8>(0x1013).unwrap(), 0xa5);
        assert_eq!(part.len(), 0x20);
    }

    #[test]
    fn files_of_huge_pages_are_mapped_in_huge_pages() {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        use std::os::fd::AsFd;
        use vm_memory::Bytes;

        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
        let Ok(file) = memfd_create("vvu-huge", flags) else {
            eprintln!("SKIPPED: this kernel has no hugetlbfs");
            return;
        };
        ftruncate(&file, 4 << 20).unwrap();
        // Neither offset nor length is a multiple of the page size.
        let (offset, len) = ((2 << 20) + 0x1000, 0x2000);
        let Ok(mapping) = Mapping::of_file(file.as_fd(), offset, len) else {
            eprintln!("SKIPPED: no huge page is free (/proc/sys/vm/nr_hugepages)");
            return;
        };
        assert_eq!(mapping.len(), 0x2000);
        mapping.slice().write_obj(0xa5u8, 0x1fff).unwrap();
        assert!((mapping.address() - 0x1000).is_multiple_of(2 << 20));
        // Undone in huge pages, too: the next one gets the same page.
        drop(mapping);
        let again = Mapping::of_file(file.as_fd(), offset, len).unwrap();
        assert_eq!(again.slice().read_obj::<u8>(0x1fff).unwrap(), 0xa5);
    }
}
