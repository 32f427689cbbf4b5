//! The door in this process: a modelled function as a driver uses it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Model, kicks};
use crate::memory::{Area, Mapping};
use crate::mmio::{RegisterAccess, Window};
use crate::pci::{DmaMemory, PciError, PciFunction};

/// Where the addresses begin that the function uses for our memory.
const FIRST_IOVA: u64 = 1 << 32;
/// Distance that ranges keep.
const IOVA_STEP: u64 = 2 << 20;

/// A driver's hold of a model.
#[derive(Debug)]
pub(super) struct ModelFunction {
    model: Model,
    next_iova: u64,
    /// What was mapped for the function: address and length.
    mapped: Vec<(u64, u64)>,
    enabled: u16,
}

impl ModelFunction {
    pub(super) fn new(model: Model) -> Self {
        Self {
            model,
            next_iova: FIRST_IOVA,
            mapped: Vec::new(),
            enabled: 0,
        }
    }

    fn check(&self, bar: u8, offset: u64, len: u64) -> Result<(), PciError> {
        let size = self.bar_size(bar);
        match offset.checked_add(len) {
            Some(end) if end <= size && len > 0 => Ok(()),
            _ => Err(PciError::NoSuchBar {
                bar,
                offset,
                len,
                size,
            }),
        }
    }
}

fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> PciError {
    PciError::Io {
        what: what.to_owned(),
        source: std::io::Error::other(error),
    }
}

impl PciFunction for ModelFunction {
    fn name(&self) -> &str {
        "model"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.model.read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.model.write_config(offset, data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.model.bar_size(bar)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        self.check(bar, offset, len)?;
        let access = Arc::new(Registers {
            model: self.model.clone(),
            bar,
        });
        Ok(Window::trapped(access, offset, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.check(bar, offset, len)?;
        self.model
            .map_bar(bar, offset, len)
            .ok_or(PciError::NoSuchBar {
                bar,
                offset,
                len,
                size: self.bar_size(bar),
            })
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let mapping = Mapping::huge(len).or_else(|_| Mapping::anonymous(len));
        let bytes = Area::from(mapping.map_err(|error| failed("DMA memory", error))?);
        let (iova, len) = (self.next_iova, bytes.len() as u64);
        self.model
            .map_dma(iova, bytes.clone())
            .map_err(|error| failed("DMA map", error))?;
        self.mapped.push((iova, len));
        self.next_iova = (iova + len).next_multiple_of(IOVA_STEP);
        Ok(DmaMemory { bytes, iova })
    }

    fn vectors(&self) -> u16 {
        self.model.vectors()
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        let available = self.vectors();
        if count > available {
            return Err(PciError::Vectors {
                asked: count,
                available,
            });
        }
        let mut fds = Vec::with_capacity(count.into());
        for vector in 0..count {
            let fd = kicks::event().map_err(|errno| failed("vectors", errno))?;
            let ours = fd.try_clone().map_err(|error| failed("vectors", error))?;
            self.model.set_vector(vector, Some(ours));
            fds.push(fd);
        }
        for vector in count..self.enabled {
            self.model.set_vector(vector, None);
        }
        self.enabled = count;
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        self.model.reset();
        Ok(())
    }
}

impl Drop for ModelFunction {
    fn drop(&mut self) {
        self.model.reset();
        for vector in 0..self.enabled {
            self.model.set_vector(vector, None);
        }
        for (iova, len) in &self.mapped {
            if let Err(error) = self.model.unmap_dma(*iova, *len) {
                tracing::warn!(%error, "cannot take DMA memory back");
            }
        }
    }
}

/// Registers of one BAR.
#[derive(Debug)]
struct Registers {
    model: Model,
    bar: u8,
}

impl RegisterAccess for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.model.read_bar(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.model.write_bar(self.bar, offset, data);
    }
}
