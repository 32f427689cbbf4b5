//! A PCI function through the kernel's vfio-pci driver.
//!
//! [`VfioFunction::open`] takes a function that is bound to vfio-pci: container, group and type 1
//! IOMMU through the vfio-ioctls crate. Nothing is known here of what the function does.
//!
//! Everything that commonly keeps a function from being opened is looked for beforehand and has
//! its own [`VfioError`], because the kernel's answers say little. Two things are refused unless
//! they are asked for by name, because they give the device, or whoever controls it, the whole
//! machine: no IOMMU, and an IOMMU that does not remap interrupts.

mod check;
mod dma;
mod function;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use function::VfioFunction;

use crate::pci::Address;
use crate::pci::sysfs::SysfsError;

/// Dangers that are accepted.
#[derive(Debug, Clone, Copy, Default)]
pub struct VfioOptions {
    /// Use an IOMMU that does not remap interrupts. The device can then raise any interrupt of
    /// this machine.
    pub allow_unsafe_interrupts: bool,
    /// Use the function without an IOMMU. The device can then read and write all memory.
    pub allow_noiommu: bool,
}

/// Why a function cannot be used through vfio-pci.
#[derive(Debug, Error)]
pub enum VfioError {
    /// The function cannot be looked up.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Another driver has it, or none.
    #[error(
        "{address} is driven by {} instead of vfio-pci; give it to vfio-pci with `vvu bind {address}`",
        driver.as_deref().unwrap_or("nobody")
    )]
    OtherDriver {
        /// The function.
        address: Address,
        /// Who has it.
        driver: Option<String>,
    },
    /// There is no IOMMU.
    #[error(
        "{0} is in no IOMMU group: this machine has no IOMMU, or does not use it (on Intel boot \
         with intel_iommu=on; in QEMU add -device intel-iommu,intremap=on,caching-mode=on)"
    )]
    NoGroup(Address),
    /// There is no IOMMU, and vfio was told not to mind.
    #[error(
        "{0} has no IOMMU (vfio no-IOMMU mode): the device could read and write all of this \
         machine's memory. Use an IOMMU, or accept that with --allow-noiommu"
    )]
    NoIommu(Address),
    /// The same, accepted, but it cannot be done.
    #[error(
        "{0} has no IOMMU (vfio no-IOMMU mode); accepted, but not supported: without an IOMMU the \
         addresses that the device uses cannot be known here. Add an IOMMU (in QEMU -device \
         intel-iommu or virtio-iommu)"
    )]
    NoIommuUnsupported(Address),
    /// The IOMMU does not remap interrupts, and vfio was told not to mind.
    #[error(
        "vfio_iommu_type1 allows unsafe interrupts: the device could raise any interrupt of this \
         machine. Turn that off (and interrupt remapping on: in QEMU intel-iommu,intremap=on), or \
         accept it with --allow-unsafe-interrupts"
    )]
    UnsafeInterrupts,
    /// The kernel refuses an IOMMU that does not remap interrupts.
    #[error(
        "the kernel does not let {0} be used: its IOMMU does not remap interrupts (in QEMU use \
         -machine kernel-irqchip=split and intel-iommu,intremap=on). To accept that the device can \
         raise any interrupt, load vfio_iommu_type1 with allow_unsafe_interrupts=1 and pass \
         --allow-unsafe-interrupts"
    )]
    NoRemapping(Address),
    /// A device node is not there.
    #[error("{} is missing; load the driver (modprobe vfio-pci), and in a container pass the node on", .0.display())]
    NoNode(PathBuf),
    /// A device node is not for us.
    #[error("no permission to open {}; run as root or give this user the node", .0.display())]
    Permission(PathBuf),
    /// Somebody else has it.
    #[error("{0} is in use by another program; only one can drive it")]
    Busy(Address),
    /// Other functions of the group are in other hands.
    #[error(
        "{address} shares IOMMU group {group} with {others}, which other drivers have; bind those \
         to vfio-pci too, or put the function on a bus of its own"
    )]
    NotViable {
        /// The function.
        address: Address,
        /// Its group.
        group: u32,
        /// The other members, with their drivers.
        others: String,
    },
    /// The kernel counts DMA memory as locked, and there is a limit.
    #[error(
        "cannot map {len:#x} bytes for DMA: {source}; the limit for locked memory (RLIMIT_MEMLOCK, \
         `ulimit -l`) is {limit} bytes: raise it"
    )]
    Memlock {
        /// Bytes asked for.
        len: usize,
        /// The limit.
        limit: u64,
        /// The kernel's reason.
        source: vfio_ioctls::VfioError,
    },
    /// There is no room left for DMA addresses.
    #[error("no {0:#x} bytes of DMA addresses are free")]
    NoIova(usize),
    /// The kernel's vfio failed in another way.
    #[error("vfio: {0}")]
    Kernel(#[from] vfio_ioctls::VfioError),
    /// The operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}
