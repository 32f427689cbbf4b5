//! A ring of the data plane in memory that a hostile driver writes.
//!
//! The first bytes say what ring it is, the rest what the driver and the device do, in turn.

use std::sync::Arc;

use vm_memory::Bytes;
use vvu::memory::{Area, Mapping, MemTable, Region, VolatileSlice};
use vvu::notify::{Call, Kick};
use vvu::virtio::{RingAreas, Vring};
use vvu_pmd::vring::{Chain, MAX_CHAIN, Moved, Ring, feature};

use crate::Input;

/// Where the guest has memory, and how much: two regions that touch, and one by itself whose end
/// is not a page's.
pub const REGIONS: [(u64, usize); 3] = [(0x1000, 0x4000), (0x5000, 0x1000), (0x10_0000, 0x230)];

/// Offsets of the ring's parts in the first region, unless the input says otherwise.
pub const PARTS: [usize; 3] = [0, 0x1000, 0x2000];

/// What happens next; the numbers are those of the input.
pub mod op {
    /// The driver writes: u16 offset, a part.
    pub const WRITE: u8 = 0;
    /// The driver writes a descriptor: u8 index, u64 address, u32 length, u16 flags, u16 next.
    pub const DESCRIPTOR: u8 = 1;
    /// The driver makes a chain available: u16 head, or slot of a packed ring, whose flags toggle.
    pub const OFFER: u8 = 2;
    /// The device takes a burst: u8 most. All bytes are read and written.
    pub const TAKE: u8 = 3;
    /// It gives chains back: u8 how many, u32 length.
    pub const GIVE_BACK: u8 = 4;
    /// It ends the burst and publishes.
    pub const FINISH: u8 = 5;
    /// It gives all chains back, nothing of them written.
    pub const GIVE_BACK_READ: u8 = 6;
    /// It publishes.
    pub const PUBLISH: u8 = 7;
    /// It asks for kicks.
    pub const ENABLE: u8 = 8;
    /// It asks for none.
    pub const DISABLE: u8 = 9;
    /// The ring moves: parts as at the beginning.
    pub const MOVE: u8 = 10;
    /// Number of operations.
    pub const COUNT: u8 = 11;
}

/// A guest's memory.
struct Guest {
    areas: Vec<Area>,
    table: Arc<MemTable>,
}

impl Guest {
    fn new() -> Option<Self> {
        let areas = REGIONS.iter().map(|&(_, len)| Mapping::anonymous(len).ok());
        let areas: Vec<Area> = areas
            .map(|area| area.map(Area::from))
            .collect::<Option<_>>()?;
        let regions = REGIONS.iter().zip(&areas);
        let regions = regions.map(|(&(guest_addr, _), bytes)| Region {
            guest_addr,
            user_addr: guest_addr,
            bytes: bytes.clone(),
        });
        let table = MemTable::new(regions.collect()).ok()?;
        Some(Self {
            areas,
            table: Arc::new(table),
        })
    }

    fn first(&self) -> VolatileSlice<'_> {
        self.areas[0].slice()
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let _ = self.first().write(bytes, offset);
    }

    /// That a piece of a chain lies in the guest's memory.
    fn owns(&self, piece: &VolatileSlice<'_>) -> bool {
        let start = piece.ptr_guard().as_ptr().addr();
        self.areas.iter().any(|area| {
            let offset = start.checked_sub(area.address());
            offset.is_some_and(|offset| offset + piece.len() <= area.len())
        })
    }

    /// A place for each part, and how long it is: to the end of the region, or less.
    fn parts(&self, input: &mut Input) -> ([usize; 3], RingAreas) {
        let mut offsets = PARTS;
        let mut lengths = PARTS.map(|_| usize::MAX);
        if input.u8() & 1 != 0 {
            for (offset, len) in offsets.iter_mut().zip(&mut lengths) {
                *offset = usize::from(input.u16()) % REGIONS[0].1;
                *len = usize::from(input.u16());
            }
        }
        let [desc, driver, device] = [0, 1, 2].map(|part| {
            let len = lengths[part].min(REGIONS[0].1 - offsets[part]);
            self.areas[0].sub(offsets[part], len)
        });
        let whole = || self.areas[0].clone();
        let areas = RingAreas {
            desc: desc.unwrap_or_else(whole),
            driver: driver.unwrap_or_else(whole),
            device: device.unwrap_or_else(whole),
        };
        (offsets, areas)
    }
}

/// The features that the first byte stands for.
fn features(bits: u8) -> u64 {
    [
        feature::EVENT_IDX,
        feature::INDIRECT_DESC,
        feature::VERSION_1,
        feature::RING_PACKED,
        feature::IN_ORDER,
    ]
    .iter()
    .zip(0..)
    .filter(|(_, bit)| bits & (1 << bit) != 0)
    .fold(0, |all, (feature, _)| all | feature)
}

/// Reads what is readable and writes what is writable.
fn touch(guest: &Guest, ring: &Ring, chain: &Chain) {
    let mut buffer = [0x5a; 4096];
    let (mut readable, mut writable, mut pieces) = (0, 0, 0);
    for piece in ring.readable(chain) {
        assert!(guest.owns(&piece));
        readable += piece.len();
        pieces += 1;
        piece.copy_to(&mut buffer);
    }
    for piece in ring.writable(chain) {
        assert!(guest.owns(&piece));
        writable += piece.len();
        pieces += 1;
        piece.copy_from(&buffer);
    }
    assert_eq!(readable, chain.read_len() as usize);
    assert_eq!(writable, chain.write_len() as usize);
    assert!(pieces <= MAX_CHAIN);
}

/// Serves the ring.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let features = features(input.u8());
    // One size in sixteen is no power of two.
    let size = match input.u8() {
        odd if odd >= 0xf0 => u16::from(odd),
        log => 1 << (log % 9),
    };
    let packed = features & feature::RING_PACKED != 0;
    let base = input.u16();
    let Some(guest) = Guest::new() else {
        return;
    };
    let (mut offsets, areas) = guest.parts(&mut input);
    let vring = Vring {
        inflight: None,
        index: 0,
        size,
        areas,
        base: base.into(),
        features,
        enabled: true,
        kick: Kick::Polled,
        call: Call::Silent,
        err: Call::Silent,
        memory: Arc::clone(&guest.table),
    };
    let Ok((mut ring, _)) = Ring::new(vring) else {
        return;
    };
    // Chains given back, and those of them that the driver was shown.
    let mut given = 0u16;
    while !input.is_empty() {
        let [_, avail, _] = offsets;
        match input.u8() % op::COUNT {
            op::WRITE => guest.write(input.u16().into(), &input.part()),
            op::DESCRIPTOR => {
                let at = offsets[0] + 16 * usize::from(input.u8());
                guest.write(at, &input.bytes(16));
            }
            op::OFFER if packed => {
                let slice = guest.first();
                let at = offsets[0] + 16 * usize::from(input.u16() % size) + 14;
                let flags: u16 = slice.read_obj(at).unwrap_or(0);
                let _ = slice.write_obj(flags & !0x8080 | !flags & 0x80 | (flags & 0x80) << 8, at);
            }
            op::OFFER => {
                let slice = guest.first();
                let index: u16 = slice.read_obj(avail + 2).unwrap_or(0);
                let slot = avail + 4 + 2 * usize::from(index % size);
                let _ = slice.write_obj(input.u16(), slot);
                let _ = slice.write_obj(index.wrapping_add(1), avail + 2);
            }
            op::TAKE => {
                let before = ring.chains().len();
                let most = input.u8().into();
                let failed = ring.failed();
                let taken = ring.take_burst(most);
                assert!(taken <= most && taken <= usize::from(size));
                assert!(failed.is_none() || taken == 0);
                assert_eq!(ring.chains().len(), before + taken);
                for chain in ring.chains().get(before..).unwrap_or(&[]) {
                    assert!(packed || chain.id() < size);
                    touch(&guest, &ring, chain);
                }
            }
            op::GIVE_BACK => {
                let count = ring.chains().len().min(input.u8().into());
                let len = input.u32();
                for _ in 0..count {
                    ring.give_back(len);
                }
                given = given.wrapping_add(count as u16);
            }
            op::FINISH => ring.finish(),
            op::GIVE_BACK_READ => {
                given = given.wrapping_add(ring.chains().len() as u16);
                ring.give_back_read();
            }
            op::PUBLISH => ring.publish(),
            op::ENABLE => {
                ring.enable_kicks();
            }
            op::DISABLE => ring.disable_kicks(),
            _ => {
                let (to, areas) = guest.parts(&mut input);
                let table = Arc::clone(&guest.table);
                if let Ok(moved) = Moved::new(table, areas, size, features) {
                    ring.set_memory(moved);
                    offsets = to;
                }
            }
        }
    }
    ring.finish();
    assert!(ring.chains().is_empty());
    // Whatever happened, it goes on behind what was given back.
    let end = ring.base();
    if packed {
        assert_eq!(end as u16, (end >> 16) as u16);
        assert!((end as u16 & 0x7fff) < size);
    } else {
        assert_eq!(end, u32::from(base.wrapping_add(given)));
    }
}
