//! The memory that a guest shares: one file, announced in one or more regions.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vvu::memory::{Area, Mapping, page_size};
use vvu::pci::DmaMemory;

use super::GuestError;

/// How far regions are apart for the guest: there is a hole behind each.
const STEP: u64 = 1 << 32;

/// One region.
#[derive(Debug)]
struct Region {
    bytes: Area,
    guest_addr: u64,
    offset: u64,
    /// Bytes given away.
    taken: usize,
}

/// A guest's memory. See the [module](self).
#[derive(Debug)]
pub(super) struct Memory {
    file: OwnedFd,
    regions: Vec<Region>,
}

impl Memory {
    /// Memory for `len` bytes in `count` regions, which nobody can shrink if `sealed`.
    pub(super) fn new(len: u64, count: u8, sealed: bool) -> Result<Self, GuestError> {
        let failed = |what| move |error: rustix::io::Errno| GuestError::system(what, error);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("vvu-guest", flags).map_err(failed("make memory to share"))?;
        let each = len
            .div_ceil(count.into())
            .checked_next_multiple_of(page_size() as u64)
            .ok_or(GuestError::NoMemory)?;
        let all = each.checked_mul(count.into()).ok_or(GuestError::NoMemory)?;
        ftruncate(&file, all).map_err(failed("get that much memory"))?;
        if sealed {
            // A back-end that trusts the seal need not fear that bytes vanish.
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            fcntl_add_seals(&file, seals).map_err(failed("seal the memory"))?;
        }
        Self::regions_of(file, each, count)
    }

    /// All of a file, in `count` regions. Somebody may have used it before.
    pub(super) fn in_file(path: &Path, count: u8) -> Result<Self, GuestError> {
        let failed = |source| GuestError::MemoryFile {
            path: path.to_owned(),
            source,
        };
        let file = File::options().read(true).write(true).open(path);
        let mut file = file.map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        std::io::copy(&mut std::io::repeat(0).take(len), &mut file).map_err(failed)?;
        let each = len / u64::from(count);
        let each = each - each % page_size() as u64;
        match each {
            0 => Err(GuestError::NoMemory),
            each => Self::regions_of(file.into(), each, count),
        }
    }

    /// `count` regions of `each` bytes.
    fn regions_of(file: OwnedFd, each: u64, count: u8) -> Result<Self, GuestError> {
        let region = |n: u64| {
            let offset = n * each;
            Ok(Region {
                bytes: Mapping::of_file(file.as_fd(), offset, each)?.into(),
                guest_addr: n * STEP,
                offset,
                taken: 0,
            })
        };
        let regions = (0..count.into()).map(region).collect::<Result<_, _>>();
        Ok(Self {
            regions: regions.map_err(GuestError::Memory)?,
            file,
        })
    }

    /// The file itself.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// How many regions there are.
    pub(super) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Takes `len` bytes, aligned to `align`, that nobody has taken, from region `number` modulo
    /// their count.
    pub(super) fn alloc(
        &mut self,
        number: usize,
        len: usize,
        align: usize,
    ) -> Result<DmaMemory, GuestError> {
        let number = number % self.regions.len().max(1);
        let none = GuestError::NoMemory;
        let region = self.regions.get_mut(number).ok_or(none)?;
        let start = region.taken.next_multiple_of(align);
        let bytes = region.bytes.sub(start, len).ok_or(GuestError::NoMemory)?;
        region.taken = start + len;
        Ok(DmaMemory {
            bytes,
            iova: region.guest_addr + start as u64,
        })
    }

    /// What the back-end is told. Front-end addresses are those of this process, as in every VMM.
    pub(super) fn table(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let info = |region: &Region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.guest_addr,
            memory_size: region.bytes.len() as u64,
            userspace_addr: region.bytes.address() as u64,
            mmap_offset: region.offset,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.regions.iter().map(info).collect()
    }

    /// The front-end's address of guest address `addr`, as SET_VRING_ADDR names it.
    pub(super) fn user(&self, addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = addr.checked_sub(region.guest_addr)?;
            (offset < region.bytes.len() as u64).then(|| region.bytes.address() as u64 + offset)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn regions_are_one_file_and_apart_for_the_guest() {
        let mut memory = Memory::new(100_000, 3, true).unwrap();
        let table = memory.table();
        assert_eq!(table.len(), 3);
        let size = table[0].memory_size;
        assert!(size * 3 >= 100_000 && size.is_multiple_of(page_size() as u64));
        assert_eq!(table[2].mmap_offset, 2 * size);
        assert!(table[1].guest_phys_addr > table[0].guest_phys_addr + size);

        let piece = memory.alloc(4, 100, 64).unwrap();
        assert_eq!(piece.iova, table[1].guest_phys_addr);
        assert_eq!(memory.user(piece.iova), Some(table[1].userspace_addr));
        let next = memory.alloc(1, 100, 64).unwrap();
        assert_eq!(next.iova, piece.iova + 128);
        assert!(memory.alloc(1, size as usize, 1).is_err());
        assert_eq!(memory.user(piece.iova + size), None);
    }

    #[test]
    fn a_seal_holds() {
        let sealed = Memory::new(4096, 1, true).unwrap();
        assert!(ftruncate(sealed.file(), 0).is_err());
        let open = Memory::new(4096, 1, false).unwrap();
        assert!(ftruncate(open.file(), 0).is_ok());
    }
}
