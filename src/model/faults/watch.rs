//! What a driver does to the registers, and what it must not have done.

use super::Kind;
use crate::model::device_status as status;
use crate::model::layout::NOTIFY_MULTIPLIER;

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

/// Watches one driver. It judges by what it saw alone.
#[derive(Debug)]
pub(super) struct Watcher {
    /// Distance of two doorbells.
    stride: u64,
    pub(super) ops: Vec<Op>,
    pub(super) violations: Vec<String>,
    pub(super) rung: Vec<u16>,
    pub(super) resets: u32,
    status: u8,
    feature_select: u32,
    queue_select: u16,
    ring_select: u16,
    enabled: [bool; 2],
}

impl Watcher {
    pub(super) fn new(stride: u32) -> Self {
        Self {
            stride: stride.into(),
            ops: Vec::new(),
            violations: Vec::new(),
            rung: Vec::new(),
            resets: 0,
            status: 0,
            feature_select: 0,
            queue_select: 0,
            ring_select: 0,
            enabled: [false; 2],
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    /// A field is read as a whole and nothing else with it.
    pub(super) fn read(&mut self, kind: Kind, at: u64, width: usize) {
        let good = match (kind, at) {
            (Kind::Common, 0x14) => {
                self.ops.push(Op::ReadDeviceStatus);
                width == 1
            }
            (Kind::Common, 0x04) => width == 4,
            (Kind::Common, 0x10 | 0x12 | 0x18 | 0x1a | 0x1e) => width == 2,
            (Kind::Device, 8..0x18) => width == 1,
            (Kind::Device, 0 | 4 | 0x18 | 0x1c) => width == 4,
            (Kind::Selector, 0 | 2) => width == 2,
            _ => false,
        };
        if !good {
            self.violate(format!("{width}-byte read of {kind:?} at {at:#x}"));
        }
    }

    /// `shift` is how far notification offsets are from the queues' numbers.
    pub(super) fn write(&mut self, kind: Kind, at: u64, data: &[u8], shift: u16) {
        let value = data.iter().rev();
        let value = value.fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        let half = value as u16;
        match (kind, at, data.len()) {
            (Kind::Common, ..) => self.write_common(at, data.len(), value),
            (Kind::Device, 0, 4) => self.write_link(value),
            (Kind::Selector, 0, 2) => self.ring_select = half,
            (Kind::Selector, 2, 2) => self.ops.push(Op::KickVector(self.ring_select, half)),
            (Kind::Notify, _, width) => {
                self.ops.push(Op::Notify(half));
                let place = (u64::from(half) + u64::from(shift)) * u64::from(NOTIFY_MULTIPLIER);
                if width != 2 || at != place || self.status & status::DRIVER_OK == 0 {
                    self.violate(format!("notification {half} in {width} bytes at {at:#x}"));
                }
            }
            (Kind::Doorbells, _, width) => {
                if width != 2 || at != u64::from(half) * self.stride {
                    self.violate(format!("doorbell {half} in {width} bytes at {at:#x}"));
                }
                self.rung.push(half);
            }
            (_, _, width) => self.violate(format!("{width}-byte write of {kind:?} at {at:#x}")),
        }
    }

    fn write_link(&mut self, value: u32) {
        self.ops.push(Op::Link(value));
        if value & !1 != 0 {
            self.violate(format!("link status {value:#x}"));
        }
        if self.status & status::DRIVER_OK == 0 && value & 1 != 0 {
            self.violate("armed before DRIVER_OK".to_owned());
        }
    }

    fn write_common(&mut self, at: u64, width: usize, value: u32) {
        let (index, half) = (self.queue_select, value as u16);
        let enabled = self.enabled.get_mut(usize::from(index));
        match (at, width, enabled) {
            (0x00, 4, _) => {}
            (0x08, 4, _) => self.feature_select = value,
            (0x0c, 4, _) => self.ops.push(Op::Features(self.feature_select, value)),
            (0x10, 2, _) => self.ops.push(Op::ConfigVector(half)),
            (0x14, 1, _) => self.write_status(value as u8),
            (0x16, 2, _) => self.queue_select = half,
            (0x18, 2, Some(enabled)) | (0x20..0x38, 4, Some(enabled)) => {
                if *enabled {
                    self.violate(format!("queue {index} changed after it was enabled"));
                }
            }
            (0x1a, 2, Some(enabled)) => {
                let late = *enabled;
                self.ops.push(Op::QueueVector(index, half));
                if late {
                    self.violate(format!("vector of queue {index} after it was enabled"));
                }
            }
            (0x1c, 2, Some(enabled)) => {
                *enabled = true;
                self.ops.push(Op::Enable(index));
            }
            _ => self.violate(format!("{width}-byte write of common {at:#x}")),
        }
    }

    fn write_status(&mut self, value: u8) {
        self.ops.push(Op::DeviceStatus(value));
        self.status = value;
        if value == 0 {
            self.enabled = [false; 2];
        }
        if value & status::DRIVER_OK != 0 && self.enabled != [true; 2] {
            self.violate("DRIVER_OK before the queues were enabled".to_owned());
        }
    }

    /// The function was reset.
    pub(super) fn reset(&mut self) {
        self.resets += 1;
        self.status = 0;
        self.enabled = [false; 2];
    }
}
