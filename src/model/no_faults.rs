//! The place of `faults` in production: nothing is ever wrong.

use super::layout::Kind;
use super::queues::{Buffer, DeviceQueue, Dma, QueueError};

/// Nothing.
#[derive(Debug)]
pub(super) struct Faults;

impl Faults {
    pub(super) fn new() -> Self {
        Self
    }

    pub(super) fn config(&self, _bytes: &mut [u8]) {}
    pub(super) fn wrote_config(&self, _offset: u16, _data: &[u8]) {}
    pub(super) fn read(&self, _place: Option<(Kind, u64)>, _data: &mut [u8]) {}

    pub(super) fn write(&self, place: Option<(Kind, u64)>, _data: &[u8]) -> Option<(Kind, u64)> {
        place
    }

    pub(super) fn is_gone(&self) -> bool {
        false
    }

    pub(super) fn storms(&self) -> bool {
        false
    }

    pub(super) fn is_mute(&self) -> bool {
        false
    }

    pub(super) fn holds_rx(&self) -> bool {
        false
    }

    pub(super) fn is_late(&self) -> bool {
        false
    }

    pub(super) fn holds_tx(&self) -> bool {
        false
    }

    pub(super) fn is_early(&self) -> bool {
        false
    }

    pub(super) fn is_stale(&self) -> bool {
        false
    }

    pub(super) fn hangs_up(&self) -> bool {
        false
    }

    pub(super) fn reset(&self) {}
    pub(super) fn function_reset(&self) {}

    pub(super) fn take_rx(
        &self,
        queue: &mut DeviceQueue,
        dma: &Dma,
    ) -> Result<Option<Buffer>, QueueError> {
        queue.take(dma, true)
    }

    pub(super) fn give(
        &self,
        _index: usize,
        queue: &mut DeviceQueue,
        dma: &Dma,
        head: u16,
        len: u32,
    ) -> Result<bool, QueueError> {
        queue.give(dma, head, len)
    }
}
