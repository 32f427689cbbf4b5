//! The memory window: what a front-end's files show, and where. Its memory begins where the window
//! does; an in-flight buffer is at its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, SealFlags};
use thiserror::Error;
use vm_memory::Bytes;

use super::ModelError;
use crate::memory::{Area, MemoryError, Piece, Reservation, file_page_size, page_size};
use crate::protocol::MemRegion;

/// Alignment at which huge pages can be used.
const HUGE: u64 = 2 << 20;

/// `f_type` of a file that a program serves: it could make us wait for a page for ever.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// Where regions begin (docs/device.md, "where memory lies").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// Each file from its beginning, one after the other.
    Whole,
    /// The listed bytes, one after the other.
    Packed,
    /// Wherever huge pages are possible; the message says where.
    Told,
}

/// Why a memory table is refused.
#[derive(Debug, Error)]
pub(super) enum WindowError {
    #[error("memory region {0} is empty or overflows")]
    Range(usize),
    #[error("memory region {index}: {what}")]
    File { index: usize, what: String },
    #[error(
        "memory region {index} would end at {end:#x} of a window of {window:#x} bytes: give the \
         device a larger window, or the front-end less memory"
    )]
    Full { index: usize, end: u64, window: u64 },
    #[error(
        "memory region {index} is file {found:?} (device, inode), and this device can show \
         {expected:?} only, the file it was started with (--peer-memory): start it with the \
         front-end's memory file, shared (share=on)"
    )]
    OtherFile {
        index: usize,
        found: (u64, u64),
        expected: (u64, u64),
    },
    #[error(
        "memory region {index} is at {offset:#x} of its file and would be expected at {place:#x} \
         of the window, which shows the file as it is: the driver must take the LAYOUT feature"
    )]
    Moved {
        index: usize,
        offset: u64,
        place: u64,
    },
    #[error("the in-flight buffer: {0}")]
    Inflight(String),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Where in the window memory ends, and an in-flight buffer begins.
#[derive(Debug)]
struct Ends {
    memory: u64,
    inflight: u64,
}

/// The window. See the [module](self).
#[derive(Debug)]
pub(super) struct Window {
    bytes: Reservation,
    /// A file that is the whole window, with device and inode.
    peer: Option<(OwnedFd, u64, (u64, u64))>,
    ends: Mutex<Ends>,
}

impl Window {
    pub(super) fn new(len: u64, peer: Option<OwnedFd>) -> Result<Self, ModelError> {
        let mut window = Self {
            bytes: Reservation::new(len)?,
            peer: None,
            ends: Mutex::new(Ends {
                memory: 0,
                inflight: len,
            }),
        };
        if let Some(file) = peer {
            window.show_whole(file)?;
        }
        Ok(window)
    }

    fn show_whole(&mut self, file: OwnedFd) -> Result<(), ModelError> {
        let wrong = |what: String| ModelError::PeerMemory(what);
        let stat = check_file(file.as_fd()).map_err(wrong)?;
        let len = stat.st_size as u64;
        if len == 0 || len > self.bytes.len() {
            return Err(wrong(format!(
                "it has {len:#x} bytes, and the window {:#x}; give the device a window that is as \
                 large or larger",
                self.bytes.len()
            )));
        }
        let piece = Piece {
            offset: 0,
            file: file.try_clone().map_err(|error| wrong(error.to_string()))?,
            file_offset: 0,
            len: len
                .next_multiple_of(file_page_size(file.as_fd()).map_err(|e| wrong(e.to_string()))?),
        };
        self.bytes.show(&[piece])?;
        self.peer = Some((file, len, (stat.st_dev, stat.st_ino)));
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peer(&self) -> Option<(BorrowedFd<'_>, u64)> {
        let (file, len, _) = self.peer.as_ref()?;
        Some((file.as_fd(), *len))
    }

    /// Shows a table, or leaves everything as it is. The result is where each region begins.
    pub(super) fn show(
        &self,
        regions: &[MemRegion],
        files: Vec<OwnedFd>,
        placement: Placement,
    ) -> Result<Vec<u64>, WindowError> {
        let mut ends = self.ends();
        let window = ends.inflight;
        let mut starts = Vec::with_capacity(regions.len());
        let mut pieces = Vec::with_capacity(regions.len());
        let mut used = 0;
        for (index, (region, file)) in regions.iter().zip(files).enumerate() {
            let MemRegion {
                size, mmap_offset, ..
            } = *region;
            let end_of = |start: u64| start.checked_add(size).filter(|_| size > 0);
            let (Some(_), Some(_), Some(end)) = (
                end_of(region.guest_addr),
                end_of(region.user_addr),
                end_of(mmap_offset).filter(|end| *end <= i64::MAX as u64),
            ) else {
                return Err(WindowError::Range(index));
            };
            let wrong = |what: String| WindowError::File { index, what };
            if !(size | mmap_offset).is_multiple_of(page_size() as u64) {
                return Err(wrong(format!(
                    "{size:#x} bytes at {mmap_offset:#x} are not made of pages"
                )));
            }
            let stat = check_file(file.as_fd()).map_err(wrong)?;
            if (stat.st_size as u64) < end {
                return Err(wrong(format!(
                    "it ends at {end:#x} of a file of {:#x} bytes",
                    stat.st_size
                )));
            }
            let page = file_page_size(file.as_fd()).map_err(|errno| wrong(errno.to_string()))?;
            let first = mmap_offset - mmap_offset % page;
            let last = end
                .checked_next_multiple_of(page)
                .ok_or(WindowError::Range(index))?;
            // `used` is at most the window's length, everything else fits 63 bits.
            let start = match placement {
                Placement::Whole => used + mmap_offset,
                Placement::Packed => used,
                Placement::Told if self.peer.is_some() => mmap_offset,
                Placement::Told => {
                    used + (first.wrapping_sub(used) & (page.max(HUGE) - 1)) + (mmap_offset - first)
                }
            };
            if let Some((_, _, expected)) = &self.peer {
                let found = (stat.st_dev, stat.st_ino);
                if found != *expected {
                    let expected = *expected;
                    return Err(WindowError::OtherFile {
                        index,
                        found,
                        expected,
                    });
                }
                if start != mmap_offset {
                    return Err(WindowError::Moved {
                        index,
                        offset: mmap_offset,
                        place: start,
                    });
                }
            }
            let end = start + size;
            if end > window {
                return Err(WindowError::Full { index, end, window });
            }
            used = match placement {
                // The rest of its last page is its own.
                Placement::Told => (start + (last - mmap_offset)).min(window),
                Placement::Whole | Placement::Packed => end,
            };
            let lead = mmap_offset - first;
            pieces.push(Piece {
                offset: start.checked_sub(lead).ok_or(WindowError::Range(index))?,
                file,
                file_offset: first,
                len: last - first,
            });
            starts.push(start);
        }
        if self.peer.is_none() {
            self.bytes.show_in(0..window, &pieces)?;
            ends.memory = used;
        }
        Ok(starts)
    }

    /// Shows an in-flight buffer instead of the last one, or leaves everything as it is. The result
    /// is where it begins.
    pub(super) fn show_inflight(
        &self,
        mmap_offset: u64,
        size: u64,
        file: OwnedFd,
    ) -> Result<u64, WindowError> {
        let wrong = WindowError::Inflight;
        let end = mmap_offset.checked_add(size);
        let Some(end) = end.filter(|end| size > 0 && *end <= i64::MAX as u64) else {
            return Err(wrong(format!("{size:#x} bytes at {mmap_offset:#x}")));
        };
        let stat = check_file(file.as_fd()).map_err(wrong)?;
        if (stat.st_size as u64) < end {
            return Err(wrong(format!(
                "it ends at {end:#x} of a file of {:#x} bytes",
                stat.st_size
            )));
        }
        let page = file_page_size(file.as_fd()).map_err(|errno| wrong(errno.to_string()))?;
        let first = mmap_offset - mmap_offset % page;
        // At most 2^63 and a page.
        let len = end.next_multiple_of(page) - first;
        let mut ends = self.ends();
        let window = self.bytes.len();
        let start = window.checked_sub(len).map(|start| start - start % page);
        let Some(start) = start.filter(|start| *start >= ends.memory) else {
            return Err(wrong(format!(
                "{len:#x} bytes behind {:#x} bytes of memory do not fit a window of {window:#x} \
                 bytes: give the device a larger window, or the front-end less memory",
                ends.memory
            )));
        };
        let piece = Piece {
            offset: start,
            file,
            file_offset: first,
            len,
        };
        let old = std::mem::replace(&mut ends.inflight, start);
        // Should it fail, that much is left to nobody.
        self.bytes.show_in(old.min(start)..window, &[piece])?;
        Ok(start + (mmap_offset - first))
    }

    /// Shows nothing any more, unless it always shows the same.
    pub(super) fn clear(&self) {
        if self.peer.is_some() {
            return;
        }
        let mut ends = self.ends();
        (ends.memory, ends.inflight) = (0, self.bytes.len());
        if let Err(error) = self.bytes.show(&[]) {
            tracing::error!(%error, "cannot take a front-end's memory away");
        }
    }

    pub(super) fn area(&self, offset: u64, len: u64) -> Option<Area> {
        self.bytes.area(offset, len)
    }

    /// For who cannot map: bytes outside read as zeroes.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let area = self.bytes.area(offset, data.len() as u64);
        if area.is_none_or(|area| area.slice().read_slice(data, 0).is_err()) {
            data.fill(0);
        }
    }

    /// Bytes where nothing is shown go nowhere.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let len = data.len() as u64;
        if self.bytes.is_shown(offset, len)
            && let Some(area) = self.bytes.area(offset, len)
        {
            let _ = area.slice().write_slice(data, 0);
        }
    }
}

/// A file that can be shown; as far as possible it is kept from shrinking.
pub(super) fn check_file(file: BorrowedFd<'_>) -> Result<rustix::fs::Stat, String> {
    let stat = rustix::fs::fstat(file).map_err(|errno| errno.to_string())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a file".to_owned());
    }
    let filesystem = rustix::fs::fstatfs(file).map_err(|errno| errno.to_string())?;
    if filesystem.f_type == FUSE_MAGIC {
        return Err("it is a file that some program serves, which could stall us".to_owned());
    }
    // Nobody has a use for memory that goes away. Where it cannot be forbidden, the fault is
    // caught.
    let _ = rustix::fs::fcntl_add_seals(file, SealFlags::SHRINK);
    Ok(stat)
}
