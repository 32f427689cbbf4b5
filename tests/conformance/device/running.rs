//! While a processor runs: QEMU alone, which may be in the middle of a processor's access when
//! something changes.
//!
//! The processor's firmware is ours. For ever it does what two words of memory say: store 1 to the
//! address in BELL, once, and load from the address in LOOK.

use std::sync::atomic::Ordering;
use std::time::Instant;

use vm_memory::Bytes;
use vvu::memory::Area;
use vvu::protocol::MemRegion;

use crate::bench::Bench;
use crate::driver::LAYOUT;
use crate::front_end::{PLAIN, eventfd, memory, region, request, signals, wait_signal};
use crate::target::{Setup, Target};
use crate::{PATIENCE, pause};

/// Words of the machine's memory: what to do, and what was done.
const BELL: usize = 0x1000;
const LOOK: usize = 0x1004;
const BELLS: usize = 0x1008;
const SEEN: usize = 0x100c;
const LOOKS: usize = 0x1010;

/// In the last page of the first 64 KiB below 1 MiB.
const CODE: [u8; 86] = [
    // 0xff000, 16 bits: to protected mode with flat segments.
    0xfa, // cli
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x80, 0xf0, // lgdtl %cs:0xf080
    0x0f, 0x20, 0xc0, // mov %cr0, %eax
    0x0c, 0x01, // or $1, %al
    0x0f, 0x22, 0xc0, // mov %eax, %cr0
    0x66, 0xea, 0x18, 0xf0, 0x0f, 0x00, 0x08, 0x00, // ljmpl $8, $0xff018
    // 0xff018, 32 bits.
    0x66, 0xb8, 0x10, 0x00, // mov $0x10, %ax
    0x8e, 0xd8, // mov %eax, %ds
    // 0xff01e
    0x8b, 0x1d, 0x00, 0x10, 0x00, 0x00, // mov BELL, %ebx
    0x85, 0xdb, // test %ebx, %ebx
    0x74, 0x15, // jz 0xff03d
    0x66, 0xc7, 0x03, 0x01, 0x00, // movw $1, (%ebx)
    0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0, 0, 0, 0, // movl $0, BELL
    0xff, 0x05, 0x08, 0x10, 0x00, 0x00, // incl BELLS
    // 0xff03d
    0x8b, 0x1d, 0x04, 0x10, 0x00, 0x00, // mov LOOK, %ebx
    0x85, 0xdb, // test %ebx, %ebx
    0x74, 0xd7, // jz 0xff01e
    0x8b, 0x03, // mov (%ebx), %eax
    0xa3, 0x0c, 0x10, 0x00, 0x00, // mov %eax, SEEN
    0xff, 0x05, 0x10, 0x10, 0x00, 0x00, // incl LOOKS
    0xeb, 0xc8, // jmp 0xff01e
];

/// Limit and base of the segments' table at 0xff088: none, code, data.
const SEGMENTS: [u8; 32] = [
    0x17, 0x00, 0x88, 0xf0, 0x0f, 0x00, 0, 0, // the table itself
    0, 0, 0, 0, 0, 0, 0, 0, // no segment
    0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // code
    0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0, // data
];

fn firmware() -> Vec<u8> {
    let mut image = vec![0; 0x10000];
    image[0xf000..][..CODE.len()].copy_from_slice(&CODE);
    image[0xf080..][..SEGMENTS.len()].copy_from_slice(&SEGMENTS);
    // Where a processor begins: jmp 0xf000.
    let back = 0xf000u16.wrapping_sub(0xfff3).to_le_bytes();
    image[0xfff0..0xfff3].copy_from_slice(&[0xe9, back[0], back[1]]);
    image
}

/// A bench in a machine whose processor runs.
struct Running {
    bench: Bench,
    memory: Area,
}

impl Running {
    fn start(target: &dyn Target) -> Self {
        let setup = Setup {
            // Where the processor's addresses reach.
            window: 128 << 20,
            firmware: Some(firmware()),
            ..Setup::default()
        };
        let mut bench = Bench::new(target, &setup);
        let memory = bench.machine.memory().unwrap();
        bench.driver.start(LAYOUT, 16, 8192);
        let running = Self { bench, memory };
        running.set(LOOK, BELL as u32);
        running.passes(LOOKS, 2);
        running
    }

    fn word(&self, at: usize) -> u32 {
        self.memory.slice().load(at, Ordering::SeqCst).unwrap()
    }

    fn set(&self, at: usize, value: u32) {
        let done = self.memory.slice().store(value, at, Ordering::SeqCst);
        done.unwrap();
    }

    /// Waits until a count has grown.
    fn passes(&self, count: usize, more: u32) {
        let (before, start) = (self.word(count), Instant::now());
        while self.word(count).wrapping_sub(before) < more {
            assert!(start.elapsed() < PATIENCE, "the processor does not run");
            pause();
        }
    }

    /// Where the machine has a BAR.
    fn address(&self, bar: u8) -> u32 {
        let mut bytes = [0; 4];
        let at = 0x10 + 4 * u16::from(bar);
        self.bench.driver.function.read_config(at, &mut bytes);
        u32::from_le_bytes(bytes) & !0xf
    }
}

pub(super) fn c26_replacement_while_a_processor_rings(target: &dyn Target) {
    let mut running = Running::start(target);
    let mut front_end = running.bench.connect_up();
    let fds = [eventfd(), eventfd()];
    let bells = running.bench.driver.found.doorbells.location;
    let offset = bells.offset + running.bench.driver.doorbell(3);
    let bell = running.address(bells.bar) + offset as u32;
    for round in 0..200 {
        let bells = running.word(BELLS);
        // This one meets either of the two.
        running.set(BELL, bell);
        front_end.number(request::SET_VRING_CALL, PLAIN, 3, &[&fds[round & 1]]);
        running.bench.driver.expect(request::SET_VRING_CALL);
        while running.word(BELLS) == bells {
            pause();
        }
        // And this one the new one.
        let _ = fds.each_ref().map(signals);
        running.set(BELL, bell);
        assert_eq!(wait_signal(&fds[round & 1]), 1);
        assert_eq!(signals(&fds[!round & 1]), 0);
        while running.word(BELLS) == bells.wrapping_add(1) {
            pause();
        }
    }
}

pub(super) fn c31_memory_replaced_while_a_processor_reads(target: &dyn Target) {
    let mut running = Running::start(target);
    let mut front_end = running.bench.connect_up();
    let files = [0; 2].map(|_| memory("vvu-running", 0x40_0000, 0x10000));
    let tables: [MemRegion; 2] = [region(0, 0x40_0000, 0), region(0, 0x20_0000, 0x20_0000)];
    front_end.memory(PLAIN, &tables[..1], &[&files[1]]);
    running.bench.driver.expect(request::SET_MEM_TABLE);
    let window = running.bench.driver.found.memory;
    let look = running.address(window.bar) + window.offset as u32 + 0x1_0000;
    running.set(LOOK, look);
    running.passes(LOOKS, 2);
    let before = running.word(LOOKS);
    for round in 0..1000 {
        let table = &tables[(round / 2) & 1..][..1];
        front_end.memory(PLAIN, table, &[&files[round & 1]]);
        running.bench.driver.expect(request::SET_MEM_TABLE);
        // One or the other, but never nothing.
        let seen = running.word(SEEN);
        assert!(
            [0x1_0010, 0x1_0210].contains(&seen),
            "round {round}: {seen:#x}"
        );
    }
    assert_ne!(running.word(LOOKS), before);
    running.bench.wait_mapped("vvu-running", tables[1].size);

    // And while it goes away.
    running.bench.close(front_end);
    running.bench.driver.reset();
    running.bench.wait_mapped("vvu-running", 0);
    running.passes(LOOKS, 10);
    assert_eq!(running.word(SEEN), 0);
}
