//! Registers: common configuration, device configuration, interrupt status, notifications and the
//! notification selector (VIRTIO 1.2, 4.1.4; docs/device.md, "registers").
//!
//! Any width is answered. Reads see an image of the structure; writes are cut into the fields that
//! they cover as a whole.

use virtio_queue::QueueT;

use super::device::Locked;
use super::kicks::Bell;
use super::layout::{Kind, NOTIFY_MULTIPLIER};
use super::shape::Dialect;
use super::{NO_VECTOR, Shared, device_status as status, feature};

/// Copies what there is from `offset` on; zeroes where there is nothing.
pub(super) fn copy(bytes: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = bytes.get(offset..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}

/// The first bytes of a write, as a number.
fn number(data: &[u8]) -> u32 {
    data.iter()
        .take(4)
        .rev()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Length of the field of the common configuration that begins at an offset and can be written.
fn width(offset: u64) -> usize {
    match offset {
        0x00 | 0x08 | 0x0c => 4,
        0x14 => 1,
        0x10 | 0x16 | 0x18 | 0x1a | 0x1c => 2,
        0x20..0x38 if offset.is_multiple_of(4) => 4,
        _ => 0,
    }
}

impl Shared {
    pub(super) fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let place = self.layout.find(bar, offset);
        match place {
            Some((Kind::Memory, at)) => self.window.read(at, data),
            Some((Kind::Table, at)) => self.kicks.read_entries(at, data),
            Some((Kind::Pending, at)) => self.kicks.read_pending(at, data),
            Some((Kind::Selector, at)) => {
                let [select, vector] = self.kicks.selector().map(u16::to_le_bytes);
                copy([select, vector].as_flattened(), at, data);
            }
            Some((Kind::Common, at)) => copy(&self.lock().common(), at, data),
            Some((Kind::Device, at)) => copy(&self.lock().device_config(), at, data),
            Some((Kind::Isr, 0)) => copy(&[self.lock().take_isr()], 0, data),
            Some((Kind::Isr | Kind::Notify | Kind::Doorbells, _)) => data.fill(0),
            None if offset < self.bar_size(bar) => data.fill(0),
            None => data.fill(u8::MAX),
        }
        self.faults.read(place, data);
        if self.faults.storms() {
            (0..self.shape.vectors).for_each(|vector| {
                self.kicks.fire(vector);
            });
        }
    }

    pub(super) fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        let place = self.layout.find(bar, offset);
        match self.faults.write(place, data) {
            Some((Kind::Doorbells, at)) => self.doorbell(at),
            Some((Kind::Memory, at)) => self.window.write(at, data),
            Some((Kind::Table, at)) => self.kicks.write_entries(at, data),
            Some((Kind::Selector, at)) => self.write_selector(at, data),
            Some((Kind::Common, at)) => self.lock().write_common(at, data),
            Some((Kind::Device, at)) => self.lock().write_device_config(at, data),
            Some((Kind::Notify, at)) => self.lock().notified(at / u64::from(NOTIFY_MULTIPLIER)),
            Some((Kind::Isr | Kind::Pending, _)) | None => {}
        }
    }

    pub(super) fn bar_size(&self, bar: u8) -> u64 {
        let bar = self.layout.bars.get(usize::from(bar));
        bar.map_or(0, |bar| bar.size)
    }

    /// One write rings one doorbell, whatever its width and value.
    fn doorbell(&self, at: u64) {
        let stride = u64::from(self.shape.multiplier);
        let (index, rings) = (at / stride, u64::from(self.shape.rings));
        if !at.is_multiple_of(stride) {
            return;
        }
        match index.checked_sub(rings) {
            None => self.kicks.ring(Bell::Call, index),
            // The one behind them is the log's, which there is not.
            Some(ring) if self.shape.dialect == Dialect::Ours => self.kicks.ring(Bell::Err, ring),
            Some(_) => {}
        }
    }

    fn write_selector(&self, at: u64, data: &[u8]) {
        let value = number(data);
        match (at, data.len()) {
            (0, 2) => self.kicks.select(value as u16),
            (0, 4..) => {
                self.kicks.select(value as u16);
                self.kicks.set_kick_vector((value >> 16) as u16);
            }
            (2, 2..) => self.kicks.set_kick_vector(value as u16),
            _ => {}
        }
    }
}

impl Locked<'_> {
    fn common(&self) -> [u8; 0x38] {
        let state = &*self.state;
        let offered = self.shared.features();
        let half = |bits: u64, select: u32| match select {
            0 => bits as u32,
            1 => (bits >> 32) as u32,
            _ => 0,
        };
        let select = state.queue_select;
        let queue = state.queues.get(usize::from(select));
        let ring = queue.map(|queue| &queue.queue);
        let mut image = [0; 0x38];
        let mut put = |at: usize, bytes: &[u8]| {
            for (slot, byte) in image.iter_mut().skip(at).zip(bytes) {
                *slot = *byte;
            }
        };
        let [offered_select, driver_select] = state.feature_select;
        put(0x00, &offered_select.to_le_bytes());
        put(0x04, &half(offered, offered_select).to_le_bytes());
        put(0x08, &driver_select.to_le_bytes());
        let taken = half(state.driver_features, driver_select);
        put(0x0c, &taken.to_le_bytes());
        put(0x10, &state.config_vector.to_le_bytes());
        put(0x12, &(state.queues.len() as u16).to_le_bytes());
        put(0x14, &[state.device_status, state.config_generation]);
        put(0x16, &select.to_le_bytes());
        put(0x18, &ring.map_or(0, QueueT::size).to_le_bytes());
        let vector = queue.map_or(NO_VECTOR, |queue| queue.vector);
        put(0x1a, &vector.to_le_bytes());
        put(
            0x1c,
            &u16::from(ring.is_some_and(QueueT::ready)).to_le_bytes(),
        );
        put(0x1e, &select.to_le_bytes());
        if let Some(ring) = ring {
            let addresses = [ring.desc_table(), ring.avail_ring(), ring.used_ring()];
            put(0x20, addresses.map(u64::to_le_bytes).as_flattened());
        }
        image
    }

    fn device_config(&self) -> Vec<u8> {
        let shape = &self.shared.shape;
        let mut bytes = Vec::with_capacity(0x20);
        bytes.extend(self.link_status().to_le_bytes());
        bytes.extend(shape.rings.to_le_bytes());
        bytes.extend(shape.uuid);
        if shape.extended() {
            bytes.extend(self.state.generation.to_le_bytes());
            bytes.extend((crate::protocol::MAX_TABLE_REGIONS as u32).to_le_bytes());
        }
        bytes
    }

    /// Reading takes it back.
    fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.state.isr)
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let width = width(at);
            let step = match rest.get(..width) {
                Some(field) if width > 0 => {
                    self.write_field(at, number(field));
                    width
                }
                _ => 1,
            };
            rest = rest.get(step..).unwrap_or_default();
            at += step as u64;
        }
    }

    fn write_field(&mut self, at: u64, value: u32) {
        let half = value as u16;
        let [offered_select, driver_select] = &mut self.state.feature_select;
        match at {
            0x00 => *offered_select = value,
            0x08 => *driver_select = value,
            0x0c => self.take_features(value),
            0x10 => self.state.config_vector = self.shared.kicks.granted(half),
            0x14 => self.write_status(value as u8),
            0x16 => self.state.queue_select = half,
            _ => self.write_queue(at, value),
        }
    }

    fn take_features(&mut self, value: u32) {
        let [_, select] = self.state.feature_select;
        if self.state.device_status & status::FEATURES_OK == 0 && select < 2 {
            let shift = 32 * select;
            let keep = self.state.driver_features & !(0xffff_ffff << shift);
            self.state.driver_features = keep | u64::from(value) << shift;
        }
    }

    fn write_queue(&mut self, at: u64, value: u32) {
        let vector = self.shared.kicks.granted(value as u16);
        let event_idx = self.state.driver_features & feature::EVENT_IDX != 0;
        let select = usize::from(self.state.queue_select);
        let Some(queue) = self.state.queues.get_mut(select) else {
            return;
        };
        let ring = &mut queue.queue;
        match at {
            0x1a => queue.vector = vector,
            // The rest is fixed once the queue is enabled.
            _ if ring.ready() => {}
            0x18 => ring.set_size(value as u16),
            0x1c if value == 1 => {
                ring.set_event_idx(event_idx);
                ring.set_ready(true);
            }
            0x20 => ring.set_desc_table_address(Some(value), None),
            0x24 => ring.set_desc_table_address(None, Some(value)),
            0x28 => ring.set_avail_ring_address(Some(value), None),
            0x2c => ring.set_avail_ring_address(None, Some(value)),
            0x30 => ring.set_used_ring_address(Some(value), None),
            0x34 => ring.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let old = self.state.device_status;
        let mut new = value & !status::NEEDS_RESET | old & status::NEEDS_RESET;
        let fresh = new & !old;
        if fresh & status::FEATURES_OK != 0 {
            let taken = self.state.driver_features;
            let told = taken & (feature::LAYOUT | feature::INFLIGHT) != feature::INFLIGHT;
            let good =
                taken & !self.shared.features() == 0 && taken & feature::VERSION_1 != 0 && told;
            if !good {
                new &= !status::FEATURES_OK;
            }
        }
        self.state.device_status = new;
        if fresh & status::DRIVER_OK != 0 {
            self.deliver();
            self.transmit();
        }
    }
}
