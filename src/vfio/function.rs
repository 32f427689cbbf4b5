//! The function itself.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;

use super::dma::Iovas;
use super::{VfioError, VfioOptions, check};
use crate::memory::{Area, Mapping, page_size};
use crate::mmio::{RegisterAccess, Window};
use crate::pci::sysfs::Sysfs;
use crate::pci::{Address, DmaMemory, PciError, PciFunction};

/// A function bound to vfio-pci, opened by us.
pub struct VfioFunction {
    name: String,
    iovas: Iovas,
    dma: Vec<Dma>,
    vectors: u16,
    vectors_enabled: bool,
    device: Arc<VfioDevice>,
    container: Arc<VfioContainer>,
}

/// Memory that the function can reach.
struct Dma {
    iova: u64,
    len: usize,
    /// Keeps the memory until the function cannot reach it any more.
    _bytes: Area,
}

impl VfioFunction {
    /// Opens the function at `address`, which must be bound to vfio-pci.
    pub fn open(address: Address, options: VfioOptions) -> Result<Self, VfioError> {
        let sysfs = Sysfs::default();
        let info = sysfs.info(address)?;
        let group = check::before(&info, options)?;
        let path = sysfs.path(address);
        let explain = |error| check::explain(error, &info, &group, &sysfs);
        let container = Arc::new(VfioContainer::new(None).map_err(explain)?);
        let device = VfioDevice::new(&path, container.clone(), true).map_err(explain)?;
        let vectors = device
            .get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX)
            .map_or(0, |irq| u16::try_from(irq.count).unwrap_or(u16::MAX));
        Ok(Self {
            name: address.to_string(),
            iovas: Iovas::of_group(&path),
            dma: Vec::new(),
            vectors,
            vectors_enabled: false,
            device: Arc::new(device),
            container,
        })
    }

    /// Whether the kernel lets this range of a BAR be mapped: not all of it needs to be.
    fn mappable(&self, bar: u8, offset: u64, len: u64) -> bool {
        let index = u32::from(bar);
        if self.device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return false;
        }
        let inside = |start: u64, size: u64| {
            offset >= start && offset.saturating_add(len) <= start.saturating_add(size)
        };
        self.device
            .get_region_caps(index)
            .iter()
            .find_map(|cap| match cap {
                VfioRegionInfoCap::SparseMmap(sparse) => Some(
                    sparse
                        .areas
                        .iter()
                        .any(|area| inside(area.offset, area.size)),
                ),
                _ => None,
            })
            .unwrap_or(true)
    }

    fn check_range(&self, bar: u8, offset: u64, len: u64) -> Result<(), PciError> {
        let size = self.bar_size(bar);
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= size => Ok(()),
            _ => Err(PciError::NoSuchBar {
                bar,
                offset,
                len,
                size,
            }),
        }
    }

    fn map(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        // SAFETY: the device owns its descriptor and lives as long as the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        let start = self.device.get_region_offset(bar.into());
        let mapped = Mapping::of_device(fd, start.saturating_add(offset), len);
        mapped.map(Area::from).map_err(|error| PciError::Io {
            what: format!("cannot map BAR {bar} of {}", self.name),
            source: io::Error::other(error),
        })
    }

    fn map_dma(&mut self, bytes: &Area, align: usize) -> Result<u64, VfioError> {
        let len = bytes.len().next_multiple_of(page_size());
        let iova = self
            .iovas
            .take(len as u64, align as u64)
            .ok_or(VfioError::NoIova(len))?;
        let pointer = std::ptr::with_exposed_provenance_mut(bytes.address());
        // SAFETY: the range is a mapping of our own, rounded up to the pages it consists of. It
        // is only reached through VolatileSlice, never by reference, and `dma` keeps it until
        // it has been unmapped.
        let mapped = unsafe { self.container.vfio_dma_map(iova, len, pointer) };
        mapped.map_err(|source| match source {
            vfio_ioctls::VfioError::IommuDmaMap(errno) if errno.errno() == libc::ENOMEM => {
                VfioError::Memlock {
                    len,
                    limit: memlock_limit(),
                    source,
                }
            }
            source => VfioError::Kernel(source),
        })?;
        self.dma.push(Dma {
            iova,
            len,
            _bytes: bytes.clone(),
        });
        Ok(iova)
    }

    fn disable_vectors(&mut self) {
        if std::mem::take(&mut self.vectors_enabled)
            && let Err(error) = self.device.disable_msix()
        {
            tracing::warn!(function = self.name, %error, "cannot disable MSI-X");
        }
    }
}

fn memlock_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Memlock)
        .current
        .unwrap_or(u64::MAX)
}

/// Hugepages if there are some, else ordinary pages; the alignment that suits them.
fn dma_memory(len: usize) -> Result<(Mapping, usize), PciError> {
    match Mapping::huge(len) {
        Ok(mapping) => Ok((
            mapping,
            crate::memory::hugepage_size().unwrap_or(page_size()),
        )),
        Err(error) => {
            tracing::info!("DMA memory in ordinary pages: {error}");
            let mapping = Mapping::anonymous(len).map_err(|error| PciError::Io {
                what: "cannot get memory for DMA".to_owned(),
                source: io::Error::other(error),
            })?;
            Ok((mapping, page_size()))
        }
    }
}

impl PciFunction for VfioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        data.fill(u8::MAX);
        let index = VFIO_PCI_CONFIG_REGION_INDEX;
        let room = self
            .device
            .get_region_size(index)
            .saturating_sub(offset.into());
        let len = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if let Some(data) = data.get_mut(..len) {
            self.device.region_read(index, data, offset.into());
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.device
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, data, offset.into());
    }

    fn bar_size(&self, bar: u8) -> u64 {
        match bar {
            0..=5 => self.device.get_region_size(bar.into()),
            _ => 0,
        }
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        self.check_range(bar, offset, len)?;
        if self.mappable(bar, offset, len) {
            match self.map(bar, offset, len) {
                Ok(area) => return Ok(Window::mapped(area)),
                // Kernels before 4.16 do not map the pages around an MSI-X table.
                Err(error) => tracing::debug!("{error}; its registers are read and written"),
            }
        }
        let access = Arc::new(BarAccess {
            device: self.device.clone(),
            bar: bar.into(),
        });
        Ok(Window::trapped(access, offset, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.check_range(bar, offset, len)?;
        self.map(bar, offset, len)
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let (mapping, align) = dma_memory(len)?;
        let bytes = Area::from(mapping);
        let iova = self.map_dma(&bytes, align).map_err(|error| PciError::Io {
            what: format!("cannot give memory to {}", self.name),
            source: io::Error::other(error),
        })?;
        Ok(DmaMemory { bytes, iova })
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        if count == 0 || count > self.vectors {
            return Err(PciError::Vectors {
                asked: count,
                available: self.vectors,
            });
        }
        let failed = |what: &str, source: io::Error| PciError::Io {
            what: format!("cannot {what} for {}", self.name),
            source,
        };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| eventfd(0, flags))
            .collect::<Result<_, _>>()
            .map_err(|error| failed("create event descriptors", error.into()))?;
        // vfio-ioctls wants its own type; the kernel keeps a reference of its own.
        let events: Vec<EventFd> = fds
            .iter()
            .map(|fd| Ok(event_fd(fd.try_clone()?)))
            .collect::<io::Result<_>>()
            .map_err(|error| failed("copy event descriptors", error))?;
        self.device
            .enable_msix(events.iter().collect())
            .map_err(|error| failed("enable MSI-X", io::Error::other(error)))?;
        self.vectors_enabled = true;
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        // Without FLR or another reset this does nothing; virtio's own reset is what counts.
        self.device.reset();
        Ok(())
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // First it stops doing DMA, then its memory is taken away.
        self.device.reset();
        self.disable_vectors();
        for dma in self.dma.drain(..) {
            if let Err(error) = self.container.vfio_dma_unmap(dma.iova, dma.len) {
                tracing::warn!(function = self.name, %error, "cannot unmap DMA memory");
            }
        }
    }
}

fn event_fd(fd: OwnedFd) -> EventFd {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor is an eventfd, and ownership passes from one type to the other.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// Registers that the kernel does not let be mapped.
struct BarAccess {
    device: Arc<VfioDevice>,
    bar: u32,
}

impl std::fmt::Debug for BarAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BarAccess({})", self.bar)
    }
}

impl RegisterAccess for BarAccess {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::MAX);
        self.device.region_read(self.bar, data, offset);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.region_write(self.bar, data, offset);
    }
}
