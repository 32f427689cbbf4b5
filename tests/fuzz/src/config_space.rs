//! A VVU function that is whatever the input says, brought up and driven.
//!
//! The input: a configuration space, sizes of the BARs, vectors, registers with their contents,
//! lies about registers, and then what device and driver do in turn.

use std::time::Duration;

use vvu::device::{Device, Extent, Options, Rule};
use vvu::pci::{CONFIG_LEN, ConfigSpace, Structures};

use crate::Input;
use crate::function::{Function, IOVA, Inside, lock};

/// What happens next; the numbers are those of the input.
pub mod op {
    /// The driver looks what happened.
    pub const EVENT: u8 = 0;
    /// A register changes: u8 BAR, u16 offset, u32 value.
    pub const REGISTER: u8 = 1;
    /// The device writes the driver's memory: u32 offset, a part.
    pub const DMA: u8 = 2;
    /// A vector fires: u8 number.
    pub const FIRE: u8 = 3;
    /// The device returns a buffer: u8 queue, u16 descriptor, u32 length, a part that it wrote.
    pub const USED: u8 = 4;
    /// The driver sends a message: a part.
    pub const SEND: u8 = 5;
    /// The driver maps a region: u64 size, u64 offset.
    pub const MAP: u8 = 6;
    /// The driver uses a ring's notifications: u8 ring.
    pub const NOTIFY: u8 = 7;
    /// The driver ends the connection.
    pub const DISCONNECT: u8 = 8;
    /// Reads of registers are lied about: u8 how many, then for each a byte below 0x80 for the
    /// truth, or another and u32.
    pub const LIES: u8 = 9;
    /// Number of operations.
    pub const COUNT: u8 = 10;
}

/// A device that does not answer costs this much.
const TIMEOUT: Duration = Duration::from_millis(1);

/// Operations that may cost as much.
const SLOW: u32 = 64;

/// Operations that may cost some of it, because nobody takes what was sent.
const SENDS: u32 = 4;

fn lies(input: &mut Input) -> Vec<Option<u32>> {
    let count = input.u8();
    let mut lies: Vec<_> = (0..count)
        .map(|_| (input.u8() >= 0x80).then(|| input.u32()))
        .collect();
    lies.reverse();
    lies
}

/// Where the driver told the device that a queue is.
fn queue(inside: &Inside, space: &ConfigSpace, number: u8) -> Option<[u64; 2]> {
    let common = Structures::find(space).ok()?.common;
    // The addresses that were written last are those of txq; rxq was before it in memory, at the
    // beginning.
    let word = |at| {
        let mut bytes = [0; 8];
        inside.get(common.bar, common.offset.wrapping_add(at), &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let [desc, used] = [word(0x20), word(0x30)];
    match number % 2 {
        0 => Some([IOVA, IOVA.checked_add(used.checked_sub(desc)?)?]),
        _ => Some([desc, used]),
    }
}

fn return_buffer(inside: &Inside, space: &ConfigSpace, input: &mut Input) {
    let (number, id, len) = (input.u8(), input.u16(), input.u32());
    let data = input.part();
    let Some([desc, used]) = queue(inside, space, number) else {
        return;
    };
    let at = |base: u64, offset: u64| base.wrapping_add(offset);
    let buffer: Vec<u8> = (0..4)
        .flat_map(|word| {
            inside
                .dma_u16(at(desc, 16 * u64::from(id) + 2 * word))
                .to_le_bytes()
        })
        .collect();
    if let Some(buffer) = buffer.first_chunk() {
        inside.dma_write(u64::from_le_bytes(*buffer), &data);
    }
    let index = inside.dma_u16(at(used, 2));
    // The queue has 64 entries, unless the device said that it takes fewer.
    let slot = at(used, 4 + 8 * u64::from(index % 64));
    inside.dma_write(slot, &u32::from(id).to_le_bytes());
    inside.dma_write(at(slot, 4), &len.to_le_bytes());
    inside.dma_write(at(used, 2), &index.wrapping_add(1).to_le_bytes());
}

/// Brings the function up, and if that works, drives it.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut config = [0; CONFIG_LEN];
    for (to, from) in config.iter_mut().zip(input.bytes(CONFIG_LEN)) {
        *to = from;
    }
    let mut inside = Inside::default();
    for size in &mut inside.bars {
        *size = match input.u8() % 64 {
            0 => 0,
            log => 1 << log,
        };
    }
    inside.vectors = u16::from(input.u8() % 80);
    let options = Options {
        rule: match input.u8() % 4 {
            0 => None,
            1 => Some(Rule::Whole),
            2 => Some(Rule::Packed),
            _ => Some(Rule::Told),
        },
        rings: u16::from(input.u8()),
        timeout: TIMEOUT,
    };
    for _ in 0..input.u8() {
        let (bar, offset) = (input.u8(), input.u16());
        inside.set(bar, offset.into(), &input.bytes(4));
    }
    inside.lies = lies(&mut input);

    let (function, inside) = Function::new(config, inside);
    let space = ConfigSpace::read(&function);
    let mut device = match Device::open(Box::new(function), options) {
        Ok(device) => device,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let rings = device.identity().rings;
    assert!((1..=256).contains(&rings));
    let (mut slow, mut sends) = (0, 0);
    while !input.is_empty() {
        match input.u8() % op::COUNT {
            op::EVENT if slow < SLOW => {
                let _ = device.next_event();
                slow += 1;
            }
            op::REGISTER => {
                let (bar, offset) = (input.u8(), input.u16());
                lock(&inside).set(bar, offset.into(), &input.bytes(4));
            }
            op::DMA => {
                let offset = u64::from(input.u32());
                lock(&inside).dma_write(IOVA + offset, &input.part());
            }
            op::FIRE => lock(&inside).fire(input.u8()),
            op::USED => return_buffer(&lock(&inside), &space, &mut input),
            op::SEND if sends < SENDS => {
                let _ = device.send(&[&input.part(), &[]]);
                sends += 1;
            }
            op::MAP => {
                let (size, mmap_offset) = (input.u64(), input.u64());
                let window = device.identity().window;
                if let Ok(areas) = device.map(&[Extent { size, mmap_offset }]) {
                    assert!(areas.iter().all(|area| area.len() as u64 <= window));
                }
            }
            op::NOTIFY => {
                let ring = u16::from(input.u8());
                let doorbells = [device.doorbell(ring), device.error_doorbell(ring)];
                assert!(ring < rings || doorbells.iter().all(Option::is_none));
                for (doorbell, number) in doorbells.into_iter().flatten() {
                    doorbell.write(number);
                }
                let _ = device.kick(ring);
            }
            op::DISCONNECT => device.disconnect(),
            op::LIES => lock(&inside).lies = lies(&mut input),
            _ => {}
        }
    }
    device.shutdown();
}
