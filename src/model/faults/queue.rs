//! Used rings that lie, and buffers that are treated as badly as the drafts allow.

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{Buffer, DeviceQueue, Dma, Fault, Faults, QueueError};

/// Bytes in front of the used ring, and where among them the index is.
const USED_HEAD: u64 = 4;
const USED_INDEX: u64 = 2;

/// What a driver gives the longest message that there can be.
const RX_LEN: u64 = 8192;

impl Faults {
    /// The next buffer of rxq. The cruel takes the one that was offered last.
    pub(in crate::model) fn take_rx(
        &self,
        queue: &mut DeviceQueue,
        dma: &Dma,
    ) -> Result<Option<Buffer>, QueueError> {
        let mut inner = self.lock();
        if !inner.cruel {
            return queue.take(dma, true);
        }
        while let Some(buffer) = queue.take(dma, true)? {
            // It is the device's now: whoever still reads it reads this.
            buffer.write(dma, &vec![0xdb; buffer.len as usize])?;
            if let (true, Some(watcher)) = (buffer.len < RX_LEN, &mut inner.watcher) {
                watcher.violate(format!("a buffer of {} bytes in rxq", buffer.len));
            }
            inner.pool.push(buffer);
        }
        Ok(inner.pool.pop())
    }

    /// Gives a buffer back; whether the driver is to be interrupted.
    pub(in crate::model) fn give(
        &self,
        index: usize,
        queue: &mut DeviceQueue,
        dma: &Dma,
        head: u16,
        len: u32,
    ) -> Result<bool, QueueError> {
        let (fault, cruel) = {
            let inner = self.lock();
            (inner.fault, inner.cruel)
        };
        let id = u32::from(head);
        let (id, len, advance) = match (index, fault) {
            (0, Some(Fault::RxLength(lie))) => (id, lie, 1),
            (0, Some(Fault::RxId(lie))) => (lie, len, 1),
            (0, Some(Fault::RxAdvance(lie))) => (id, len, lie),
            (0, Some(Fault::RxTwice)) => (id, len, 2),
            (1, Some(Fault::TxLength(lie))) => (id, lie, 1),
            (1, Some(Fault::TxId(lie))) => (lie, len, 1),
            (1, Some(Fault::TxAdvance(lie))) => (id, len, lie),
            (1, _) if cruel => (id, u32::MAX, 1),
            _ => return queue.give(dma, head, len),
        };
        let ring = &mut queue.queue;
        let next = ring.next_used();
        let element = [id.to_le_bytes(), len.to_le_bytes()];
        for nth in 0..advance.min(2) {
            let slot = next.wrapping_add(nth) % ring.size();
            let at = ring.used_ring() + USED_HEAD + 8 * u64::from(slot);
            dma.write_slice(element.as_flattened(), GuestAddress(at))?;
        }
        let next = next.wrapping_add(advance);
        ring.set_next_used(next);
        // The store behind the elements: it is what the driver acquires.
        let at = GuestAddress(ring.used_ring() + USED_INDEX);
        dma.store(next.to_le(), at, std::sync::atomic::Ordering::Release)?;
        Ok(ring.needs_notification(dma)?)
    }
}
