//! The function as a driver sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_MMAP,
};
use zerocopy::IntoBytes;

use super::VfioUserError;
use super::client::{Client, Deadlines, Times, system};
use super::message::{
    Capability, DeviceInfo, DmaMap, DmaUnmap, HEADER_LEN, IrqInfo, RegionInfo, SetIrqs, Span,
    SparseMmap, command, read, split,
};
use crate::memory::{Area, Mapping, hugepage_size, page_size};
use crate::mmio::{RegisterAccess, Window};
use crate::pci::{DmaMemory, PciError, PciFunction};
use crate::socket::Frame;

/// Where DMA addresses begin: behind everything that a PC has below 4 GiB.
const FIRST_IOVA: u64 = 1 << 32;

/// BARs of a function.
const BARS: usize = 6;

/// Longest description of a region that is asked for, its capabilities included.
const MAX_REGION_INFO: u32 = 4096;

/// A function that a server at a socket has, driven by us.
///
/// When the server is gone, registers read as ones, writes go nowhere, and
/// [`PciFunction::hangup`] says so. [`PciFunction::reopen`] connects to the next one.
pub struct VfioUserFunction {
    name: String,
    path: PathBuf,
    deadlines: Deadlines,
    connection: Connection,
}

/// Everything that is lost with the connection.
struct Connection {
    client: Arc<Client>,
    resets: bool,
    config_len: u64,
    bars: [Region; BARS],
    vectors: u16,
    vectors_enabled: bool,
    dma: Vec<Dma>,
    next_iova: u64,
}

#[derive(Debug, Default)]
struct Region {
    size: u64,
    mappable: Option<Mappable>,
}

/// What of a region can be mapped.
#[derive(Debug)]
struct Mappable {
    file: OwnedFd,
    /// Where the region begins in the file.
    offset: u64,
    /// Parts of the region.
    spans: Vec<Span>,
}

/// Memory that the function can reach.
struct Dma {
    iova: u64,
    len: u64,
    /// Keeps the memory until the function cannot reach it any more.
    _bytes: Area,
}

impl VfioUserFunction {
    /// Connects to the server at `path`.
    pub fn connect(path: &Path) -> Result<Self, VfioUserError> {
        Self::with_times(path, Times::default())
    }

    pub(super) fn with_times(path: &Path, times: Times) -> Result<Self, VfioUserError> {
        let name = format!("vfio-user:{}", path.display());
        let deadlines = Deadlines::from(times);
        Ok(Self {
            connection: Connection::new(path, &name, deadlines.clone())?,
            name,
            path: path.to_owned(),
            deadlines,
        })
    }

    /// Takes leave of the server, if it is still there.
    fn leave(&mut self) {
        if let Err(error) = self.connection.close() {
            tracing::warn!(function = self.name, %error, "cannot leave the function quiet");
        }
    }

    /// Dies, as far as the server can tell.
    #[cfg(test)]
    pub(super) fn hang_up(&self) {
        self.connection.client.hang_up();
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

    fn failed(&self, what: &str) -> impl Fn(VfioUserError) -> PciError + use<> {
        let what = format!("cannot {what} {}", self.name);
        move |error| PciError::Io {
            what: what.clone(),
            source: io::Error::other(error),
        }
    }
}

impl Connection {
    fn new(path: &Path, name: &str, deadlines: Deadlines) -> Result<Self, VfioUserError> {
        let client = Client::connect(path, name, deadlines)?;
        let ask = DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            ..DeviceInfo::default()
        };
        let (info, _): (DeviceInfo, _) = client.ask(command::GET_INFO, ask.as_bytes())?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 || info.regions <= VFIO_PCI_CONFIG_REGION_INDEX {
            return Err(VfioUserError::Unfit {
                found: format!(
                    "a device with flags {:#x} and {} regions",
                    info.flags, info.regions
                ),
                expected: "a PCI function",
            });
        }
        let mut bars: [Region; BARS] = Default::default();
        for (bar, index) in bars.iter_mut().zip(0..) {
            *bar = region(&client, index)?;
        }
        let config = region(&client, VFIO_PCI_CONFIG_REGION_INDEX)?;
        let vectors = match info.irqs > VFIO_PCI_MSIX_IRQ_INDEX {
            false => 0,
            true => vectors(&client)?,
        };
        Ok(Self {
            client: Arc::new(client),
            resets: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            config_len: config.size,
            bars,
            vectors,
            vectors_enabled: false,
            dma: Vec::new(),
            next_iova: FIRST_IOVA,
        })
    }

    fn reset(&self) -> Result<(), VfioUserError> {
        match self.resets {
            true => self.client.request(command::RESET, &[], &[]).map(drop),
            false => Ok(()),
        }
    }

    fn map_dma(&mut self, len: usize) -> Result<DmaMemory, VfioUserError> {
        let (file, mapping, page) = shared_memory(len)?;
        let len = mapping.len() as u64;
        let iova = self.next_iova.next_multiple_of(page as u64);
        let map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            offset: 0,
            address: iova,
            size: len,
        };
        self.client
            .request(command::DMA_MAP, &[map.as_bytes()], &[file.as_fd()])?;
        self.next_iova = iova + len;
        let bytes = Area::from(mapping);
        self.dma.push(Dma {
            iova,
            len,
            _bytes: bytes.clone(),
        });
        Ok(DmaMemory { bytes, iova })
    }

    /// Lets `fds` be signalled by the vectors from 0 on, as many in one message as the server
    /// takes.
    fn set_vectors(&mut self, fds: &[OwnedFd]) -> Result<(), VfioUserError> {
        let most = self.client.max_fds();
        for (fds, start) in fds.chunks(most).zip((0..).step_by(most)) {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let set = SetIrqs {
                argsz: size_of::<SetIrqs>() as u32,
                flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                index: VFIO_PCI_MSIX_IRQ_INDEX,
                start,
                count: fds.len() as u32,
            };
            self.vectors_enabled = true;
            self.client
                .request(command::SET_IRQS, &[set.as_bytes()], &fds)?;
        }
        Ok(())
    }

    fn drop_vectors(&mut self) -> Result<(), VfioUserError> {
        if !std::mem::take(&mut self.vectors_enabled) {
            return Ok(());
        }
        let set = SetIrqs {
            argsz: size_of::<SetIrqs>() as u32,
            flags: VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
            index: VFIO_PCI_MSIX_IRQ_INDEX,
            start: 0,
            count: 0,
        };
        self.client
            .request(command::SET_IRQS, &[set.as_bytes()], &[])
            .map(drop)
    }

    fn unmap_dma(&mut self) -> Result<(), VfioUserError> {
        self.dma.drain(..).try_for_each(|dma| {
            let unmap = DmaUnmap {
                argsz: size_of::<DmaUnmap>() as u32,
                flags: 0,
                address: dma.iova,
                size: dma.len,
            };
            self.client
                .request(command::DMA_UNMAP, &[unmap.as_bytes()], &[])
                .map(drop)
        })
    }

    /// Leaves the function quiet, which stops doing DMA before its memory is taken away, and
    /// hangs up. Nothing is done twice, or to a function that is gone.
    fn close(&mut self) -> Result<(), VfioUserError> {
        if self.client.is_gone() {
            return Ok(());
        }
        let done = self
            .reset()
            .and_then(|()| self.drop_vectors())
            .and_then(|()| self.unmap_dma());
        self.client.hang_up();
        done
    }

    fn bar(&self, bar: u8) -> Option<&Region> {
        self.bars.get(usize::from(bar))
    }
}

/// What the server says about a region. One that it refuses to talk about is not there.
fn region(client: &Client, index: u32) -> Result<Region, VfioUserError> {
    let mut len = size_of::<RegionInfo>() as u32;
    let mut known = None;
    // Once more if there are capabilities, for which room has to be announced.
    for _ in 0..2 {
        let ask = RegionInfo {
            argsz: len,
            index,
            ..RegionInfo::default()
        };
        let (info, frame): (RegionInfo, _) =
            match client.ask(command::GET_REGION_INFO, ask.as_bytes()) {
                Err(VfioUserError::Refused { .. }) => return Ok(Region::default()),
                answer => answer?,
            };
        let enough = info.argsz <= len || info.argsz > MAX_REGION_INFO;
        len = info.argsz;
        known = Some((info, frame));
        if enough {
            break;
        }
    }
    Ok(known.map_or_else(Region::default, |(info, frame)| Region {
        size: info.size,
        mappable: mappable(&info, frame),
    }))
}

fn mappable(info: &RegionInfo, frame: Frame<HEADER_LEN>) -> Option<Mappable> {
    let file = frame.attached.into_iter().next()?;
    if info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return None;
    }
    let whole = vec![Span {
        offset: 0,
        size: info.size,
    }];
    Some(Mappable {
        file,
        offset: info.offset,
        spans: sparse(info, &frame.payload).unwrap_or(whole),
    })
}

/// The mappable parts, if the server says that not all of the region is. Every capability lies
/// behind the one before it.
fn sparse(info: &RegionInfo, bytes: &[u8]) -> Option<Vec<Span>> {
    let mut last = 0;
    let mut next = info.cap_offset as usize;
    while next > last {
        let (capability, body): (Capability, _) = split(bytes.get(next..)?)?;
        if u32::from(capability.id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let (head, spans): (SparseMmap, _) = split(body)?;
            let spans = spans.chunks_exact(size_of::<Span>()).map_while(read);
            return Some(spans.take(head.count as usize).collect());
        }
        last = next;
        next = capability.next as usize;
    }
    None
}

fn vectors(client: &Client) -> Result<u16, VfioUserError> {
    let ask = IrqInfo {
        argsz: size_of::<IrqInfo>() as u32,
        index: VFIO_PCI_MSIX_IRQ_INDEX,
        ..IrqInfo::default()
    };
    match client.ask::<IrqInfo>(command::GET_IRQ_INFO, ask.as_bytes()) {
        Err(VfioUserError::Refused { .. }) => Ok(0),
        // MSI-X has no more than 2048.
        answer => Ok(u16::try_from(answer?.0.count).unwrap_or(u16::MAX).min(2048)),
    }
}

/// Zeroed memory of at least `len` bytes in a file of its own: hugepages if there are some, else
/// ordinary ones. Nobody can make the file shorter, the server included, which gets it.
fn shared_memory(len: usize) -> Result<(OwnedFd, Mapping, usize), VfioUserError> {
    if let Some(page) = hugepage_size() {
        match memory_file(len, page, MemfdFlags::HUGETLB) {
            Ok((file, mapping)) => return Ok((file, mapping, page)),
            Err(error) => tracing::info!("DMA memory in ordinary pages: {error}"),
        }
    }
    let (file, mapping) = memory_file(len, page_size(), MemfdFlags::empty())?;
    Ok((file, mapping, page_size()))
}

fn memory_file(
    len: usize,
    page: usize,
    flags: MemfdFlags,
) -> Result<(OwnedFd, Mapping), VfioUserError> {
    let failed = system("cannot make shared memory");
    let len = len.next_multiple_of(page) as u64;
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("vvu-dma", flags).map_err(&failed)?;
    ftruncate(&file, len).map_err(&failed)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(&failed)?;
    let mapping = Mapping::of_file(file.as_fd(), 0, len)?;
    Ok((file, mapping))
}

impl PciFunction for VfioUserFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        data.fill(u8::MAX);
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        let room = self.connection.config_len.saturating_sub(offset.into());
        let len = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if let Some(data) = data.get_mut(..len) {
            self.connection.client.read(region, offset.into(), data);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        self.connection.client.write(region, offset.into(), data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.connection.bar(bar).map_or(0, |region| region.size)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        self.check_range(bar, offset, len)?;
        // Registers that can be mapped are memory to their server: it is not told of a write.
        // So they are asked for; only memory is mapped.
        let access = Arc::new(BarAccess {
            client: Arc::clone(&self.connection.client),
            bar: bar.into(),
        });
        Ok(Window::trapped(access, offset, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.check_range(bar, offset, len)?;
        let inside = |span: &Span| {
            let end = span.offset.saturating_add(span.size);
            offset >= span.offset && offset.saturating_add(len) <= end
        };
        let mappable = self
            .connection
            .bar(bar)
            .and_then(|region| region.mappable.as_ref())
            .filter(|mappable| mappable.spans.iter().any(inside))
            .ok_or(PciError::NotMappable { bar, offset, len })?;
        let start = mappable.offset.saturating_add(offset);
        Mapping::of_file(mappable.file.as_fd(), start, len)
            .map(Area::from)
            .map_err(|error| self.failed(&format!("map BAR {bar} of"))(error.into()))
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let failed = self.failed("give memory to");
        self.connection.map_dma(len).map_err(failed)
    }

    fn vectors(&self) -> u16 {
        self.connection.vectors
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        if count == 0 || count > self.vectors() {
            return Err(PciError::Vectors {
                asked: count,
                available: self.vectors(),
            });
        }
        let failed = self.failed("enable MSI-X of");
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| eventfd(0, flags))
            .collect::<Result<_, _>>()
            .map_err(|errno| failed(system("cannot create event descriptors")(errno)))?;
        self.connection.set_vectors(&fds).map_err(failed)?;
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        self.connection.reset().map_err(self.failed("reset"))
    }

    fn hangup(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connection.client.fd())
    }

    fn reopen(&mut self) -> Result<bool, PciError> {
        self.leave();
        let connection = Connection::new(&self.path, &self.name, self.deadlines.clone())
            .map_err(self.failed("open"))?;
        self.connection = connection;
        Ok(true)
    }
}

impl Drop for VfioUserFunction {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Registers of one BAR.
#[derive(Debug)]
struct BarAccess {
    client: Arc<Client>,
    bar: u32,
}

impl RegisterAccess for BarAccess {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.client.read(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.client.write(self.bar, offset, data);
    }
}
