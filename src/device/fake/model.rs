//! The inside of the fake: registers, link states, messages.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vm_memory::Bytes;

use super::ring::{DeviceQueue, Dma};
use super::shape::{COMMON, DEVICE, DOORBELLS, NOTIFY, Shape};
use super::{Faults, Lie};
use crate::memory::Area;

/// Something the driver did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Wrote configuration space.
    Config(u16, Vec<u8>),
    /// Wrote device_status.
    DeviceStatus(u8),
    /// Read device_status.
    ReadDeviceStatus,
    /// Wrote half of the features.
    Features(u32, u32),
    /// Wrote the configuration's vector.
    ConfigVector(u16),
    /// Wrote a queue's vector.
    QueueVector(u16, u16),
    /// Wrote a ring's kick vector.
    KickVector(u16, u16),
    /// Enabled a queue.
    Enable(u16),
    /// Notified a queue.
    Notify(u16),
    /// Wrote the link's status.
    Link(u32),
}

const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;

#[derive(Debug)]
pub(super) struct Model {
    pub(super) shape: Shape,
    pub(super) faults: Faults,
    pub(super) ops: Vec<Op>,
    pub(super) violations: Vec<String>,
    pub(super) vectors: Vec<OwnedFd>,
    pub(super) dma: Dma,
    next_iova: u64,
    pub(super) flrs: u32,
    /// Closed when the device goes.
    pub(super) hangup: Option<UnixStream>,

    device_status: u8,
    feature_select: [u32; 2],
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    queues: [DeviceQueue; 2],
    notification_select: u16,
    kick_vectors: Vec<u16>,
    pub(super) rung: Vec<u16>,

    /// The link's status register.
    link: u32,
    /// The driver said that it is there, and was not told since that a front-end went.
    armed: bool,
    pub(super) generation: u32,
    /// A front-end is there.
    waiting: bool,
    /// It was let in.
    pub(super) connected: bool,
    pub(super) inbox: VecDeque<Vec<u8>>,
    pub(super) outbox: Vec<Vec<u8>>,
}

impl Model {
    pub(super) fn new(shape: Shape) -> Self {
        let mut model = Self {
            kick_vectors: vec![0; shape.rings as usize],
            shape,
            faults: Faults::default(),
            ops: Vec::new(),
            violations: Vec::new(),
            vectors: Vec::new(),
            dma: Vec::new(),
            next_iova: 0x1_0000_0000,
            flrs: 0,
            hangup: None,
            // As a predecessor that was killed left it.
            device_status: 15,
            feature_select: [7, 7],
            driver_features: u64::MAX,
            config_vector: 9,
            queue_select: 5,
            queues: Default::default(),
            notification_select: 77,
            rung: Vec::new(),
            link: 1,
            armed: false,
            generation: 0,
            waiting: false,
            connected: false,
            inbox: VecDeque::new(),
            outbox: Vec::new(),
        };
        model.queues[0].size = 1;
        model
    }

    pub(super) fn add_dma(&mut self, bytes: Area) -> u64 {
        let iova = self.next_iova;
        self.next_iova += 0x1000_0000;
        self.dma.push((iova, bytes));
        iova
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.device_status == 0 && self.link == 0
    }

    pub(super) fn reset(&mut self) {
        let served = self.connected;
        self.drop_link();
        // One that was being served sees the connection end; one that waits goes on waiting.
        self.waiting &= !served;
        self.device_status = 0;
        self.driver_features = 0;
        self.config_vector = 0xffff;
        for queue in &mut self.queues {
            *queue = DeviceQueue {
                size: self.shape.queue_size,
                vector: 0xffff,
                ..DeviceQueue::default()
            };
        }
        self.notification_select = 0;
        self.kick_vectors.fill(0xffff);
    }

    fn drop_link(&mut self) {
        self.link = 0;
        self.armed = false;
        if self.connected {
            self.inbox.clear();
        }
        self.connected = false;
    }

    pub(super) fn connect(&mut self) {
        self.waiting = true;
        self.join();
    }

    fn join(&mut self) {
        let broken = self.device_status & NEEDS_RESET != 0;
        if !self.waiting || self.connected || !self.armed || broken {
            return;
        }
        self.connected = true;
        self.generation += 1;
        if !self.shape.crosvm {
            self.link = 3;
            self.raise(self.config_vector);
        }
        self.work();
    }

    pub(super) fn disconnect(&mut self) {
        self.waiting = false;
        if !self.connected {
            return;
        }
        if self.shape.crosvm {
            self.connected = false;
            self.armed = false;
            self.inbox.clear();
            self.deliver(&[]);
        } else {
            self.drop_link();
            self.raise(self.config_vector);
        }
    }

    pub(super) fn need_reset(&mut self) {
        self.device_status |= NEEDS_RESET;
        self.raise(self.config_vector);
    }

    pub(super) fn kick(&mut self, ring: u16) {
        let vector = self.kick_vectors.get(usize::from(ring)).copied();
        self.raise(vector.unwrap_or(0xffff));
    }

    fn raise(&self, vector: u16) {
        if let Some(fd) = self.vectors.get(usize::from(vector)) {
            rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Does what can be done with the queues.
    pub(super) fn work(&mut self) {
        let running = self.device_status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        if !running || !self.queues.iter().all(|queue| queue.enabled) {
            return;
        }
        self.take_sent();
        while self.connected
            && self.has_room()
            && let Some(message) = self.inbox.pop_front()
        {
            self.deliver(&message);
        }
    }

    fn has_room(&mut self) -> bool {
        let queue = &mut self.queues[0];
        let old = queue.pool.clone();
        queue.fetch(&self.dma);
        for id in &queue.pool {
            let (buffer, writable) = queue.buffer(&self.dma, *id);
            assert!(writable && buffer.len() >= 8192, "rx buffer");
            if !old.contains(id) {
                // It is ours now: whoever still reads it reads this.
                buffer
                    .slice()
                    .write_slice(&vec![0xdb; buffer.len()], 0)
                    .unwrap();
            }
        }
        !queue.pool.is_empty()
    }

    fn deliver(&mut self, message: &[u8]) {
        if !self.has_room() {
            return;
        }
        let queue = &mut self.queues[0];
        // The one that came last: order of return is the device's choice.
        let id = queue.pool.pop().unwrap();
        let (buffer, _) = queue.buffer(&self.dma, id);
        buffer.slice().write_slice(message, 0).unwrap();
        let (mut used, mut len, mut advance) = (u32::from(id), message.len() as u32, 1);
        match self.faults.lie.take() {
            Some(Lie::Length(lie)) => len = lie,
            Some(Lie::Id(lie)) => used = lie,
            Some(Lie::Advance(lie)) => advance = lie,
            None => {}
        }
        queue.give_back(&self.dma, used, len, advance);
        let vector = queue.vector;
        self.raise(vector);
    }

    fn take_sent(&mut self) {
        if self.faults.hold_tx {
            return;
        }
        let queue = &mut self.queues[1];
        queue.fetch(&self.dma);
        while !queue.pool.is_empty() {
            let id = queue.pool.remove(0);
            let (buffer, writable) = queue.buffer(&self.dma, id);
            let mut bytes = vec![0; buffer.len()];
            buffer.slice().read_slice(&mut bytes, 0).unwrap();
            let size = bytes.get(8..).and_then(|rest| rest.first_chunk());
            let size = size.map_or(0, |size| u32::from_le_bytes(*size));
            if writable || bytes.len() != 12 + size as usize {
                self.violations
                    .push(format!("txq buffer of {} bytes", bytes.len()));
            }
            if self.connected {
                self.outbox.push(bytes);
            }
            queue.give_back(&self.dma, id.into(), u32::MAX, 1);
        }
        let vector = queue.vector;
        self.raise(vector);
    }

    pub(super) fn read(&mut self, bar: u8, offset: u64, width: usize) -> u32 {
        if self.faults.gone {
            return u32::MAX;
        }
        let (base, offset) = match self.place(bar, offset) {
            Some(place) => place,
            None => return 0,
        };
        match (base, offset, width) {
            (COMMON, ..) => self.read_common(offset, width),
            (DEVICE, 0, 4) => self.link,
            (DEVICE, 4, 4) => self.shape.rings,
            (DEVICE, 8..0x18, 1) => offset as u32,
            (DEVICE, 0x18, 4) if self.shape.extended() => self.generation,
            (DEVICE, 0x1c, 4) if self.shape.extended() => 32,
            (DOORBELLS, 0, 2) => self.notification_select.into(),
            (DOORBELLS, 2, 2) => {
                let ring = usize::from(self.notification_select);
                self.kick_vectors.get(ring).map_or(0xffff, |v| (*v).into())
            }
            _ => self.violate(format!("{width}-byte read at {base:#x}+{offset:#x}")),
        }
    }

    fn read_common(&mut self, offset: u64, width: usize) -> u32 {
        let offered = self.shape.features;
        let queue = self.queues.get(usize::from(self.queue_select));
        match (offset, width) {
            (0x04, 4) => match self.feature_select[0] {
                0 => offered as u32,
                1 => (offered >> 32) as u32,
                _ => 0,
            },
            (0x10, 2) => self.config_vector.into(),
            (0x12, 2) => 2,
            (0x14, 1) => {
                self.ops.push(Op::ReadDeviceStatus);
                self.device_status.into()
            }
            (0x18, 2) => queue.map_or(0, |queue| queue.size.into()),
            (0x1a, 2) => queue.map_or(0xffff, |queue| queue.vector.into()),
            // Not the queue's index, on purpose.
            (0x1e, 2) => u32::from(self.queue_select) + 3,
            _ => self.violate(format!("{width}-byte read of common {offset:#x}")),
        }
    }

    fn violate(&mut self, what: String) -> u32 {
        self.violations.push(what);
        u32::MAX
    }

    /// Which structure an offset belongs to, and where in it.
    fn place(&self, bar: u8, offset: u64) -> Option<(u64, u64)> {
        let bases: &[u64] = if bar == self.shape.modern_bar {
            &[NOTIFY, DEVICE, COMMON]
        } else if bar == self.shape.doorbell_bar {
            // Doorbells are told from the selector by their own base, which no structure has.
            if offset < DOORBELLS {
                return Some((u64::MAX, offset));
            }
            &[DOORBELLS]
        } else {
            &[]
        };
        let base = bases.iter().find(|base| offset >= **base)?;
        Some((*base, offset - base))
    }

    pub(super) fn write(&mut self, bar: u8, offset: u64, width: usize, value: u32) {
        if self.faults.gone {
            return;
        }
        let Some((base, offset)) = self.place(bar, offset) else {
            return;
        };
        match (base, offset, width) {
            (COMMON, ..) => self.write_common(offset, width, value),
            (DEVICE, 0, 4) => self.write_link(value),
            (NOTIFY, ..) => self.notified(offset, width, value as u16),
            (u64::MAX, ..) => {
                let number = offset / u64::from(self.shape.multiplier);
                if width != 2 || u64::from(value) != number {
                    self.violate(format!("doorbell {number}: {value} in {width} bytes"));
                }
                self.rung.push(number as u16);
            }
            (DOORBELLS, 0, 2) => self.notification_select = value as u16,
            (DOORBELLS, 2, 2) => {
                let ring = self.notification_select;
                self.ops.push(Op::KickVector(ring, value as u16));
                let vector = self.granted(value as u16);
                if let Some(slot) = self.kick_vectors.get_mut(usize::from(ring)) {
                    *slot = vector;
                }
            }
            _ => {
                self.violate(format!("{width}-byte write at {base:#x}+{offset:#x}"));
            }
        }
    }

    fn granted(&self, vector: u16) -> u16 {
        let exists = usize::from(vector) < self.vectors.len();
        match exists && !self.faults.refuse_vectors {
            true => vector,
            false => 0xffff,
        }
    }

    fn notified(&mut self, offset: u64, width: usize, value: u16) {
        self.ops.push(Op::Notify(value));
        let place = (u64::from(value) + 3) * 4;
        if width != 2 || offset != place || self.device_status & DRIVER_OK == 0 {
            self.violate(format!(
                "notification {value} in {width} bytes at {offset:#x}"
            ));
        }
        self.work();
    }

    fn write_link(&mut self, value: u32) {
        self.ops.push(Op::Link(value));
        if value & !3 != 0 {
            self.violate(format!("link status {value:#x}"));
            self.device_status |= NEEDS_RESET;
        }
        if self.device_status & DRIVER_OK == 0 && value & 1 != 0 {
            self.violate("armed before DRIVER_OK".to_owned());
        }
        if value & 1 == 0 {
            let served = self.connected;
            self.drop_link();
            self.waiting &= !served;
        } else {
            self.link |= 1;
            self.armed = true;
            self.join();
        }
    }

    fn write_common(&mut self, offset: u64, width: usize, value: u32) {
        let index = self.queue_select;
        let vector = self.granted(value as u16);
        let queue = self.queues.get_mut(usize::from(index));
        match (offset, width, queue) {
            (0x00, 4, _) => self.feature_select[0] = value,
            (0x08, 4, _) => self.feature_select[1] = value,
            (0x0c, 4, _) => {
                let select = self.feature_select[1];
                self.ops.push(Op::Features(select, value));
                let half = u64::from(value) << (32 * (select & 1));
                self.driver_features |= half;
            }
            (0x10, 2, _) => {
                self.ops.push(Op::ConfigVector(value as u16));
                self.config_vector = vector;
            }
            (0x14, 1, _) => self.write_device_status(value as u8),
            (0x16, 2, _) => self.queue_select = value as u16,
            (0x18, 2, Some(queue)) => queue.size = value as u16,
            (0x1a, 2, Some(queue)) => {
                queue.vector = vector;
                let late = queue.enabled;
                self.ops.push(Op::QueueVector(index, value as u16));
                if late {
                    self.violate(format!("vector of queue {index} after it was enabled"));
                }
            }
            (0x1c, 2, Some(queue)) => {
                queue.enabled = true;
                self.ops.push(Op::Enable(index));
            }
            (0x20..0x38, 4, Some(queue)) => {
                let part = &mut queue.addresses[(offset as usize - 0x20) / 8];
                let shift = (offset & 4) * 8;
                *part = *part & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {
                self.violate(format!("{width}-byte write of common {offset:#x}"));
            }
        }
    }

    fn write_device_status(&mut self, value: u8) {
        self.ops.push(Op::DeviceStatus(value));
        if value == 0 {
            if !self.faults.stuck_reset {
                self.reset();
            }
            return;
        }
        self.device_status = value;
        if value & 8 != 0 && (self.faults.refuse_features || self.driver_features >> 32 & 1 == 0) {
            self.device_status &= !8;
        }
        if value & DRIVER_OK != 0 && !self.queues.iter().all(|queue| queue.enabled) {
            self.violate("DRIVER_OK before the queues were enabled".to_owned());
        }
        self.work();
    }
}
