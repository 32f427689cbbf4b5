//! The only door to bytes that another party can write.
//!
//! A [`Mapping`] owns address space: a front-end's memory mapped from a file descriptor, a piece
//! of a PCI BAR, or DMA memory of our own. An [`Area`] is a range of a mapping that keeps the
//! mapping alive. A [`MemTable`] is what a front-end announced with `SET_MEM_TABLE`: it turns
//! guest and front-end addresses into bytes.
//!
//! Two rules, both of which the types hold: nobody makes a Rust reference into shared memory, and
//! every access is bounded by the mapping it falls in. Accessors are vm-memory's
//! [`VolatileSlice`]. This room knows nothing of messages, rings or devices.

pub mod copy;
mod fault;
mod file;
mod mapping;
mod reservation;
mod scatter;
mod table;

pub use file::sealed_file;
pub use mapping::{Area, Mapping, file_page_size, hugepage_size, page_size};
pub use reservation::{Piece, Reservation};
pub use scatter::Scatter;
pub use table::{MemTable, Region};
pub use vm_memory::VolatileSlice;

use thiserror::Error;

/// What can be wrong with a mapping or a memory table.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The kernel refused a mapping.
    #[error("cannot map {len:#x} bytes at offset {offset:#x}: {source}")]
    Map {
        /// File offset asked for.
        offset: u64,
        /// Length asked for, in bytes.
        len: u64,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The kernel gives us no file of memory.
    #[error("cannot make a file of {len:#x} bytes of memory: {source}")]
    File {
        /// Length asked for, in bytes.
        len: u64,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The file behind a region ends before the region does.
    #[error("the file has {file:#x} bytes, the region needs {needed:#x}")]
    ShortFile {
        /// Size of the file, in bytes.
        file: u64,
        /// First byte past the region, counted from the start of the file.
        needed: u64,
    },
    /// A range's end does not fit into 64 bits (or into the address space).
    #[error("range {start:#x}+{len:#x} overflows")]
    Overflow {
        /// Start of the range.
        start: u64,
        /// Length of the range.
        len: u64,
    },
    /// A piece of a file that is not made of its pages, or does not go to whole pages.
    #[error(
        "{len:#x} bytes at offset {offset:#x} cannot be shown at {place:#x}: pages have {page:#x} \
         bytes"
    )]
    Unaligned {
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Where they should go.
        place: u64,
        /// Size of the file's pages.
        page: u64,
    },
    /// A region of no bytes.
    #[error("region at guest address {0:#x} is empty")]
    Empty(u64),
    /// No hugepages are free, or the kernel has none.
    #[error("no hugepages for {0:#x} bytes")]
    NoHugepages(usize),
    /// Two regions claim the same addresses.
    #[error("regions at addresses {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
}
