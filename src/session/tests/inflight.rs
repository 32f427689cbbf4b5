//! The buffer that outlives us: who gets one, where rings are in it, when it is believed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vm_memory::Bytes;

use super::bench::{Bench, memory};
use super::fake::{FakeDevice, PACKED, VERSION_1};
use super::script::{ALL, BIT30, LEN, Script, state};
use crate::protocol::{Inflight, Reply, Request};

/// Length of a buffer for two queues of 256, in pages.
const BUFFER: u64 = 3 << 12;

fn buffer(queues: u16, queue_size: u16, mmap_size: u64) -> Inflight {
    Inflight {
        mmap_size,
        mmap_offset: 0,
        queues,
        queue_size,
    }
}

fn get(queues: u16, queue_size: u16) -> Request {
    Request::GetInflightFd(buffer(queues, queue_size, 0))
}

fn set(queues: u16, queue_size: u16, mmap_size: u64) -> Request {
    Request::SetInflightFd(buffer(queues, queue_size, mmap_size))
}

/// A front-end with memory and a buffer for its requests.
fn front_end(bench: &Bench, file: &OwnedFd) -> Script {
    let mut script = Script::negotiated(bench, VERSION_1);
    script.set_memory(&memory(LEN));
    script.ok(&set(2, 256, BUFFER), &[file.as_fd()]);
    script
}

/// Writes and reads the version in the header of ring `index`.
fn version(bench: &Bench, index: u16) -> u16 {
    let seen = bench.device.seen();
    let region = seen.rings[&index].inflight.as_ref().unwrap();
    region.slice().read_obj(8).unwrap()
}

fn use_region(bench: &Bench, index: u16) {
    let seen = bench.device.seen();
    let region = seen.rings[&index].inflight.as_ref().unwrap();
    region.slice().write_obj(1u16, 8).unwrap();
}

#[test]
fn a_buffer_has_room_for_what_was_asked_for() {
    let bench = Bench::new(8);
    for (features, sizes) in [
        (VERSION_1, [(1, 1, 1), (8, 128, 5), (8, 32768, 1025)]),
        (
            PACKED | VERSION_1,
            [(1, 1, 1), (8, 128, 9), (8, 32768, 2049)],
        ),
    ] {
        let mut script = Script::negotiated(&bench, features);
        for (queues, size, pages) in sizes {
            assert_eq!(
                script.ask(&get(queues, size), &[]),
                Reply::Inflight(buffer(queues, size, pages << 12))
            );
        }
    }
}

#[test]
fn only_devices_that_track_have_buffers() {
    let device = FakeDevice::new(2);
    device.seen().tracks = false;
    let bench = Bench::with(device);
    let mut script = Script::new(&bench);
    let offered = script.ask(&Request::GetProtocolFeatures, &[]);
    assert_eq!(offered, Reply::U64(ALL & !(1 << 12)));
    script.tell(&Request::SetProtocolFeatures(ALL & !(1 << 12)), &[]);
    script.ok(&Request::SetFeatures(VERSION_1 | BIT30), &[]);
    script.refused(&set(2, 256, BUFFER), &[memory(BUFFER).as_fd()]);
    script.tell(&get(2, 256), &[]);
    script.is_closed();
}

#[test]
fn buffers_that_cannot_be_are_refused() {
    let bench = Bench::new(2);
    for (queues, size) in [(0, 256), (3, 256), (2, 0), (2, 32769)] {
        let mut script = Script::negotiated(&bench, VERSION_1);
        script.refused(&set(queues, size, BUFFER), &[memory(BUFFER).as_fd()]);
        // There is no reply that says no.
        script.tell(&get(queues, size), &[]);
        script.is_closed();
    }
    let file = memory(BUFFER);
    let mut script = Script::negotiated(&bench, VERSION_1);
    script.refused(&set(2, 256, 0), &[file.as_fd()]);
    script.refused(&set(2, 256, BUFFER + 1), &[file.as_fd()]);
    script.refused(&set(2, 256, u64::MAX), &[file.as_fd()]);
    drop(script);
    for fds in [&[][..], &[file.as_fd(), file.as_fd()]] {
        let mut script = Script::negotiated(&bench, VERSION_1);
        let fds: &[BorrowedFd<'_>] = fds;
        script.tell(&set(2, 256, BUFFER), fds);
        script.is_closed();
    }
}

#[test]
fn rings_have_their_place_in_the_buffer() {
    let (bench, file) = (Bench::new(4), memory(BUFFER));
    let mut script = front_end(&bench, &file);
    script.start(0);
    script.start(1);
    for index in [0, 1] {
        let seen = bench.device.seen();
        let region = seen.rings[&index].inflight.as_ref().unwrap();
        assert_eq!(region.len(), 16 + 16 * 256);
        region.slice().write_obj(index + 1, 2).unwrap();
    }
    let mut bytes = vec![0; BUFFER as usize];
    rustix::io::pread(&file, &mut bytes, 0).unwrap();
    assert_eq!((bytes[2], bytes[4160 + 2]), (1, 2));
    // While rings run there is no other buffer.
    script.refused(&set(2, 256, BUFFER), &[file.as_fd()]);
    // The third ring has no place, nor has one that is larger than the buffer foresees.
    script.prepare(2);
    let kick = Request::SetVringKick(super::script::fd(2, true));
    script.refused(&kick, &[]);
    for index in [0, 1] {
        script.ask(&Request::GetVringBase(state(index, 0)), &[]);
    }
    script.ok(&set(2, 128, BUFFER), &[file.as_fd()]);
    script.prepare(0);
    let kick = Request::SetVringKick(super::script::fd(0, true));
    script.refused(&kick, &[]);
    let error = bench.report().last_error.unwrap();
    assert!(
        error.contains("ring 0 with 256 descriptors has no place"),
        "{error}"
    );
    // A smaller one has.
    script.ok(&Request::SetVringNum(state(0, 64)), &[]);
    script.ok(&kick, &[]);
    let seen = bench.device.seen();
    assert_eq!(
        seen.rings[&0].inflight.as_ref().unwrap().len(),
        16 + 16 * 64
    );
}

#[test]
fn what_a_ring_left_counts_unless_it_was_stopped_by_the_book() {
    let (bench, file) = (Bench::new(2), memory(BUFFER));
    let mut script = front_end(&bench, &file);
    script.start(0);
    script.start(1);
    use_region(&bench, 0);
    use_region(&bench, 1);
    // Stopped by the front-end: it knows where the ring is.
    script.ask(&Request::GetVringBase(state(0, 0)), &[]);
    script.start(0);
    assert_eq!((version(&bench, 0), version(&bench, 1)), (0, 1));
    use_region(&bench, 0);
    // Hung up on: only the buffer knows.
    drop(script);
    bench.until("gone", |status| !status.connected);
    let mut script = front_end(&bench, &file);
    script.start(0);
    script.start(1);
    assert_eq!((version(&bench, 0), version(&bench, 1)), (1, 1));
    // Reset: all rings begin anew, and without a buffer until the front-end hands one over again.
    script.ok(&Request::ResetDevice, &[]);
    script.ok(&Request::SetFeatures(VERSION_1 | BIT30), &[]);
    script.start(0);
    assert!(bench.device.seen().rings[&0].inflight.is_none());
    script.ask(&Request::GetVringBase(state(0, 0)), &[]);
    script.ok(&set(2, 256, BUFFER), &[file.as_fd()]);
    script.start(0);
    script.start(1);
    assert_eq!((version(&bench, 0), version(&bench, 1)), (0, 0));
}

#[test]
fn a_buffer_that_goes_away_ends_the_connection() {
    let (bench, file) = (Bench::new(2), memory(BUFFER));
    let mut script = front_end(&bench, &file);
    script.start(0);
    rustix::fs::ftruncate(&file, 0).unwrap();
    use_region(&bench, 0);
    script.is_closed();
    let error = bench.report().last_error.unwrap();
    assert!(error.contains("went away"), "{error}");
}
