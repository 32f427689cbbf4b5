//! A function that is watched on its way to the driver, and made to differ where a case says so.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::Bytes;
use vvu::memory::Area;
use vvu::mmio::{ReadWrite, RegisterAccess, Window};
use vvu::pci::{CONFIG_LEN, DmaMemory, Location, PciError, PciFunction};

use crate::driver::common;
use crate::front_end::eventfd;

/// A change of configuration space.
type ConfigChange = Arc<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// What is different from the function that is watched.
#[derive(Clone, Default)]
pub(crate) struct Change {
    /// Its configuration space.
    pub(crate) config: Option<ConfigChange>,
    /// A vector whose interrupts get lost.
    pub(crate) silent: Option<u16>,
    /// It has no more vectors than this.
    pub(crate) vectors: Option<u16>,
    /// A register that reads as ones.
    pub(crate) ones: Option<(u8, u64)>,
}

/// One store of the driver's to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) bar: u8,
    pub(crate) offset: u64,
    pub(crate) width: usize,
    pub(crate) value: u32,
}

impl Store {
    /// Whether it goes to this structure; and where in it.
    pub(crate) fn inside(&self, place: Location) -> Option<u64> {
        let offset = self.offset.checked_sub(place.offset)?;
        let there = self.bar == place.bar && place.length.is_none_or(|len| offset < len);
        there.then_some(offset)
    }
}

/// What there is to see at an access.
pub(crate) struct View<'a> {
    /// Stores before this access.
    pub(crate) stores: &'a [Store],
    /// The driver's memory.
    pub(crate) memory: &'a [DmaMemory],
}

impl View<'_> {
    /// `len` bytes of the driver's memory at an address that the device uses.
    fn bytes(&self, iova: u64, len: usize) -> Area {
        let found = self.memory.iter().find_map(|memory| {
            let offset = iova.checked_sub(memory.iova)?;
            memory.bytes.sub(usize::try_from(offset).ok()?, len)
        });
        found.expect("an address of DMA memory")
    }

    /// A queue, as the driver set it up by its stores to the common configuration.
    pub(crate) fn queue(&self, common: Location, index: u32) -> Queue<'_> {
        let mut select = 0;
        let mut queue = Queue {
            view: self,
            size: 0,
            addresses: [0; 3],
        };
        for store in self.stores {
            match store.inside(common) {
                Some(common::QUEUE_SELECT) => select = store.value,
                Some(common::QUEUE_SIZE) if select == index => queue.size = store.value as u16,
                Some(at @ 0x20..0x38) if select == index => {
                    let address = &mut queue.addresses[(at as usize - 0x20) / 8];
                    let shift = (at & 4) * 8;
                    *address &= !(0xffff_ffff << shift);
                    *address |= u64::from(store.value) << shift;
                }
                _ => {}
            }
        }
        queue
    }
}

/// rxq or txq in the driver's memory.
pub(crate) struct Queue<'a> {
    view: &'a View<'a>,
    pub(crate) size: u16,
    /// Descriptors, available ring, used ring.
    addresses: [u64; 3],
}

impl Queue<'_> {
    fn word(&self, at: u64) -> u16 {
        self.view.bytes(at, 2).slice().read_obj(0).unwrap()
    }

    /// The driver's index.
    pub(crate) fn available(&self) -> u16 {
        self.word(self.addresses[1] + 2)
    }

    /// The device's index.
    pub(crate) fn used(&self) -> u16 {
        self.word(self.addresses[2] + 2)
    }

    /// Address, length and flags of the descriptor in an entry of the available ring.
    pub(crate) fn offered(&self, entry: u16) -> (u64, u32, u16) {
        let slot = self.addresses[1] + 4 + 2 * u64::from(entry % self.size);
        let at = self.addresses[0] + 16 * u64::from(self.word(slot));
        let descriptor = self.view.bytes(at, 16);
        let descriptor = descriptor.slice();
        (
            descriptor.read_obj(0).unwrap(),
            descriptor.read_obj(8).unwrap(),
            descriptor.read_obj(12).unwrap(),
        )
    }

    /// The bytes of a buffer.
    pub(crate) fn buffer(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let area = self.view.bytes(address, bytes.len());
        area.slice().read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    /// Overwrites the lengths that the device says it has written.
    pub(crate) fn spoil_lengths(&self) {
        for slot in 0..u64::from(self.size) {
            let length = self.view.bytes(self.addresses[2] + 4 + 8 * slot + 4, 4);
            length.slice().write_obj(u32::MAX, 0).unwrap();
        }
    }
}

type Hook = Box<dyn FnMut(&View<'_>, Option<&Store>) + Send>;

#[derive(Default)]
struct Seen {
    stores: Vec<Store>,
    memory: Vec<DmaMemory>,
    /// What happens before the driver's next access to a register.
    hook: Option<Hook>,
}

/// The case's side of a watched function.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        // A case that has failed in a hook still has a driver to be dropped.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's stores so far, in order.
    pub(crate) fn stores(&self) -> Vec<Store> {
        self.lock().stores.clone()
    }

    /// Forgets them.
    pub(crate) fn forget(&self) {
        self.lock().stores.clear();
    }

    /// From now on this happens before each access to a register; a store is shown.
    pub(crate) fn before_access(
        &self,
        hook: impl FnMut(&View<'_>, Option<&Store>) + Send + 'static,
    ) {
        self.lock().hook = Some(Box::new(hook));
    }

    /// Looks at what there is to see now.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&View<'_>) -> T) -> T {
        let seen = self.lock();
        at(&View {
            stores: &seen.stores,
            memory: &seen.memory,
        })
    }

    fn accessed(&self, store: Option<Store>) {
        let mut seen = self.lock();
        let Seen {
            stores,
            memory,
            hook,
        } = &mut *seen;
        if let Some(hook) = hook
            && !std::thread::panicking()
        {
            hook(&View { stores, memory }, store.as_ref());
        }
        stores.extend(store);
    }
}

/// The driver's side of it.
pub(crate) struct Watched {
    inner: Box<dyn PciFunction>,
    change: Change,
    watch: Watch,
}

impl Watched {
    pub(crate) fn new(inner: Box<dyn PciFunction>, change: Change) -> (Watch, Self) {
        let watch = Watch::default();
        let watched = Self {
            inner,
            change,
            watch: watch.clone(),
        };
        (watch, watched)
    }
}

impl PciFunction for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.inner.read_config(offset, data);
        if let Some(change) = &self.change.config {
            let mut space = vec![0; CONFIG_LEN];
            self.inner.read_config(0, &mut space);
            change(&mut space);
            let changed = space.iter().skip(offset.into());
            data.iter_mut()
                .zip(changed)
                .for_each(|(to, from)| *to = *from);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.inner.write_config(offset, data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.inner.bar_size(bar)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        let registers = Registers {
            inner: self.inner.registers(bar, offset, len)?,
            bar,
            base: offset,
            ones: self.change.ones,
            watch: self.watch.clone(),
        };
        Ok(Window::trapped(Arc::new(registers), 0, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.inner.map_bar(bar, offset, len)
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let memory = self.inner.alloc_dma(len)?;
        self.watch.lock().memory.push(memory.clone());
        Ok(memory)
    }

    fn vectors(&self) -> u16 {
        let vectors = self.inner.vectors();
        self.change
            .vectors
            .map_or(vectors, |most| most.min(vectors))
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        let mut vectors = self.inner.enable_vectors(count)?;
        if let Some(silent) = self.change.silent
            && let Some(vector) = vectors.get_mut(usize::from(silent))
        {
            *vector = eventfd();
        }
        Ok(vectors)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        self.inner.reset()
    }
}

/// Registers of a BAR from `base` on.
#[derive(Debug)]
struct Registers {
    inner: Window,
    bar: u8,
    base: u64,
    ones: Option<(u8, u64)>,
    watch: Watch,
}

impl RegisterAccess for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.watch.accessed(None);
        if self.ones == Some((self.bar, self.base + offset)) {
            return data.fill(u8::MAX);
        }
        let value = match data.len() {
            1 => self
                .inner
                .register::<u8, ReadWrite>(offset)
                .map(|reg| reg.read().into()),
            2 => self
                .inner
                .register::<u16, ReadWrite>(offset)
                .map(|reg| reg.read().into()),
            _ => self
                .inner
                .register::<u32, ReadWrite>(offset)
                .map(|reg| reg.read()),
        };
        let bytes = value.expect("a register").to_le_bytes();
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = data
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.watch.accessed(Some(Store {
            bar: self.bar,
            offset: self.base + offset,
            width: data.len(),
            value,
        }));
        let done = match data.len() {
            1 => self
                .inner
                .register(offset)
                .map(|reg: Reg8| reg.write(value as u8)),
            2 => self
                .inner
                .register(offset)
                .map(|reg: Reg16| reg.write(value as u16)),
            _ => self
                .inner
                .register(offset)
                .map(|reg: Reg32| reg.write(value)),
        };
        done.expect("a register");
    }
}

type Reg8 = vvu::mmio::Reg<u8, ReadWrite>;
type Reg16 = vvu::mmio::Reg<u16, ReadWrite>;
type Reg32 = vvu::mmio::Reg<u32, ReadWrite>;
