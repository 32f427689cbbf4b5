//! Front-ends that are broken or mean it. What can be listed is in `catalogue`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::Bytes;

use super::bench::{Bench, memory};
use super::fake::{FakeDevice, VERSION_1};
use super::script::{ALL, BIT30, LEN, Script, call, eventfd, kick, polled, region, state};
use crate::protocol::Request;
use crate::protocol::tests::Random;
use crate::session::Session;
use crate::transport::unix::UnixTransport;

#[test]
fn wrong_numbers_of_descriptors_end_the_connection() {
    let bench = Bench::new(2);
    let some = eventfd();
    let file = memory(LEN);
    let two = |fd: &OwnedFd| vec![fd.try_clone().unwrap(), fd.try_clone().unwrap()];
    let cases: Vec<(Request, Vec<OwnedFd>)> = vec![
        (Request::SetOwner, two(&some)),
        (Request::GetFeatures, two(&some)),
        (kick(0), vec![]),
        (kick(0), two(&some)),
        (polled(0), two(&some)),
        (call(0), vec![]),
        (call(0), two(&some)),
        (Request::SetMemTable(vec![region(0)]), vec![]),
        (Request::SetMemTable(vec![region(0)]), two(&file)),
        (Request::SetMemTable(vec![]), two(&file)),
        (Request::AddMemReg(region(0)), vec![]),
        (Request::AddMemReg(region(0)), two(&file)),
        (Request::RemMemReg(region(0)), two(&file)),
    ];
    for (number, (request, fds)) in (1..).zip(cases) {
        let mut script = Script::negotiated(&bench, 0);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        script.raw(&request.to_message(true).to_bytes(), &fds);
        script.is_closed();
        bench.until("counted", |status| status.violations == number);
    }
}

#[test]
fn descriptors_of_the_wrong_kind_are_refused() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let (reader, _writer) = std::io::pipe().unwrap();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    for fd in [reader.as_fd(), zero.as_fd(), memory(1).as_fd()] {
        script.refused(&kick(0), &[fd]);
        script.refused(&call(0), &[fd]);
    }
    // Memory that cannot be mapped, or not all of it, or not for writing.
    script.refused(&Request::SetMemTable(vec![region(0)]), &[reader.as_fd()]);
    script.refused(
        &Request::SetMemTable(vec![region(0)]),
        &[memory(LEN - 1).as_fd()],
    );
    let this = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    script.refused(&Request::SetMemTable(vec![region(0)]), &[this.as_fd()]);
    assert!(bench.device.seen().memory.is_none());
}

#[test]
fn random_requests_in_random_order() {
    let bench = Bench::new(2);
    let mut random = Random(42);
    let file = memory(LEN);
    let event = eventfd();
    for _ in 0..300 {
        let mut script = Script::negotiated(&bench, VERSION_1);
        script.set_memory(&file);
        for _ in 0..40 {
            let request = random_request(&mut random);
            let fds: &[BorrowedFd<'_>] = match request {
                Request::SetVringKick(fd) | Request::SetVringCall(fd) if !fd.nofd => {
                    &[event.as_fd()]
                }
                Request::AddMemReg(_) => &[file.as_fd()],
                _ => &[],
            };
            script.raw(&request.to_message(true).to_bytes(), fds);
            if script.message().is_none() {
                break;
            }
        }
    }
    Script::negotiated(&bench, 0).ok(&Request::SetOwner, &[]);
    bench.stop();
}

/// A request that is mostly sensible, so that much of it goes through.
fn random_request(random: &mut Random) -> Request {
    let index = random.below(3) as u32;
    let number = [0, 1, 2, 256, 32768, 65535][random.below(6) as usize];
    let ring = state(index, number);
    match random.below(17) {
        0 => Request::SetVringNum(ring),
        1 => Request::SetVringBase(ring),
        2 | 3 => Request::SetVringAddr(super::script::addr(index)),
        4 | 5 => kick(index),
        6 => polled(index),
        7 => call(index),
        8 => Request::SetVringEnable(state(index, number & 1)),
        9 => Request::GetVringBase(state(index & 1, 0)),
        10 => Request::ResetOwner,
        11 => Request::ResetDevice,
        12 => Request::SetStatus(random.below(16)),
        13 => Request::AddMemReg(region(random.below(3))),
        14 => Request::RemMemReg(region(random.below(3))),
        15 => Request::SetFeatures([VERSION_1, VERSION_1 | BIT30, BIT30][index as usize]),
        _ => Request::GetFeatures,
    }
}

#[test]
fn random_bytes() {
    let bench = Bench::new(2);
    let mut random = Random(7);
    for round in 0..500 {
        let mut script = Script::new(&bench);
        let len = random.below(200) as usize;
        let mut bytes = random.bytes(len);
        if round % 2 == 0 && bytes.len() > 12 {
            // A header that is believed.
            bytes[..12].copy_from_slice(&[0; 12]);
            bytes[0] = random.below(47) as u8;
            bytes[4] = 1;
            bytes[8] = random.below(64) as u8;
        }
        script.raw(&bytes, &[]);
    }
    Script::negotiated(&bench, 0).ok(&Request::SetOwner, &[]);
}

#[test]
fn a_message_of_a_gigabyte_is_not_waited_for() {
    let bench = Bench::new(2);
    let mut script = Script::new(&bench);
    script.raw(&[5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x40], &[]);
    script.is_closed();
    bench.until("counted", |status| status.violations == 1);
}

#[test]
fn a_front_end_that_does_not_read_is_dropped() {
    let bench = Bench::new(2);
    let mut script = Script::new(&bench);
    let begin = Instant::now();
    let requests = Request::GetFeatures
        .to_message(false)
        .to_bytes()
        .repeat(1000);
    script.stream.set_nonblocking(true).unwrap();
    while bench.report().connected || bench.report().connections == 0 {
        script.raw(&requests, &[]);
        assert!(begin.elapsed() < Duration::from_secs(10), "it hangs");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(bench.report().last_error.unwrap().contains("did not read"));
    Script::negotiated(&bench, 0).ok(&Request::SetOwner, &[]);
}

#[test]
fn a_slow_mapping_stalls_nobody_else() {
    let slow = Bench::new(2);
    let quick = Bench::new(2);
    slow.device.seen().slow_memory = Duration::from_secs(2);
    let mut first = Script::negotiated(&slow, 0);
    let mut second = Script::negotiated(&quick, 0);
    let file = memory(LEN);
    first.tell(&Request::SetMemTable(vec![region(0)]), &[file.as_fd()]);
    let begin = Instant::now();
    second.set_memory(&file);
    second.start(0);
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(quick.report().running_rings, 1);
}

#[test]
fn memory_larger_than_the_machine() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let file = memfd_create("large", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 1 << 40).unwrap();
    let mut large = region(0);
    large.size = 1 << 40;
    script.ok(&Request::SetMemTable(vec![large]), &[file.as_fd()]);
    for (size, offset) in [(0, 0), (u64::MAX, 0), (1, u64::MAX), (1 << 63, 1 << 63)] {
        let mut bad = region(0);
        (bad.size, bad.mmap_offset) = (size, offset);
        script.refused(&Request::SetMemTable(vec![bad]), &[file.as_fd()]);
    }
}

#[test]
fn memory_that_is_taken_away_ends_the_connection_and_nothing_else() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let file = memory(LEN);
    script.set_memory(&file);
    script.start(0);
    let ring = bench.device.seen().rings[&0].areas.clone();
    rustix::io::pwrite(&file, &[7], 0x1000).unwrap();
    assert_eq!(ring.driver.slice().read_obj::<u8>(0).unwrap(), 7);
    ftruncate(&file, 0).unwrap();
    assert_eq!(ring.driver.slice().read_obj::<u8>(0).unwrap(), 0);
    script.is_closed();
    bench.until("idle", |status| !status.connected);
    assert!(bench.report().last_error.unwrap().contains("went away"));
    Script::negotiated(&bench, 0).set_memory(&memory(LEN));
}

/// The messages of a whole set-up, each with its descriptors.
pub(super) fn handshake() -> Vec<(Request, Option<OwnedFd>)> {
    vec![
        (Request::GetFeatures, None),
        (Request::SetProtocolFeatures(ALL), None),
        (Request::SetFeatures(VERSION_1 | BIT30), None),
        (Request::SetMemTable(vec![region(0)]), Some(memory(LEN))),
        (Request::SetVringNum(state(0, 256)), None),
        (Request::SetVringBase(state(0, 0)), None),
        (Request::SetVringAddr(super::script::addr(0)), None),
        (call(0), Some(eventfd())),
        (kick(0), Some(eventfd())),
        (Request::SetVringEnable(state(0, 1)), None),
        (Request::GetVringBase(state(0, 0)), None),
    ]
}

pub(super) fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}"))
        .unwrap()
        .count()
}

#[test]
fn a_session_stops_at_any_time() {
    for steps in [0, 3, 4, 9, 10] {
        let bench = Bench::new(2);
        let mut script = Script::new(&bench);
        for (request, fd) in handshake().iter().take(steps) {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            script.tell(request, &fds);
        }
        let device = bench.device.clone();
        let path = bench.socket.path().to_owned();
        bench.stop();
        assert!(device.seen().rings.is_empty());
        assert!(!path.exists());
    }
}

#[test]
fn the_next_front_end_waits_in_line() {
    let bench = Bench::new(2);
    let mut first = Script::negotiated(&bench, 0);
    let mut second = Script::new(&bench);
    second.tell(&Request::GetFeatures, &[]);
    first.ok(&Request::SetOwner, &[]);
    assert_eq!(bench.report().connections, 1);
    drop(first);
    assert_eq!(second.message().unwrap().request, 1);
    assert_eq!(bench.report().connections, 2);
}

#[test]
fn a_client_session_comes_back() {
    let socket = super::bench::SocketPath::new();
    let device = FakeDevice::new(2);
    let transport = UnixTransport::connect(socket.path()).unwrap();
    let session = Session::spawn(Box::new(transport), Box::new(device)).unwrap();
    for round in 1..4 {
        let listener = std::os::unix::net::UnixListener::bind(socket.path()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut script = Script { stream };
        script.tell(&Request::GetFeatures, &[]);
        assert_eq!(script.message().unwrap().request, 1);
        assert_eq!(session.status().report().connections, round);
        drop((script, listener));
        std::fs::remove_file(socket.path()).unwrap();
    }
    session.stop();
}
