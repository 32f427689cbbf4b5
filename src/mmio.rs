//! Typed registers; the only volatile access to a device.
//!
//! A [`Window`] is a range of a PCI function's registers: mapped into this process, or reached by
//! messages to whoever emulates the function. [`Window::register`] checks a register's place and
//! alignment once; after that an access cannot fail. What may be done with a register is part of
//! its type: a [`ReadOnly`] register has no `write`.
//!
//! All values are little-endian on the bus (VIRTIO 1.2, 4.1.1) and native here.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::Bytes;

use crate::memory::Area;

/// Registers that cannot be mapped and are read and written by asking.
///
/// Offsets count from the start of whatever the implementor serves (a BAR). `data` is 1, 2, 4 or
/// 8 bytes and one access of that width; bytes are in bus (little-endian) order.
pub trait RegisterAccess: Send + Sync + std::fmt::Debug {
    /// Reads `data.len()` bytes at `offset`. A failed read gives all ones, as a PCI bus does.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

#[derive(Debug, Clone)]
enum Backing {
    Mapped(Area),
    Trapped {
        access: Arc<dyn RegisterAccess>,
        base: u64,
    },
}

/// A range of a function's registers.
#[derive(Debug, Clone)]
pub struct Window {
    backing: Backing,
    len: u64,
}

impl Window {
    /// Registers mapped into this process.
    pub fn mapped(area: Area) -> Self {
        Self {
            len: area.len() as u64,
            backing: Backing::Mapped(area),
        }
    }

    /// `len` bytes of registers from `base` on, reached through `access`.
    pub fn trapped(access: Arc<dyn RegisterAccess>, base: u64, len: u64) -> Self {
        Self {
            backing: Backing::Trapped { access, base },
            len,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the window has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The register of type `T` at `offset`; `None` if it is not wholly inside the window or not
    /// naturally aligned.
    pub fn register<T: Value, A>(&self, offset: u64) -> Option<Reg<T, A>> {
        let size = size_of::<T>() as u64;
        let end = offset.checked_add(size)?;
        if end > self.len || !offset.is_multiple_of(size) {
            return None;
        }
        let backing = match &self.backing {
            Backing::Mapped(area) => {
                let area = area.sub(usize::try_from(offset).ok()?, size as usize)?;
                if !(area.address() as u64).is_multiple_of(size) {
                    return None;
                }
                Backing::Mapped(area)
            }
            Backing::Trapped { access, base } => Backing::Trapped {
                access: Arc::clone(access),
                base: base.checked_add(offset)?,
            },
        };
        Some(Reg {
            backing,
            kind: PhantomData,
        })
    }

    /// Copies `data.len()` bytes from `offset` on, byte by byte: for identifiers, not for
    /// registers with side effects. Bytes outside the window read as ones.
    pub fn read_bytes(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self
                .register::<u8, ReadOnly>(at)
                .map_or(u8::MAX, |register| register.read());
        }
    }
}

/// A register may only be read.
#[derive(Debug, Clone, Copy)]
pub struct ReadOnly;
/// A register may only be written.
#[derive(Debug, Clone, Copy)]
pub struct WriteOnly;
/// A register may be read and written.
#[derive(Debug, Clone, Copy)]
pub struct ReadWrite;

/// Access kinds that allow reading.
pub trait Readable {}
/// Access kinds that allow writing.
pub trait Writable {}
impl Readable for ReadOnly {}
impl Readable for ReadWrite {}
impl Writable for WriteOnly {}
impl Writable for ReadWrite {}

/// A value that a register can hold: `u8`, `u16` or `u32`. (VIRTIO's 64-bit fields are accessed
/// as two 32-bit ones, 4.1.3.1.)
pub trait Value: Copy + private::Sealed {
    /// The value whose bytes are all ones: what a bus returns when nobody answers.
    const ONES: Self;
}

mod private {
    pub trait Sealed: vm_memory::AtomicAccess {
        fn from_le_bytes_slice(bytes: &[u8; 4]) -> Self;
        fn to_le_bytes_array(self) -> [u8; 4];
        fn swap_to_bus(self) -> Self;
    }
    macro_rules! values {
        ($($t:ty)*) => {$(
            impl super::Value for $t {
                const ONES: Self = <$t>::MAX;
            }
            impl Sealed for $t {
                fn from_le_bytes_slice(bytes: &[u8; 4]) -> Self {
                    u32::from_le_bytes(*bytes) as $t
                }
                fn to_le_bytes_array(self) -> [u8; 4] {
                    u32::from(self).to_le_bytes()
                }
                fn swap_to_bus(self) -> Self {
                    <$t>::from_le(self)
                }
            }
        )*};
    }
    values!(u8 u16 u32);
}

/// One register of type `T`, with the access kind `A`.
#[derive(Debug)]
pub struct Reg<T, A> {
    backing: Backing,
    kind: PhantomData<fn() -> (T, A)>,
}

impl<T, A> Clone for Reg<T, A> {
    fn clone(&self) -> Self {
        Self {
            backing: self.backing.clone(),
            kind: PhantomData,
        }
    }
}

impl<T: Value, A: Readable> Reg<T, A> {
    /// Reads the register, once and with its own width.
    pub fn read(&self) -> T {
        match &self.backing {
            // A relaxed atomic load of an aligned integer is exactly one access of its width.
            Backing::Mapped(area) => area
                .slice()
                .load::<T>(0, Ordering::Relaxed)
                .map_or(T::ONES, private::Sealed::swap_to_bus),
            Backing::Trapped { access, base } => {
                let mut bytes = [0; 4];
                access.read(*base, &mut bytes[..size_of::<T>()]);
                T::from_le_bytes_slice(&bytes)
            }
        }
    }
}

impl<T: Value, A: Writable> Reg<T, A> {
    /// Writes the register, once and with its own width.
    pub fn write(&self, value: T) {
        match &self.backing {
            Backing::Mapped(area) => {
                // Cannot fail: place and alignment were checked when the register was made.
                let _ = area
                    .slice()
                    .store(value.swap_to_bus(), 0, Ordering::Relaxed);
            }
            Backing::Trapped { access, base } => {
                access.write(*base, &value.to_le_bytes_array()[..size_of::<T>()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::Mapping;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Log(Mutex<Vec<(u64, Vec<u8>)>>);
    impl RegisterAccess for Log {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn a_register_is_inside_and_aligned_or_does_not_exist() {
        let window = Window::mapped(Mapping::anonymous(0x1000).unwrap().into());
        assert!(window.register::<u32, ReadWrite>(0xffc).is_some());
        assert!(window.register::<u32, ReadWrite>(0xffd).is_none());
        assert!(window.register::<u32, ReadWrite>(0x1000).is_none());
        assert!(window.register::<u16, ReadWrite>(1).is_none());
        assert!(window.register::<u8, ReadWrite>(u64::MAX).is_none());
    }

    #[test]
    fn both_backings_have_the_same_byte_order_and_width() {
        let window = Window::mapped(Mapping::anonymous(0x1000).unwrap().into());
        window
            .register::<u32, WriteOnly>(8)
            .unwrap()
            .write(0x0403_0201);
        let mut bytes = [0; 4];
        window.read_bytes(8, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(window.register::<u16, ReadOnly>(10).unwrap().read(), 0x0403);

        let log = Arc::new(Log::default());
        let window = Window::trapped(log.clone(), 0x100, 0x10);
        window.register::<u16, WriteOnly>(2).unwrap().write(0x0201);
        assert_eq!(*log.0.lock().unwrap(), [(0x102, vec![1, 2])]);
        assert_eq!(window.register::<u16, ReadOnly>(4).unwrap().read(), 0x0404);
        let mut outside = [0; 2];
        window.read_bytes(0xf, &mut outside);
        assert_eq!(outside, [0x0f, 0xff]);
    }
}
