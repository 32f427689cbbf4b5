//! In-flight buffers: the device makes them, shows them, and takes them away.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{fstat, ftruncate};
use vvu::protocol::{Inflight, Reply, Request};

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, INFLIGHT, LAYOUT};
use crate::front_end::{
    FrontEnd, NEED_REPLY, PLAIN, REPLY, memory, message, read_at, region, request, write_at,
};
use crate::step;
use crate::target::{Setup, Target};

/// Protocol features: REPLY_ACK, INFLIGHT_SHMFD, GET_VRING_BASE_INFLIGHT.
const REPLY_ACK: u64 = 1 << 3;
const TRACKED: u64 = 1 << 12 | 1 << 20;

const WINDOW: u64 = 2 << 20;

fn bench(target: &dyn Target) -> Bench {
    let setup = Setup {
        window: WINDOW,
        ..Setup::default()
    };
    let mut bench = Bench::new(target, &setup);
    bench.driver.start(LAYOUT | INFLIGHT, 16, 8192);
    bench
}

fn inflight(mmap_size: u64, mmap_offset: u64) -> Inflight {
    Inflight {
        mmap_size,
        mmap_offset,
        queues: 3,
        queue_size: 32,
    }
}

/// A front-end that may ask for outcomes, and has in-flight buffers.
fn connect_up(bench: &mut Bench) -> FrontEnd {
    let mut front_end = bench.connect_up();
    let wanted = REPLY_ACK | TRACKED;
    front_end.number(request::SET_PROTOCOL_FEATURES, PLAIN, wanted, &[]);
    let heard = bench.driver.expect(request::SET_PROTOCOL_FEATURES);
    assert_eq!(heard, wanted.to_le_bytes());
    front_end
}

/// The driver wants a buffer of `len` bytes; what the front-end gets.
fn get(bench: &mut Bench, front_end: &mut FrontEnd, len: u64) -> (Inflight, OwnedFd) {
    let asked = Request::GetInflightFd(inflight(0, 0)).to_message(false);
    front_end.send(asked.request, PLAIN, &asked.payload, &[]);
    assert_eq!(bench.driver.expect(asked.request), asked.payload);
    let reply = Reply::Inflight(inflight(len, 0x77)).to_message(asked.request);
    bench.driver.send(asked.request, REPLY, &reply.payload);
    let (heard, mut fds) = front_end.receive_with();
    assert_eq!((heard.request, heard.flags), (asked.request, REPLY));
    let Some(Reply::Inflight(given)) = Reply::parse(&heard) else {
        panic!("{heard:?}");
    };
    assert_eq!(fds.len(), 1);
    (given, fds.pop().unwrap())
}

fn set(front_end: &mut FrontEnd, flags: u32, buffer: Inflight, fds: &[&OwnedFd]) {
    let request = Request::SetInflightFd(buffer).to_message(false);
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    front_end.send(request.request, flags, &request.payload, &fds);
}

/// Hands a buffer over; where the driver finds it.
fn set_good(bench: &mut Bench, front_end: &mut FrontEnd, buffer: Inflight, file: &OwnedFd) -> u64 {
    set(front_end, PLAIN, buffer, &[file]);
    let payload = bench.driver.expect(request::SET_INFLIGHT_FD);
    let heard = Request::parse(&message(request::SET_INFLIGHT_FD, PLAIN, &payload)).unwrap();
    let Request::SetInflightFd(heard) = heard else {
        panic!("{heard:?}");
    };
    let start = heard.mmap_offset;
    assert_eq!(
        heard,
        Inflight {
            mmap_offset: start,
            ..buffer
        }
    );
    start
}

pub(super) fn c35_inflight_buffers(target: &dyn Target) {
    let mut bench = bench(target);
    let idle = bench.descriptors();
    let mut front_end = connect_up(&mut bench);
    front_end.plain(request::GET_PROTOCOL_FEATURES);
    bench.driver.expect(request::GET_PROTOCOL_FEATURES);
    bench
        .driver
        .answer(request::GET_PROTOCOL_FEATURES, TRACKED | 1);
    let heard = front_end.answer(request::GET_PROTOCOL_FEATURES);
    assert_eq!(heard, TRACKED | 1);

    step("a file of whole pages, all zero, as long as it is");
    let (given, file) = get(&mut bench, &mut front_end, 4160);
    assert_eq!(given, inflight(8192, 0));
    assert_eq!(fstat(&file).unwrap().st_size, 8192);
    assert_eq!((read_at(&file, 0), read_at(&file, 8188)), (0, 0));
    assert!(ftruncate(&file, 0).is_err() && ftruncate(&file, 1 << 20).is_err());

    step("shown beside memory");
    let pages = memory("vvu-beside", 0x10_0000, 0x31);
    front_end.memory(PLAIN, &[region(0, 0x10_0000, 0)], &[&pages]);
    bench.driver.expect(request::SET_MEM_TABLE);
    let start = set_good(&mut bench, &mut front_end, given, &file);
    assert!(start + 8192 <= WINDOW && start >= 0x10_0000, "{start:#x}");
    bench.driver.store(start + 4096, 0x1234);
    assert_eq!(read_at(&file, 4096), 0x1234);
    write_at(&file, 8, 0x5678);
    assert_eq!(bench.driver.load(start + 8), 0x5678);
    assert_eq!(bench.driver.load(0), 0x31);

    step("memory comes and goes, and the buffer stays");
    let one_page = [region(0, 0x10000, 0)];
    front_end.memory(PLAIN, &one_page, &[&pages]);
    bench.driver.expect(request::SET_MEM_TABLE);
    assert_eq!(bench.driver.load(start + 8), 0x5678);
    // It does not make room for memory.
    let large = memory("vvu-large", WINDOW, 0x99);
    front_end.memory(NEED_REPLY, &[region(0, WINDOW, 0)], &[&large]);
    assert_ne!(front_end.answer(request::SET_MEM_TABLE), 0);
    bench.driver.expect_none();
    assert_eq!(bench.driver.load(start + 8), 0x5678);
    assert_eq!(bench.driver.load(0), 0x31);

    step("another buffer, in the middle of its file");
    let other = memory("vvu-inflight-2", 0x30000, 0x61);
    let part = inflight(0x11000, 0x10000);
    let start = set_good(&mut bench, &mut front_end, part, &other);
    assert_eq!(bench.driver.load(start), 0x71);
    assert_eq!(bench.driver.load(start + 0x10000), 0x81);
    assert_eq!(bench.driver.load(0), 0x31);

    step("gone when the driver comes back");
    bench.close(front_end);
    assert_eq!(bench.driver.load(start), 0x71);
    bench.driver.set_status(BACKEND_UP);
    assert_eq!(bench.driver.load(start), 0);
    bench.wait_mapped("vvu-inflight-2", 0);
    drop((file, other, pages, large));
    bench.wait_descriptors(idle);

    // Then the window is the memory's, all of it.
    let mut front_end = bench.connect_up();
    let large = memory("vvu-large", WINDOW, 0x99);
    front_end.memory(PLAIN, &[region(0, WINDOW, 0)], &[&large]);
    bench.driver.expect(request::SET_MEM_TABLE);
    assert_eq!(bench.driver.load(0), 0x99);
}

pub(super) fn c35_hostile_inflight_buffers(target: &dyn Target) {
    let mut bench = bench(target);
    let file = memory("vvu-book", 0x10000, 0x55);
    let pages = memory("vvu-most", WINDOW, 0x42);
    let pipe = rustix::pipe::pipe().unwrap().0;
    let before = bench.descriptors();

    let mut front_end = connect_up(&mut bench);
    let start = set_good(&mut bench, &mut front_end, inflight(0x1000, 0), &file);
    let most = region(0, WINDOW - 0x1000, 0);
    front_end.memory(PLAIN, &[most], &[&pages]);
    bench.driver.expect(request::SET_MEM_TABLE);
    for (what, buffer, fds) in [
        ("no file", inflight(0x1000, 0), &[][..]),
        ("two files", inflight(0x1000, 0), &[&file, &file]),
        ("not a file", inflight(0x1000, 0), &[&pipe]),
        ("empty", inflight(0, 0), &[&file]),
        ("longer than its file", inflight(0x11000, 0), &[&file]),
        ("behind its file", inflight(0x1000, 0x10000), &[&file]),
        ("endless", inflight(u64::MAX, 0), &[&file]),
        ("overflows", inflight(0x1000, u64::MAX - 0xfff), &[&file]),
        ("no room behind memory", inflight(0x2000, 0), &[&file]),
    ] {
        step(what);
        set(&mut front_end, NEED_REPLY, buffer, fds);
        assert_ne!(front_end.answer(request::SET_INFLIGHT_FD), 0, "{what}");
        bench.driver.expect_none();
        assert_eq!(bench.driver.load(start), 0x55);
        assert_eq!(bench.driver.load(WINDOW - 0x10_0000), 0x42 + 0x100);
    }
    step("nobody asked for the outcome");
    set(&mut front_end, PLAIN, inflight(0, 0), &[&file]);
    bench.is_dropped(front_end);

    step("a driver that wants more than can be shown");
    for len in [WINDOW + 1, u64::MAX] {
        let mut front_end = connect_up(&mut bench);
        front_end.send(request::GET_INFLIGHT_FD, PLAIN, &[0; 24], &[]);
        bench.driver.expect(request::GET_INFLIGHT_FD);
        let reply = Reply::Inflight(inflight(len, 0)).to_message(31);
        bench.driver.post_tx(&reply.to_bytes());
        bench.is_dropped(front_end);
    }

    step("a driver that has none, or makes no sense");
    let mut front_end = connect_up(&mut bench);
    let none = Reply::Inflight(inflight(0, 0)).to_message(31).payload;
    for payload in [&none[..], &[], &[1; 8]] {
        bench.driver.send(request::GET_INFLIGHT_FD, REPLY, payload);
        let (heard, fds) = front_end.receive_with();
        assert_eq!((heard.payload.as_slice(), fds.len()), (payload, 0));
    }
    bench.close(front_end);
    bench.driver.set_status(BACKEND_UP);
    bench.wait_descriptors(before);
    bench.wait_mapped("vvu-book", 0);

    step("a driver that does not take them");
    assert_eq!(bench.driver.features() as u32 & INFLIGHT, INFLIGHT);
    assert!(!bench.driver.agree(INFLIGHT), "without LAYOUT");
    bench.driver.start(LAYOUT, 16, 8192);
    let mut front_end = bench.connect_up();
    front_end.number(request::SET_PROTOCOL_FEATURES, PLAIN, u64::MAX, &[]);
    let heard = bench.driver.expect(request::SET_PROTOCOL_FEATURES);
    let heard = u64::from_le_bytes(heard.try_into().unwrap());
    assert_eq!(heard & TRACKED, 0);
    set(&mut front_end, NEED_REPLY, inflight(0x1000, 0), &[&file]);
    assert_ne!(front_end.answer(request::SET_INFLIGHT_FD), 0);
    front_end.send(request::GET_INFLIGHT_FD, PLAIN, &[0; 24], &[]);
    bench.is_dropped(front_end);
}
