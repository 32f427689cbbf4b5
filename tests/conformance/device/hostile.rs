//! A front-end that means harm, and a driver that is no better: the connection ends, and nothing
//! is left of it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use vvu::protocol::{MemRegion, Request};

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, write};
use crate::front_end::{
    FrontEnd, NOFD, PLAIN, REPLY, eventfd, memory, message, region, request, write_at,
};
use crate::step;
use crate::target::Target;

const RINGS: u64 = 8;

/// Requests whose payload begins with a ring's number.
const RING_REQUESTS: [u32; 8] = [8, 9, 10, 11, 18, 23, 35, 45];
/// Requests that come with descriptors.
const FD_REQUESTS: [u32; 12] = [5, 6, 7, 12, 13, 14, 21, 32, 33, 37, 38, 42];
/// Requests that the device cannot carry.
const NEVER: [u32; 13] = [6, 7, 21, 28, 29, 30, 31, 32, 33, 37, 38, 41, 42];

/// What a front-end can pass on.
struct Things {
    event: OwnedFd,
    file: OwnedFd,
    pipe: [OwnedFd; 2],
}

impl Things {
    fn new(name: &str) -> Self {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        Self {
            event: eventfd(),
            file: memory(name, 0x10_0000, 1),
            pipe: [read, write],
        }
    }
}

/// Says one thing to the device on a connection of its own, which must end.
fn ends(bench: &mut Bench, say: impl FnOnce(&mut FrontEnd)) {
    let mut front_end = bench.connect_up();
    say(&mut front_end);
    bench.is_dropped(front_end);
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].map(u32::to_le_bytes).concat()
}

pub(super) fn c23_hostile_messages(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let things = Things::new("vvu-hostile");
    let before = bench.descriptors();
    headers(&mut bench);
    rings(&mut bench, &things);
    descriptors(&mut bench, &things);
    tables(&mut bench, &things);
    bench.wait_descriptors(before);
    bench.wait_mapped("vvu-hostile", 0);
}

fn headers(bench: &mut Bench) {
    for (number, flags, size) in [
        (request::GET_FEATURES, 0, 0),
        (request::GET_FEATURES, 2, 0),
        (request::GET_FEATURES, 3, 0),
        (request::GET_FEATURES, REPLY, 0),
        (request::GET_FEATURES, PLAIN, u32::MAX),
        (request::GET_FEATURES, PLAIN, 65537),
        (request::UNKNOWN, PLAIN, u32::MAX - 11),
    ] {
        step(format!("header {number} {flags:#x} {size:#x}"));
        ends(bench, |front_end| {
            assert!(front_end.raw(&header(number, flags, size), &[]));
        });
    }
}

fn rings(bench: &mut Bench, things: &Things) {
    for number in RING_REQUESTS {
        for (index, len) in [(u32::MAX, 40), (RINGS as u32, 40), (0, 3)] {
            let mut payload = [0; 40];
            payload[..4].copy_from_slice(&index.to_le_bytes());
            step(format!("request {number}, ring {index:#x}, {len} bytes"));
            ends(bench, |front_end| {
                front_end.send(number, PLAIN, &payload[..len], &[]);
            });
        }
    }
    let Things { event, file, pipe } = things;
    for number in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        for (value, fds) in [
            // A descriptor is missing; is too much.
            (0, &[][..]),
            (NOFD, &[event]),
            (0, &[event, event]),
            // A ring that is not there.
            (RINGS, &[event]),
            (0xff, &[event]),
            (0xff | NOFD, &[]),
            // Not an eventfd: what may block, and what is always ready.
            (0, &[&pipe[0]]),
            (0, &[&pipe[1]]),
            (0, &[file]),
        ] {
            step(format!(
                "request {number}, {value:#x}, {} descriptors",
                fds.len()
            ));
            ends(bench, |front_end| {
                front_end.number(number, PLAIN, value, fds);
            });
        }
        ends(bench, |front_end| {
            front_end.send(number, PLAIN, &[0; 4], &[event.as_fd()]);
        });
    }
}

fn descriptors(bench: &mut Bench, things: &Things) {
    let many = [things.file.as_fd(); 32];
    for number in FD_REQUESTS {
        step(format!("16 descriptors with {number}"));
        ends(bench, |front_end| {
            front_end.send(number, PLAIN, &[0; 40], &many[..16]);
        });
    }
    for number in NEVER {
        step(format!("request {number}"));
        ends(bench, |front_end| {
            front_end.send(number, PLAIN, &[0; 40], &[]);
        });
    }
    // Where none belong, as many as a device may have room for, and more.
    for count in [1, 16, 32] {
        for number in [request::GET_FEATURES, request::UNKNOWN] {
            step(format!("{count} descriptors with {number}"));
            ends(bench, |front_end| {
                front_end.send(number, PLAIN, &[], &many[..count]);
            });
        }
    }
    step("descriptors within a header");
    ends(bench, |front_end| {
        let bytes = header(request::SET_MEM_TABLE, PLAIN, 0);
        front_end.raw(&bytes[..4], &many[..3]);
        // So that both parts are not read at once, mostly.
        std::thread::sleep(Duration::from_millis(5));
        front_end.raw(&bytes[4..8], &many[..3]);
    });
}

fn tables(bench: &mut Bench, things: &Things) {
    const PAGES: u64 = 0x10000;
    let Things { event, file, pipe } = things;
    let good = region(0, PAGES, 0);
    let table = |regions: &[MemRegion]| Request::SetMemTable(regions.to_vec()).to_message(false);
    for (what, bad, fds) in [
        ("empty", MemRegion { size: 0, ..good }, &[file][..]),
        (
            "endless",
            MemRegion {
                size: u64::MAX,
                ..good
            },
            &[file],
        ),
        (
            "offset overflows",
            region(0, PAGES, u64::MAX - 0xffff),
            &[file],
        ),
        (
            "guest address overflows",
            MemRegion {
                guest_addr: u64::MAX - 0xfff,
                ..good
            },
            &[file],
        ),
        (
            "user address overflows",
            MemRegion {
                user_addr: u64::MAX - 0xfff,
                ..good
            },
            &[file],
        ),
        ("longer than its file", region(0, 0x10_1000, 0), &[file]),
        ("behind its file", region(0, PAGES, 0x10_0000), &[file]),
        ("not whole pages", region(0, 0x10001, 0), &[file]),
        ("not at a page", region(0, PAGES, 0x200), &[file]),
        ("not a file", good, &[event]),
        ("not a file", good, &[&pipe[0]]),
        ("no file", good, &[]),
        ("two files", good, &[file, file]),
    ] {
        step(what);
        ends(bench, |front_end| {
            front_end.memory(PLAIN, &[bad], fds);
        });
    }
    // More regions than there may be, each with its file.
    let nine: Vec<_> = (0..9).map(|i| region(i << 20, PAGES, i << 16)).collect();
    ends(bench, |front_end| {
        front_end.memory(PLAIN, &nine, &[file; 9]);
    });
    // Counts that do not agree with the payload.
    for count in [2, 0, u32::MAX, 0x0800_0001] {
        step(format!("{count:#x} regions"));
        let mut payload = table(&[good]).payload;
        payload[..4].copy_from_slice(&count.to_le_bytes());
        ends(bench, |front_end| {
            front_end.send(request::SET_MEM_TABLE, PLAIN, &payload, &[file.as_fd()]);
        });
    }
    for len in [0, 4, 7] {
        ends(bench, |front_end| {
            front_end.send(request::SET_MEM_TABLE, PLAIN, &vec![0; len], &[]);
        });
    }
}

/// xorshift64: the same harm in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub(super) fn c23_random_messages(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let mut random = Random(0x0123_4567_89ab_cdef);
    let things = Things::new("vvu-random");
    let before = bench.descriptors();
    for round in 0..150 {
        step(format!("round {round}"));
        let mut front_end = bench.connect();
        bench.driver.set_status(BACKEND_UP);
        for _ in 0..30 {
            if !random_message(&mut front_end, &mut random, &things) {
                break;
            }
            while bench.driver.poll_rx().is_some() {
                bench.driver.post_rx();
            }
            random_driver(&mut bench, &mut random);
        }
        drop(front_end);
        bench.driver.wait_status(0);
        bench.driver.drain();
        if random.below(10) == 0 {
            bench.driver.start(0, 16, 8192);
        }
    }
    bench.driver.start(0, 16, 8192);
    bench.wait_descriptors(before);
    bench.wait_mapped("vvu-random", 0);
}

/// Nearly a message. False if the device has hung up.
fn random_message(front_end: &mut FrontEnd, random: &mut Random, things: &Things) -> bool {
    let count = match random.below(4) {
        0 => random.below(17),
        _ => random.below(3),
    };
    let fds: Vec<_> = (0..count)
        .map(|_| match random.below(2) {
            0 => things.event.as_fd(),
            _ => things.file.as_fd(),
        })
        .collect();
    let words = random.below(6);
    let payload: Vec<u8> = (0..words)
        .flat_map(|_| match random.below(2) {
            0 => random.below(3).to_le_bytes(),
            _ => (random.below(0x7fff_ffff) << 16).to_le_bytes(),
        })
        .collect();
    let flags = match random.below(20) {
        0 => random.next() as u32,
        _ => PLAIN | random.next() as u32 & 8,
    };
    let size = match random.below(30) {
        0 => random.next() as u32,
        _ => payload.len() as u32,
    };
    let mut bytes = header(random.below(50) as u32, flags, size);
    bytes.extend(payload);
    if random.below(20) == 0 {
        bytes.truncate(1 + random.below(bytes.len() as u64) as usize);
    }
    front_end.raw(&bytes, &fds)
}

fn random_driver(bench: &mut Bench, random: &mut Random) {
    if random.below(6) == 0 {
        let payload = vec![0; 8 * random.below(2) as usize];
        let bytes = message(random.below(50) as u32, REPLY, &payload).to_bytes();
        let len = random.below(21).min(bytes.len() as u64) as usize;
        if len > 0 {
            bench.driver.post_tx(&bytes[..len]);
        }
    }
    if random.below(10) == 0 {
        let (ring, vector) = (random.next() as u16, random.below(16) as u16);
        bench.driver.kick_vector(ring, vector);
        let offset = 4 * random.below(20);
        write(&bench.driver.doorbells, offset, 1u16);
    }
}

pub(super) fn c23_file_that_shrinks(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let mut front_end = bench.connect_up();
    let pages = [region(0, 0x10000, 0)];
    // A file that cannot be kept from it: zeroes are left, and nobody dies.
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    ftruncate(&file, 0x10000).unwrap();
    write_at(&file, 0, 0x6463_6261);
    front_end.memory(PLAIN, &pages, &[&file]);
    bench.driver.expect(request::SET_MEM_TABLE);
    assert_eq!(bench.driver.load(0), 0x6463_6261);
    ftruncate(&file, 0).unwrap();
    assert_eq!(bench.driver.load(0), 0);
    bench.driver.store(0x4000, 1);
    assert_eq!(bench.driver.load(0xf000), 0);

    // One that can be kept from it is.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = memfd_create("vvu-sealed", flags).unwrap();
    ftruncate(&sealed, 0x10000).unwrap();
    write_at(&sealed, 0, 5);
    front_end.memory(PLAIN, &pages, &[&sealed]);
    bench.driver.expect(request::SET_MEM_TABLE);
    assert_eq!(bench.driver.load(0), 5);
    assert!(ftruncate(&sealed, 0).is_err());
    assert_eq!(bench.driver.load(0), 5);
}
