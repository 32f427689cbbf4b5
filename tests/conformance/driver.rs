//! The driver that a case plays: registers, rings and interrupts of a VVU function, one by one.

use std::os::fd::OwnedFd;
use std::time::Instant;

use vvu::mmio::{ReadWrite, Reg, Value, Window};
use vvu::pci::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, ConfigSpace, DmaMemory, Location, PciFunction,
    Structures,
};
use vvu::protocol::{HEADER_LEN, Message};

use crate::front_end::{REPLY, message, signals};
use crate::ring::{self, Notify, Ring};
use crate::{PATIENCE, QUIET, pause};

/// Bits of the device configuration's status.
pub(crate) const BACKEND_UP: u32 = 1;
pub(crate) const FRONTEND_UP: u32 = 2;
pub(crate) const BOTH_UP: u32 = BACKEND_UP | FRONTEND_UP;

/// Device feature bits of this project: told placement; requests of the driver's; in-flight
/// buffers.
pub(crate) const LAYOUT: u32 = 1;
pub(crate) const BACKEND_CH: u32 = 1 << 1;
pub(crate) const INFLIGHT: u32 = 1 << 3;

/// MSI-X vectors as the driver here uses them.
pub(crate) const CONFIG: u16 = 0;
pub(crate) const RX: u16 = 1;
pub(crate) const KICK: u16 = 3;
/// No vector.
pub(crate) const NONE: u16 = 0xffff;

/// device_status.
pub(crate) const NEEDS_RESET: u8 = 64;
const DRIVER: u8 = 1 | 2;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

/// Fields of the common configuration (VIRTIO 1.2, 4.1.4.3).
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(crate) const DEVICE_FEATURE: u64 = 0x04;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(crate) const DRIVER_FEATURE: u64 = 0x0c;
    pub(crate) const CONFIG_VECTOR: u64 = 0x10;
    pub(crate) const NUM_QUEUES: u64 = 0x12;
    pub(crate) const STATUS: u64 = 0x14;
    pub(crate) const CONFIG_GENERATION: u64 = 0x15;
    pub(crate) const QUEUE_SELECT: u64 = 0x16;
    pub(crate) const QUEUE_SIZE: u64 = 0x18;
    pub(crate) const QUEUE_VECTOR: u64 = 0x1a;
    pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(crate) const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];
}

/// A function and its registers.
pub(crate) struct Driver {
    pub(crate) function: Box<dyn PciFunction>,
    pub(crate) space: ConfigSpace,
    pub(crate) found: Structures,
    pub(crate) common: Window,
    pub(crate) isr: Window,
    pub(crate) config: Window,
    pub(crate) doorbells: Window,
    pub(crate) notifications: Window,
    pub(crate) window: Window,
    notify: Window,
    vectors: Vec<OwnedFd>,
    memory: DmaMemory,
    rx_buffer: u32,
    pub(crate) rx: Ring,
    pub(crate) tx: Ring,
}

/// One register.
pub(crate) fn reg<T: Value>(window: &Window, offset: u64) -> Reg<T, ReadWrite> {
    window.register(offset).expect("a register")
}

pub(crate) fn read<T: Value>(window: &Window, offset: u64) -> T {
    reg(window, offset).read()
}

pub(crate) fn write<T: Value>(window: &Window, offset: u64, value: T) {
    reg(window, offset).write(value);
}

impl Driver {
    /// Finds everything, and enables as many vectors as `rings` rings need.
    pub(crate) fn new(mut function: Box<dyn PciFunction>, rings: u16) -> Self {
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        function.write_config(COMMAND, &command.to_le_bytes());
        let space = ConfigSpace::read(function.as_ref());
        let found = Structures::find(&space).unwrap();
        let window = |at: Location| {
            let len = at.length.expect("a length");
            function.registers(at.bar, at.offset, len).unwrap()
        };
        let (common, isr, config) = (
            window(found.common),
            window(found.isr),
            window(found.device),
        );
        let doorbells = window(found.doorbells.location);
        let notifications = window(found.notifications);
        let notify = window(found.notify.location);
        let window = window(found.memory);
        let vectors = function.enable_vectors(KICK + rings).unwrap();
        let memory = function.alloc_dma(2 * ring::BYTES).unwrap();
        let nowhere = |index| Ring::new(index, &memory, notify_at(&notify, 0));
        Self {
            rx: nowhere(0),
            tx: nowhere(1),
            function,
            space,
            found,
            common,
            isr,
            config,
            doorbells,
            notifications,
            window,
            notify,
            vectors,
            memory,
            rx_buffer: 0,
        }
    }

    pub(crate) fn device_status(&self) -> u8 {
        read(&self.common, common::STATUS)
    }

    fn set_device_status(&self, value: u8) {
        write(&self.common, common::STATUS, value);
    }

    /// Feature bits that the device offers.
    pub(crate) fn features(&self) -> u64 {
        let half = |select: u32| {
            write(&self.common, common::DEVICE_FEATURE_SELECT, select);
            u64::from(read::<u32>(&self.common, common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device by its own register.
    pub(crate) fn reset(&self) {
        self.set_device_status(0);
        assert_eq!(self.device_status(), 0);
    }

    /// From whatever state to FEATURES_OK. False if the device does not agree to these in the low
    /// half.
    pub(crate) fn agree(&mut self, features: u32) -> bool {
        self.reset();
        self.set_device_status(DRIVER);
        // VERSION_1, and ACCESS_PLATFORM if it must be.
        let high = 1 | (self.features() >> 32) as u32 & 2;
        for (select, half) in [(0u32, features), (1, high)] {
            write(&self.common, common::DRIVER_FEATURE_SELECT, select);
            write(&self.common, common::DRIVER_FEATURE, half);
        }
        self.set_device_status(DRIVER | FEATURES_OK);
        self.device_status() & FEATURES_OK != 0
    }

    /// From whatever state to DRIVER_OK, with `buffers` of `len` bytes in rxq. `features` are
    /// those of the low half.
    pub(crate) fn start(&mut self, features: u32, buffers: u16, len: u32) {
        assert!(self.agree(features), "features refused");
        write(&self.common, common::CONFIG_VECTOR, CONFIG);
        self.rx = self.set_up(0);
        self.tx = self.set_up(1);
        for vector in &self.vectors {
            signals(vector);
        }
        self.rx_buffer = len;
        for _ in 0..buffers {
            self.post_rx();
        }
        self.set_device_status(DRIVER | FEATURES_OK | DRIVER_OK);
        self.rx.notify();
    }

    fn set_up(&self, index: u16) -> Ring {
        let common = &self.common;
        write(common, common::QUEUE_SELECT, index);
        write(common, common::QUEUE_SIZE, ring::SIZE);
        assert_eq!(read::<u16>(common, common::QUEUE_SIZE), ring::SIZE);
        write(common, common::QUEUE_VECTOR, RX + index);
        assert_eq!(read::<u16>(common, common::QUEUE_VECTOR), RX + index);
        let offset: u16 = read(common, common::QUEUE_NOTIFY_OFF);
        let offset = u64::from(offset) * u64::from(self.found.notify.multiplier);
        let ring = Ring::new(index, &self.memory, notify_at(&self.notify, offset));
        for (field, address) in common::QUEUE_ADDRESSES.into_iter().zip(ring.addresses()) {
            write(common, field, address as u32);
            write(common, field + 4, (address >> 32) as u32);
        }
        write(common, common::QUEUE_ENABLE, 1u16);
        ring
    }

    pub(crate) fn status(&self) -> u32 {
        read(&self.config, 0)
    }

    pub(crate) fn set_status(&self, value: u32) {
        write(&self.config, 0, value);
        self.flush();
    }

    /// Waits until what was written has arrived: stores are on their way when they are done, and
    /// loads wait for them.
    pub(crate) fn flush(&self) {
        read::<u8>(&self.common, common::STATUS);
    }

    #[track_caller]
    pub(crate) fn wait_status(&self, value: u32) {
        let start = Instant::now();
        while self.status() != value {
            let now = self.status();
            assert!(
                start.elapsed() < PATIENCE,
                "status {now} instead of {value}"
            );
            pause();
        }
    }

    /// conn_generation.
    pub(crate) fn generation(&self) -> u32 {
        read(&self.config, 0x18)
    }

    /// What a vector signals.
    pub(crate) fn vector(&self, vector: u16) -> &OwnedFd {
        &self.vectors[usize::from(vector)]
    }

    /// What all vectors signal.
    pub(crate) fn vectors(&self) -> &[OwnedFd] {
        &self.vectors
    }

    /// Whether a vector was raised since this was asked last.
    pub(crate) fn interrupt(&self, vector: u16) -> bool {
        signals(self.vector(vector)) > 0
    }

    #[track_caller]
    pub(crate) fn wait_interrupt(&self, vector: u16) {
        let start = Instant::now();
        while !self.interrupt(vector) {
            assert!(start.elapsed() < PATIENCE, "vector {vector} is not raised");
            pause();
        }
    }

    /// Nothing raises a vector for a while.
    #[track_caller]
    pub(crate) fn no_interrupt(&self, vector: u16) {
        std::thread::sleep(QUIET);
        // One round trip more, in which the device has done what it does.
        self.status();
        std::thread::sleep(QUIET);
        assert!(!self.interrupt(vector), "vector {vector} was raised");
    }

    /// Offers one more buffer to receive into.
    pub(crate) fn post_rx(&mut self) {
        self.rx.offer(&[self.rx_buffer], true, &[]);
        self.rx.notify();
    }

    /// The next message from the front-end, if there is one. No buffer is offered for it.
    pub(crate) fn poll_rx(&mut self) -> Option<Message> {
        let (id, len) = self.rx.used()?;
        Some(parse(&self.rx.bytes(id, len)))
    }

    /// The next message. No buffer is offered for it.
    #[track_caller]
    fn receive_only(&mut self) -> Message {
        let start = Instant::now();
        loop {
            if let Some(message) = self.poll_rx() {
                return message;
            }
            assert!(start.elapsed() < PATIENCE, "no message");
            pause();
        }
    }

    #[track_caller]
    pub(crate) fn receive(&mut self) -> Message {
        let message = self.receive_only();
        self.post_rx();
        message
    }

    /// The next message, which must have this number. No buffer is offered for it.
    #[track_caller]
    pub(crate) fn wait_rx(&mut self, request: u32) {
        let message = self.receive_only();
        assert_eq!(message.request, request, "{message:?}");
    }

    /// The next message, which must be this request; its payload.
    #[track_caller]
    pub(crate) fn expect(&mut self, request: u32) -> Vec<u8> {
        let message = self.receive();
        assert_eq!(message.request, request, "{message:?}");
        message.payload
    }

    /// No message comes for a while.
    #[track_caller]
    pub(crate) fn expect_none(&mut self) {
        std::thread::sleep(QUIET);
        self.status();
        if let Some(message) = self.poll_rx() {
            panic!("{message:?}");
        }
    }

    /// Offers bytes in txq.
    pub(crate) fn post_tx(&mut self, bytes: &[u8]) {
        self.tx.offer(&[bytes.len() as u32], false, bytes);
        self.tx.notify();
    }

    /// Waits until the device gives back a buffer of txq.
    #[track_caller]
    pub(crate) fn wait_tx(&mut self) {
        let start = Instant::now();
        loop {
            if let Some((_, len)) = self.tx.used() {
                // The device has written nothing.
                assert_eq!(len, 0);
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "a sent buffer does not come back"
            );
            pause();
        }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, request: u32, flags: u32, payload: &[u8]) {
        self.post_tx(&message(request, flags, payload).to_bytes());
        self.wait_tx();
    }

    /// Answers a request with a number.
    #[track_caller]
    pub(crate) fn answer(&mut self, request: u32, value: u64) {
        self.send(request, REPLY, &value.to_le_bytes());
    }

    /// Takes what is left of a connection out of both rings.
    pub(crate) fn drain(&mut self) {
        while self.poll_rx().is_some() {
            self.post_rx();
        }
        while self.tx.used().is_some() {}
    }

    /// Stores a ring's kick vector, as it is; returns what the device makes of it.
    pub(crate) fn kick_vector(&self, ring: u16, vector: u16) -> u16 {
        write(&self.notifications, 0, ring);
        write(&self.notifications, 2, vector);
        read(&self.notifications, 2)
    }

    /// Rings a doorbell.
    pub(crate) fn ring(&self, number: u16) {
        write(&self.doorbells, self.doorbell(number), number);
        self.flush();
    }

    /// Where a doorbell is.
    pub(crate) fn doorbell(&self, number: u16) -> u64 {
        u64::from(number) * u64::from(self.found.doorbells.multiplier)
    }

    /// Loads from the memory window.
    pub(crate) fn load(&self, offset: u64) -> u32 {
        read(&self.window, offset)
    }

    /// Stores to the memory window.
    pub(crate) fn store(&self, offset: u64, value: u32) {
        write(&self.window, offset, value);
        self.flush();
    }
}

fn notify_at(window: &Window, offset: u64) -> Notify {
    Notify::Register(window.register(offset).expect("a notification register"))
}

/// One buffer is one message, no more and no less.
#[track_caller]
fn parse(bytes: &[u8]) -> Message {
    let header = bytes.first_chunk::<HEADER_LEN>().expect("a header");
    let (request, flags, size) = Message::parse_header(header);
    assert_eq!(bytes.len(), HEADER_LEN + size as usize, "request {request}");
    message(request, flags, &bytes[HEADER_LEN..])
}
