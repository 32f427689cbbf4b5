//! What a PCI function looks like: address, configuration header, capabilities. Pure.
//!
//! [`PciFunction`] is what a driver needs of a function, whoever provides it: the kernel's
//! vfio-pci, a vfio-user server, a device model in this process. [`ConfigSpace`] is a private copy
//! of a function's configuration space and [`Structures`] what of it concerns us. [`sysfs`] is
//! where Linux shows functions and which driver has them.

mod address;
mod builder;
mod caps;
mod config;
pub mod sysfs;

pub use address::{Address, BadAddress};
pub use builder::ConfigBuilder;
pub use caps::{CROSVM_ID, KNOWN_IDS, Location, NotVvu, Strided, Structures, modern_id};
pub use config::{
    CAP_MSIX, CAP_VENDOR, COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, CONFIG_LEN, Capability,
    ConfigSpace, VENDOR_VIRTIO,
};

use std::os::fd::{BorrowedFd, OwnedFd};

use thiserror::Error;

use crate::memory::Area;
use crate::mmio::Window;

/// What can go wrong with a PCI function.
#[derive(Debug, Error)]
pub enum PciError {
    /// The function, or whoever provides it, failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A BAR range that does not exist.
    #[error("BAR {bar} has no {len:#x} bytes at {offset:#x} (its size is {size:#x})")]
    NoSuchBar {
        /// BAR number.
        bar: u8,
        /// Offset asked for.
        offset: u64,
        /// Length asked for.
        len: u64,
        /// The BAR's size; 0 if there is none.
        size: u64,
    },
    /// Memory in a BAR that only messages would reach.
    #[error(
        "{len:#x} bytes at {offset:#x} of BAR {bar} cannot be mapped: whoever provides the \
         function shares no file for them (`vvu device` does with --peer-memory)"
    )]
    NotMappable {
        /// BAR number.
        bar: u8,
        /// Offset asked for.
        offset: u64,
        /// Length asked for.
        len: u64,
    },
    /// Interrupt vectors asked for that the function does not have.
    #[error("{asked} interrupt vectors were asked for, the function has {available}")]
    Vectors {
        /// How many were asked for.
        asked: u16,
        /// How many there are.
        available: u16,
    },
}

/// Memory of ours that the function may read and write.
#[derive(Debug, Clone)]
pub struct DmaMemory {
    /// The bytes. The function can write them at any time.
    pub bytes: Area,
    /// The address that the function uses for the first byte.
    pub iova: u64,
}

/// A PCI function as a driver uses it. Dropping it resets the function and takes back its DMA
/// maps and interrupts.
pub trait PciFunction: Send {
    /// What to call it in messages to people, such as `0000:00:05.0`.
    fn name(&self) -> &str;

    /// Reads `data.len()` bytes of configuration space; bytes beyond its end read as ones.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space: 1, 2 or 4 bytes, naturally aligned.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// Size of a BAR in bytes; 0 if there is none.
    fn bar_size(&self, bar: u8) -> u64;

    /// Registers in a BAR: mapped where possible, else reached by asking.
    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError>;

    /// Memory in a BAR: `len` bytes at `offset`, mapped. Only these bytes are mapped, not the BAR.
    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError>;

    /// Zeroed memory for DMA, at least `len` bytes, in hugepages where there are some.
    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError>;

    /// Number of MSI-X vectors that the function has; 0 if it has no MSI-X.
    fn vectors(&self) -> u16;

    /// Enables MSI-X with `count` vectors. Each vector's descriptor is an eventfd, non-blocking,
    /// that becomes readable when the vector fires.
    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError>;

    /// Resets the function (FLR or what there is), as far as it can be; virtio's own reset is the
    /// driver's business.
    fn reset(&mut self) -> Result<(), PciError>;

    /// A descriptor that hangs up when whoever provides the function is gone, if that can happen.
    fn hangup(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Lets go of everything and opens the function anew, for one that is gone and may be there
    /// again: `true` if it is, with no DMA memory, no vectors, and perhaps other registers and
    /// sizes than before. `false` if this kind of function cannot come back.
    fn reopen(&mut self) -> Result<bool, PciError> {
        Ok(false)
    }
}
