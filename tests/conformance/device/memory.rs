//! The front-end's memory in the window.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vvu::protocol::Request;

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, LAYOUT, read};
use crate::front_end::{PLAIN, memory, message, read_at, region, request, write_at};
use crate::step;
use crate::target::{Setup, Target};

/// The example of the 4 GiB guest with a hole, by every rule: that of the prototypes' ids, that of
/// ours, and the one that the driver is told.
pub(super) fn c09_placement(target: &dyn Target) {
    const GIB: u64 = 1 << 30;
    let regions = [
        region(0, 0xa_0000, 0),
        region(0xc_0000, 0x7ff4_0000, 0xc_0000),
        region(4 * GIB, 2 * GIB, 2 * GIB),
    ];
    let whole = [0, 0x16_0000, 0x1_000a_0000];
    let packed = [0, 0xa_0000, 0x7ffe_0000];
    let told = [0, 0xc_0000, 0x8000_0000];
    // And where in the window there is nothing of what the front-end did not list.
    for (id, features, window, starts, hole) in [
        (0x1058, 0, 8 * GIB, whole, 0xb_0000),
        (0x107d, 0, 4 * GIB, packed, 0xfffe_0000),
        (0x107d, LAYOUT, 4 * GIB, told, 0xa_0000),
        (0x1058, LAYOUT, 4 * GIB, told, 0xa_0000),
    ] {
        step(format!("id {id:04x}, features {features:x}"));
        let setup = Setup {
            id,
            window,
            ..Setup::default()
        };
        let mut bench = Bench::new(target, &setup);
        let file = memfd_create("vvu-place", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4 * GIB).unwrap();
        for (nth, region) in (0x1234..).zip(&regions) {
            write_at(&file, region.mmap_offset, nth);
            write_at(&file, region.mmap_offset + region.size - 4, nth);
        }
        bench.driver.start(features, 16, 8192);
        let mut front_end = bench.connect_up();
        front_end.memory(PLAIN, &regions, &[&file; 3]);
        let payload = bench.driver.expect(request::SET_MEM_TABLE);
        let table = Request::parse(&message(request::SET_MEM_TABLE, PLAIN, &payload)).unwrap();
        let Request::SetMemTable(heard) = table else {
            panic!("{table:?}");
        };
        for (nth, ((said, heard), start)) in (0x1234..).zip(regions.iter().zip(&heard).zip(starts))
        {
            let offset = if features == LAYOUT {
                start
            } else {
                said.mmap_offset
            };
            assert_eq!(heard.mmap_offset, offset);
            assert_eq!((heard.guest_addr, heard.size), (said.guest_addr, said.size));
            assert_eq!(bench.driver.load(start), nth);
            assert_eq!(bench.driver.load(start + said.size - 4), nth);
        }
        assert_eq!(bench.driver.load(hole), 0);
    }
}

/// Loads from the window all the time, as a processor that serves a ring does.
struct Reader {
    stop: Arc<AtomicBool>,
    loads: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reader {
    /// Every load must give one of these.
    fn start(bench: &Bench, offset: u64, good: [u32; 2]) -> Self {
        let (stop, loads) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = {
            let (stop, loads) = (Arc::clone(&stop), Arc::clone(&loads));
            let window = bench.driver.window.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seen = read::<u32>(&window, offset);
                    assert!(good.contains(&seen), "{seen:#x} is in the window");
                    loads.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        Self {
            stop,
            loads,
            thread: Some(thread),
        }
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("every load");
        self.loads.load(Ordering::Relaxed)
    }
}

pub(super) fn c31_memory_replaced(target: &dyn Target) {
    let files = [0x10000, 0x20000].map(|seed| memory("vvu-swap", 0x40_0000, seed));
    let mut bench = Bench::started(target);
    let idle = bench.descriptors();
    let mut front_end = bench.connect_up();
    let split = |at: u64| [region(0, at, 0), region(at, 0x40_0000 - at, at)];
    let tables = [split(0x20_0000), split(0x10_0000)];
    front_end.memory(PLAIN, &tables[1], &[&files[1]; 2]);
    bench.driver.expect(request::SET_MEM_TABLE);
    let before = bench.descriptors();
    let reader = Reader::start(&bench, 0x5_0000, [0x10050, 0x20050]);
    for round in 0..1000 {
        let now = round & 1;
        front_end.memory(PLAIN, &tables[now], &[&files[now]; 2]);
        bench.driver.expect(request::SET_MEM_TABLE);
        assert_eq!(bench.driver.load(0), (now as u32 + 1) * 0x10000);
    }
    assert!(reader.finish() > 0);
    bench.wait_descriptors(before);
    bench.wait_mapped("vvu-swap", 0x40_0000);

    // The driver's stores are the front-end's memory.
    bench.driver.store(0x3000, 0xcafe);
    assert_eq!(read_at(&files[1], 0x3000), 0xcafe);

    // A table that grows leaves what stays in its place.
    let reader = Reader::start(&bench, 0x5_0000, [0x20050; 2]);
    let [first, second] = tables[1];
    let grown = [first, second, region(0x1000_0000, 0x40_0000, 0)];
    front_end.memory(PLAIN, &grown, &[&files[1], &files[1], &files[0]]);
    bench.driver.expect(request::SET_MEM_TABLE);
    assert_eq!(bench.driver.load(0x40_0000), 0x10000);
    reader.finish();
    bench.wait_mapped("vvu-swap", 0x80_0000);

    bench.close(front_end);
    bench.driver.reset();
    bench.wait_mapped("vvu-swap", 0);
    bench.driver.start(0, 16, 8192);
    bench.wait_descriptors(idle);
}

pub(super) fn c32_revocation(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let file = memory("vvu-revoke", 0x10000, 0x4242);
    for reset in [false, true] {
        let mut front_end = bench.connect_up();
        front_end.memory(PLAIN, &[region(0, 0x10000, 0)], &[&file]);
        bench.driver.expect(request::SET_MEM_TABLE);
        assert_eq!(bench.driver.load(0), 0x4242);
        bench.close(front_end);
        // The driver may still be busy with it.
        assert_eq!(bench.driver.load(0), 0x4242);
        if reset {
            bench.driver.reset();
        } else {
            bench.driver.set_status(BACKEND_UP);
        }
        assert_eq!(bench.driver.load(0), 0);
        bench.driver.store(0, 7);
        bench.wait_mapped("vvu-revoke", 0);
        assert_eq!(read_at(&file, 0), 0x4242);
        bench.driver.start(0, 16, 8192);
    }
}
