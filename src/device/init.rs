//! Bring-up, in the order of VIRTIO 1.2, 3.1.1, and back down.

use std::time::{Duration, Instant};

use super::events::Events;
use super::link::Link;
use super::regs::{NO_VECTOR, UUID, device_status, feature, link_status};
use super::resources::Registers;
use super::{Device, DeviceError, Identity, MAX_RINGS, Options, Queue, Rule};
use crate::pci::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, CROSVM_ID, ConfigSpace, DmaMemory, PciFunction,
    Structures,
};
use crate::virtqueue::{Direction, Virtqueue};

/// Length of rx and tx buffers. The largest messages known have 4 KiB and a header.
pub(super) const BUFFER_LEN: u32 = 8192;

/// Buffers per queue that are worth having; less if the device has less.
const QUEUE_SIZE: u16 = 64;

/// device_status once the device knows that it has a driver.
const GREETED: u8 = device_status::ACKNOWLEDGE | device_status::DRIVER;

/// First pause while waiting for a reset; doubled each time.
const RESET_PAUSE: Duration = Duration::from_micros(50);

impl Device {
    /// Takes over a function, in whatever state it is. A front-end is let in when
    /// [`Device::next_event`] is called for the first time; until then the poll descriptor is
    /// readable.
    pub fn open(mut function: Box<dyn PciFunction>, options: Options) -> Result<Self, DeviceError> {
        let mut events = Events::new()?;
        let parts = Parts::find(function.as_mut(), &options, &mut events)?;
        let mut device = Self {
            identity: parts.identity,
            options,
            registers: parts.registers,
            rx: parts.rx,
            tx: parts.tx,
            events,
            link: Link::idle(),
            revived: false,
            lost: false,
            trouble: None,
            function,
        };
        device.initialise()?;
        device.events.poke();
        tracing::debug!(device = device.name(), identity = ?device.identity, "brought up");
        Ok(device)
    }

    /// Brings up a device that was broken, or one that was gone altogether.
    pub(super) fn initialise_again(&mut self) -> Result<(), DeviceError> {
        self.lost |= matches!(self.check_alive(), Err(DeviceError::Gone));
        if self.lost && self.function.reopen()? {
            let function = self.function.as_mut();
            let parts = Parts::find(function, &self.options, &mut self.events)?;
            self.identity = parts.identity;
            self.registers = parts.registers;
            self.rx = parts.rx;
            self.tx = parts.tx;
        }
        self.lost = false;
        self.initialise()
    }

    /// From any state to DRIVER_OK, with empty queues and BACKEND_UP clear. On failure the device
    /// is told that it was given up.
    pub(super) fn initialise(&mut self) -> Result<(), DeviceError> {
        let done = self.steps();
        if done.is_err() {
            let status = &self.registers.common.device_status;
            status.write(status.read() | device_status::FAILED);
        }
        done
    }

    fn steps(&mut self) -> Result<(), DeviceError> {
        greet(&self.registers, self.options.timeout)?;
        self.rx.ring.reset();
        self.tx.ring.reset();

        self.negotiate()?;
        let mut state = GREETED;
        state |= device_status::FEATURES_OK;
        let status = &self.registers.common.device_status;
        status.write(state);
        if status.read() & device_status::FEATURES_OK == 0 {
            return Err(DeviceError::FeaturesRefused(self.identity.features));
        }

        self.program_config_vector();
        for index in 0..2 {
            self.set_up_queue(index)?;
        }
        self.program_kicks(MAX_RINGS);
        for index in 0..2 {
            self.registers.common.queue_select.write(index);
            self.registers.common.queue_enable.write(1);
        }
        self.rx.ring.offer_all();
        state |= device_status::DRIVER_OK;
        self.registers.common.device_status.write(state);
        // Before DRIVER_OK no notification may be sent (VIRTIO 1.2, 3.1.1).
        self.rx.notify();
        Ok(())
    }

    fn negotiate(&mut self) -> Result<(), DeviceError> {
        let features = wanted(&self.registers)?;
        let common = &self.registers.common;
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            common.driver_feature_select.write(select);
            common.driver_feature.write(half);
        }
        self.identity.rule = rule(&self.options, features, self.identity.pci_device);
        self.identity.features = features;
        Ok(())
    }

    fn program_config_vector(&mut self) {
        let register = &self.registers.common.config_msix_vector;
        let vector = self.events.config_vector();
        register.write(vector.unwrap_or(NO_VECTOR));
        self.events.deaf = vector.is_none() || register.read() == NO_VECTOR;
    }

    /// Size, vector and addresses of one queue; not enabled yet, because a queue's vector must
    /// not change afterwards.
    fn set_up_queue(&mut self, index: u16) -> Result<(), DeviceError> {
        let common = &self.registers.common;
        let queue = if index == 0 {
            &mut self.rx
        } else {
            &mut self.tx
        };
        let addresses = queue.ring.addresses();
        common.queue_select.write(index);
        let most = common.queue_size.read();
        if most < queue.ring.size() {
            return Err(DeviceError::QueueSize {
                queue: index,
                size: most,
            });
        }
        common.queue_size.write(queue.ring.size());
        let vector = self.events.queue_vector(index).unwrap_or(NO_VECTOR);
        common.queue_msix_vector.write(vector);
        // A sender that waits looks from time to time anyway; for rxq the vector matters.
        self.events.deaf |= index == 0 && common.queue_msix_vector.read() == NO_VECTOR;
        for (low, high, address) in [
            (&common.queue_desc_lo, &common.queue_desc_hi, addresses.desc),
            (
                &common.queue_driver_lo,
                &common.queue_driver_hi,
                addresses.driver,
            ),
            (
                &common.queue_device_lo,
                &common.queue_device_hi,
                addresses.device,
            ),
        ] {
            low.write(address as u32);
            high.write((address >> 32) as u32);
        }
        let notify_off = common.queue_notify_off.read();
        queue.notify = self.registers.notify_register(notify_off)?;
        Ok(())
    }

    /// Leaves the device as a freshly reset one. Used when there is nobody to report to.
    pub(super) fn quiesce(&mut self) {
        self.registers.config.status.write(0);
        if let Err(error) = reset(&self.registers, self.options.timeout) {
            tracing::warn!(device = self.name(), %error, "cannot leave the device quiet");
        }
        self.link = Link::Closed;
    }

    /// Ends the connection, if any, and leaves the device as it was found: reset, with nobody
    /// behind it.
    pub fn shutdown(&mut self) {
        self.quiesce();
        if let Err(error) = self.function.reset() {
            tracing::warn!(device = self.name(), %error, "cannot reset the function");
        }
    }
}

/// What is found, and made, when a function is taken over.
struct Parts {
    identity: Identity,
    registers: Registers,
    rx: Queue,
    tx: Queue,
}

impl Parts {
    fn find(
        function: &mut dyn PciFunction,
        options: &Options,
        events: &mut Events,
    ) -> Result<Self, DeviceError> {
        function.reset()?;
        let space = ConfigSpace::read(function);
        let found = Structures::find(&space)?;
        enable(function, &space);
        let registers = Registers::find(function, &found)?;
        greet(&registers, options.timeout)?;

        let identity = identify(&registers, &space, options)?;
        let [rx, tx] = queues(&registers, function)?;
        let rings = identity.rings.min(options.rings);
        let vectors = match Events::wanted(function.vectors(), rings) {
            0 => Vec::new(),
            count => function.enable_vectors(count)?,
        };
        events.listen_to(vectors, function.hangup())?;
        Ok(Self {
            identity,
            registers,
            rx,
            tx,
        })
    }
}

/// Lets the function answer to its BARs and do DMA.
fn enable(function: &dyn PciFunction, space: &ConfigSpace) {
    let command = space.u16(usize::from(COMMAND)).unwrap_or(0);
    let wanted = command | COMMAND_MEMORY | COMMAND_BUS_MASTER;
    if wanted != command {
        function.write_config(COMMAND, &wanted.to_le_bytes());
    }
}

/// Resets the device and tells it that somebody knows how to drive it.
fn greet(registers: &Registers, timeout: Duration) -> Result<(), DeviceError> {
    reset(registers, timeout)?;
    let status = &registers.common.device_status;
    status.write(device_status::ACKNOWLEDGE);
    status.write(GREETED);
    Ok(())
}

/// Virtio's own reset: writes 0 and waits until it reads back (VIRTIO 1.2, 4.1.4.3.2).
fn reset(registers: &Registers, timeout: Duration) -> Result<(), DeviceError> {
    let status = &registers.common.device_status;
    let start = Instant::now();
    let mut pause = RESET_PAUSE;
    status.write(0);
    loop {
        match status.read() {
            0 => return Ok(()),
            u8::MAX if registers.common.num_queues.read() == u16::MAX => {
                return Err(DeviceError::Gone);
            }
            _ if start.elapsed() >= timeout => {
                return Err(DeviceError::Timeout {
                    what: "a reset",
                    after: timeout,
                });
            }
            _ => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// The features that we take, of those offered.
fn wanted(registers: &Registers) -> Result<u64, DeviceError> {
    let common = &registers.common;
    let half = |select| {
        common.device_feature_select.write(select);
        u64::from(common.device_feature.read())
    };
    let offered = half(0) | half(1) << 32;
    if offered & feature::VERSION_1 == 0 {
        return Err(DeviceError::Feature {
            name: "VERSION_1",
            bit: 32,
            hint: "only modern devices are driven (QEMU: disable-legacy=on)",
        });
    }
    // Without it the device takes the addresses in the queues for physical ones, and would write
    // wherever an address of ours happens to point.
    if offered & feature::ACCESS_PLATFORM == 0 {
        return Err(DeviceError::Feature {
            name: "ACCESS_PLATFORM",
            bit: 33,
            hint: "its DMA would bypass the IOMMU and hit foreign memory (QEMU: iommu_platform=on)",
        });
    }
    let mut wanted =
        feature::VERSION_1 | feature::ACCESS_PLATFORM | feature::LAYOUT | feature::BACKEND_CH;
    // Means nothing where messages do not say where things are.
    if offered & feature::LAYOUT != 0 {
        wanted |= feature::INFLIGHT;
    }
    Ok(offered & wanted)
}

fn rule(options: &Options, features: u64, pci_device: u16) -> Rule {
    options.rule.unwrap_or({
        if features & feature::LAYOUT != 0 {
            Rule::Told
        } else if pci_device == CROSVM_ID {
            Rule::Packed
        } else {
            Rule::Whole
        }
    })
}

fn identify(
    registers: &Registers,
    space: &ConfigSpace,
    options: &Options,
) -> Result<Identity, DeviceError> {
    let queues = registers.common.num_queues.read();
    if !matches!(queues, 2 | 4) {
        return Err(DeviceError::Queues(queues));
    }
    let max_vhost_queues = registers.config.max_vhost_queues.read();
    let rings = u16::try_from(max_vhost_queues)
        .unwrap_or(u16::MAX)
        .min(MAX_RINGS);
    if rings == 0 {
        return Err(DeviceError::NoRings);
    }
    let features = wanted(registers)?;
    registers.common.device_feature_select.write(0);
    let extensions = u64::from(registers.common.device_feature.read()) & feature::EXTENSIONS;
    let extended = registers.extended.as_ref().filter(|_| extensions != 0);
    let mut uuid = [0; 16];
    registers.config_window.read_bytes(UUID, &mut uuid);
    Ok(Identity {
        pci_device: space.device(),
        features,
        rings,
        max_vhost_queues,
        uuid,
        max_mem_regions: extended.map(|extended| extended.max_mem_regions.read()),
        rule: rule(options, features, space.device()),
        window: registers.memory.len,
    })
}

/// rxq and txq with their buffers, in one piece of DMA memory.
fn queues(
    registers: &Registers,
    function: &mut dyn PciFunction,
) -> Result<[Queue; 2], DeviceError> {
    let size = |queue| {
        let common = &registers.common;
        common.queue_select.write(queue);
        let size = common.queue_size.read().min(QUEUE_SIZE);
        // Split rings have powers of two only; another maximum can still hold the next lower.
        match size.checked_ilog2() {
            Some(log) => Ok(1u16 << log),
            None => Err(DeviceError::QueueSize { queue, size }),
        }
    };
    let (rx, tx) = (size(0)?, size(1)?);
    let bytes = Virtqueue::bytes(rx, BUFFER_LEN).next_multiple_of(4096);
    let memory = function.alloc_dma(bytes + Virtqueue::bytes(tx, BUFFER_LEN))?;
    Ok([
        queue(registers, &memory, 0, (0, rx))?,
        queue(registers, &memory, 1, (bytes, tx))?,
    ])
}

fn queue(
    registers: &Registers,
    memory: &DmaMemory,
    index: u16,
    (offset, size): (usize, u16),
) -> Result<Queue, DeviceError> {
    let direction = match index {
        0 => Direction::FromDevice,
        _ => Direction::ToDevice,
    };
    let ring = Virtqueue::new(memory, offset, size, BUFFER_LEN, direction).map_err(|source| {
        DeviceError::Queue {
            queue: if index == 0 { "rxq" } else { "txq" },
            source,
        }
    })?;
    registers.common.queue_select.write(index);
    let notify = registers.notify_register(registers.common.queue_notify_off.read())?;
    Ok(Queue {
        ring,
        index,
        notify,
    })
}

impl Device {
    /// Writes what the drafts call SLAVE_UP: one 32-bit store, no other bit.
    pub(super) fn set_backend_up(&self, up: bool) {
        let value = if up { link_status::BACKEND_UP } else { 0 };
        self.registers.config.status.write(value);
    }
}
