//! The device model between a driver and a front-end that both do what the input says.
//!
//! The first bytes say what device it is, the rest what happens, in turn. The model's thread is
//! this one: after each step it does what there is to do, and must come to an end.

use std::os::fd::AsRawFd;

use vm_memory::Bytes;
use vvu::memory::{Area, Mapping};
use vvu::model::{ByHand, FrontEnd as Source, Model, Shape};
use vvu::pci::{CONFIG_LEN, ConfigSpace, Location, Structures};

use crate::Input;
use crate::front_end::{FrontEnd, event};

/// Where the driver's memory is for the function, and how much of it there is.
pub const IOVA: u64 = 0x10_0000;
/// See [`IOVA`].
pub const DMA: usize = 0x2_0000;

/// Where the parts of rxq are in it after a bring-up, and how far txq is behind it.
pub const PARTS: [u64; 3] = [0, 0x1000, 0x2000];
/// See [`PARTS`].
pub const QUEUE: u64 = 0x4000;
/// Where buffers are, and how long they are.
pub const BUFFERS: u64 = 0x8000;
/// See [`BUFFERS`].
pub const BUFFER: u64 = 0x400;
/// Entries of the queues after a bring-up.
pub const SIZE: u16 = 64;
/// Buffers that rxq has then.
const OFFERED: u16 = 16;

/// What happens next; the numbers are those of the input.
pub mod op {
    /// The front-end sends a message: see `front_end`.
    pub const MESSAGE: u8 = 0;
    /// It sends bytes: a part.
    pub const BYTES: u8 = 1;
    /// It reads what came.
    pub const HEAR: u8 = 2;
    /// It hangs up.
    pub const HANG_UP: u8 = 3;
    /// It kicks.
    pub const KICK: u8 = 4;
    /// The memory's file gets another length: u16.
    pub const TRUNCATE: u8 = 5;
    /// The driver writes to a structure: u8 which, u16 offset, a part.
    pub const WRITE: u8 = 6;
    /// It reads from one: u8 which, u16 offset, u8 length.
    pub const READ: u8 = 7;
    /// It writes configuration space: u8 offset, a part. And reads it.
    pub const CONFIG: u8 = 8;
    /// It writes to a BAR and reads there: u8 which, u64 offset, a part.
    pub const BAR: u8 = 9;
    /// It brings the device up: u32 features below bit 32.
    pub const BRING_UP: u8 = 10;
    /// It writes its memory: u32 offset, a part.
    pub const DMA: u8 = 11;
    /// It writes a descriptor: u8 queue, u8 index, u64 address, u32 length, u16 flags, u16 next.
    pub const DESCRIPTOR: u8 = 12;
    /// It makes a chain available and says so: u8 queue, u16 head.
    pub const OFFER: u8 = 13;
    /// It sends a message: a part.
    pub const SEND: u8 = 14;
    /// Somebody is to be told of a vector, or nobody: u16 vector, u8 whether.
    pub const VECTOR: u8 = 15;
    /// Memory is mapped for the device: u64 address, u16 length.
    pub const MAP: u8 = 16;
    /// And taken back: u64 address, u64 length.
    pub const UNMAP: u8 = 17;
    /// The function is reset.
    pub const RESET: u8 = 18;
    /// The memory window is read and written: u32 offset.
    pub const WINDOW: u8 = 19;
    /// The front-end says something where it hears requests of the driver's: a part. Nothing: it
    /// reads them.
    pub const CHANNEL: u8 = 20;
    /// Number of operations.
    pub const COUNT: u8 = 21;
}

/// Events in a row after which a model must have come to rest.
const RESTLESS: u32 = 200;

/// The model, and what a bus knows of it.
struct Bench {
    model: Model,
    hand: ByHand,
    places: [Location; 7],
    dma: Area,
}

impl Bench {
    fn new(input: &mut Input, front_end: &FrontEnd) -> Option<Self> {
        let kind = input.u8();
        let shape = match kind & 3 {
            0 => Shape::ours(),
            1 => Shape::prototype(0x1058),
            2 => Shape::prototype(0x106b),
            _ => Shape::crosvm(),
        };
        let shape = Shape {
            rings: u32::from(input.u8()) + 1,
            vectors: u16::from(input.u8()) + 1,
            queue_size: 1 << (input.u8() % 9),
            window: 4 << 20,
            layout: kind & 4 != 0,
            long_capability: kind & 8 != 0,
            ..shape
        };
        let peer = (kind & 16 != 0).then(|| front_end.memory.try_clone().ok());
        let source = Source::Listen(front_end.path());
        let (model, hand) = Model::by_hand(shape, source, peer.flatten()).ok()?;
        let mut config = vec![0; CONFIG_LEN];
        model.read_config(0, &mut config);
        let found = Structures::find(&ConfigSpace::new(config)).ok()?;
        let dma = Area::from(Mapping::anonymous(DMA).ok()?);
        model.map_dma(IOVA, dma.clone()).ok()?;
        Some(Self {
            model,
            hand,
            places: [
                found.common,
                found.notify.location,
                found.isr,
                found.device,
                found.doorbells.location,
                found.notifications,
                found.memory,
            ],
            dma,
        })
    }

    fn write(&self, place: usize, offset: u64, bytes: &[u8]) {
        let at = self.places[place];
        self.model.write_bar(at.bar, at.offset + offset, bytes);
    }

    fn common(&self, offset: u64, value: u16) {
        self.write(0, offset, &value.to_le_bytes());
    }

    fn dma(&self, offset: u64, bytes: &[u8]) {
        let _ = self.dma.slice().write(bytes, offset as usize);
    }

    fn descriptor(&self, queue: u64, index: u16, len: u32, flags: u16) {
        let at = QUEUE * queue + 16 * u64::from(index);
        let buffer = IOVA + BUFFERS + BUFFER * u64::from(index);
        self.dma(at, &buffer.to_le_bytes());
        self.dma(at + 8, &len.to_le_bytes());
        self.dma(at + 12, &flags.to_le_bytes());
    }

    fn offer(&self, queue: u64, head: u16) {
        let avail = QUEUE * queue + PARTS[1];
        let slice = self.dma.slice();
        let index: u16 = slice.read_obj(avail as usize + 2).unwrap_or(0);
        let slot = avail + 4 + 2 * u64::from(index % SIZE);
        self.dma(slot, &head.to_le_bytes());
        self.dma(avail + 2, &index.wrapping_add(1).to_le_bytes());
        self.write(1, 4 * queue, &(queue as u16).to_le_bytes());
    }

    /// As a driver does it, in any state.
    fn bring_up(&self, features: u32) {
        for status in [0, 1, 3] {
            self.write(0, 0x14, &[status]);
        }
        for (select, half) in [(0u32, features), (1, 3)] {
            self.write(0, 0x08, &select.to_le_bytes());
            self.write(0, 0x0c, &half.to_le_bytes());
        }
        self.write(0, 0x14, &[11]);
        self.common(0x10, 0);
        for queue in 0..2u16 {
            self.common(0x16, queue);
            self.common(0x18, SIZE);
            self.common(0x1a, queue + 1);
            for (part, at) in PARTS.into_iter().zip([0x20, 0x28, 0x30]) {
                let address = IOVA + QUEUE * u64::from(queue) + part;
                self.write(0, at, &(address as u32).to_le_bytes());
                self.write(0, at + 4, &((address >> 32) as u32).to_le_bytes());
            }
            self.common(0x1c, 1);
            self.dma(QUEUE * u64::from(queue), &[0; QUEUE as usize]);
        }
        self.write(0, 0x14, &[15]);
        for index in 0..OFFERED {
            self.descriptor(0, index, BUFFER as u32, 2);
            self.offer(0, index);
        }
        self.write(3, 0, &1u32.to_le_bytes());
    }

    fn send(&self, bytes: &[u8]) {
        let index = SIZE - 1;
        self.dma(BUFFERS + BUFFER * u64::from(index), bytes);
        self.descriptor(1, index, bytes.len() as u32, 0);
        self.offer(1, index);
    }

    /// What a driver in this process gets of the window.
    fn window(&self, offset: u32) {
        let Location {
            bar, offset: start, ..
        } = self.places[6];
        let offset = start + u64::from(offset);
        let Some(area) = self.model.map_bar(bar, offset, 8) else {
            return;
        };
        let _ = area.slice().write_obj(!0u64, 0);
        let _ = area.slice().read_obj::<u64>(0);
    }
}

/// Lets both sides do what the input says.
pub fn run(data: &[u8]) {
    let Some(first) = event() else {
        return;
    };
    // The lowest free descriptor: if it grows, some were left open.
    let before = first.as_raw_fd();
    drop(first);
    let _ = play(data);
    let after = event().map_or(before, |fd| fd.as_raw_fd());
    assert_eq!(after, before, "descriptors were left open");
}

fn play(data: &[u8]) -> Option<()> {
    let mut input = Input::new(data);
    let mut front_end = FrontEnd::new()?;
    let mut bench = Bench::new(&mut input, &front_end)?;
    while !input.is_empty() {
        step(&bench, &mut front_end, &mut input);
        let mut events = 0;
        while bench.hand.work() {
            events += 1;
            assert!(events < RESTLESS, "the model does not come to rest");
        }
    }
    let status = bench.model.status();
    assert!(status.counters.refused == 0 || status.last_refusal.is_some());
    Some(())
}

fn step(bench: &Bench, front_end: &mut FrontEnd, input: &mut Input) {
    let model = &bench.model;
    match input.u8() % op::COUNT {
        op::MESSAGE if front_end.is_connected() || front_end.connect() => {
            front_end.message(input);
        }
        op::BYTES if front_end.is_connected() || front_end.connect() => {
            front_end.bytes(&input.part());
        }
        op::HEAR => front_end.hear(|_| ()),
        op::CHANNEL => front_end.channel(&input.part()),
        op::HANG_UP => front_end.hang_up(),
        op::KICK => {
            let _ = rustix::io::write(&front_end.event, &1u64.to_ne_bytes());
        }
        op::TRUNCATE => front_end.truncate(input.u16().into()),
        op::WRITE => {
            let (place, offset) = (usize::from(input.u8()) % 7, input.u16().into());
            bench.write(place, offset, &input.part());
        }
        op::READ => {
            let at = bench.places[usize::from(input.u8()) % 7];
            let offset = at.offset + u64::from(input.u16());
            let mut bytes = vec![0; input.u8().into()];
            model.read_bar(at.bar, offset, &mut bytes);
        }
        op::CONFIG => {
            let offset = input.u8().into();
            let mut bytes = input.part();
            model.write_config(offset, &bytes);
            model.read_config(offset, &mut bytes);
        }
        op::BAR => {
            let (bar, offset) = (input.u8(), input.u64());
            let mut bytes = input.part();
            model.write_bar(bar, offset, &bytes);
            model.read_bar(bar, offset, &mut bytes);
        }
        op::BRING_UP => bench.bring_up(input.u32()),
        op::DMA => {
            let offset = input.u32().into();
            bench.dma(offset, &input.part());
        }
        op::DESCRIPTOR => {
            let queue = QUEUE * u64::from(input.u8() & 1);
            let at = queue + 16 * u64::from(input.u8());
            bench.dma(at, &input.bytes(16));
        }
        op::OFFER => bench.offer(u64::from(input.u8() & 1), input.u16()),
        op::SEND => bench.send(&input.part()),
        op::VECTOR => {
            let vector = input.u16();
            let fd = (input.u8() & 1 != 0).then(event);
            model.set_vector(vector, fd.flatten());
        }
        op::MAP => {
            let (iova, len) = (input.u64(), input.u16().into());
            if let Some(area) = bench.dma.sub(0, len) {
                let _ = model.map_dma(iova, area);
            }
        }
        op::UNMAP => {
            let _ = model.unmap_dma(input.u64(), input.u64());
        }
        op::RESET => model.reset(),
        op::WINDOW => bench.window(input.u32()),
        _ => {}
    }
}
