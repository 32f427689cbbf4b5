//! Requests of the driver's: a socket of the front-end's carries them, and answers come back.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, socketpair, sockopt};

use crate::bench::Bench;
use crate::driver::{BACKEND_CH, BACKEND_UP, LAYOUT};
use crate::front_end::{
    FrontEnd, NEED_REPLY, PLAIN, REPLY, eventfd, message, request, request_of_back_end,
};
use crate::step;
use crate::target::{Setup, Target};

use request::{GET_FEATURES, GET_PROTOCOL_FEATURES, SET_BACKEND_REQ_FD, SET_PROTOCOL_FEATURES};
use request_of_back_end::{CONFIG_CHANGE, IOTLB, VRING_CALL, VRING_ERR};

/// Protocol features: REPLY_ACK; BACKEND_REQ, INBAND_NOTIFICATIONS.
const REPLY_ACK: u64 = 1 << 3;
const CHANNEL: u64 = 1 << 5 | 1 << 14;

/// Requests of the back-end's that come with descriptors, and one that nobody knows.
const NOT_CARRIED: [u32; 9] = [0, 3, 6, 7, 8, 9, 10, 11, request::UNKNOWN];

fn bench(target: &dyn Target, buffers: u16) -> Bench {
    let mut bench = Bench::new(target, &Setup::default());
    bench.driver.start(LAYOUT | BACKEND_CH, buffers, 8192);
    bench
}

/// A front-end that may ask for outcomes, and has a channel.
fn connect_up(bench: &mut Bench) -> FrontEnd {
    let mut front_end = bench.connect_up();
    let wanted = REPLY_ACK | CHANNEL;
    front_end.number(SET_PROTOCOL_FEATURES, PLAIN, wanted, &[]);
    let heard = bench.driver.expect(SET_PROTOCOL_FEATURES);
    assert_eq!(heard, wanted.to_le_bytes());
    front_end
}

/// Hands over a channel, of which the driver hears; the end where requests arrive.
fn hand_over(bench: &mut Bench, front_end: &mut FrontEnd) -> FrontEnd {
    let (channel, other) = FrontEnd::pair();
    front_end.send(SET_BACKEND_REQ_FD, PLAIN, &[], &[other.as_fd()]);
    assert!(bench.driver.expect(SET_BACKEND_REQ_FD).is_empty());
    channel
}

/// The driver sends a request, which arrives.
#[track_caller]
fn passes(bench: &mut Bench, channel: &mut FrontEnd, number: u32, flags: u32, payload: &[u8]) {
    bench.driver.send(number, flags, payload);
    assert_eq!(channel.receive(), message(number, flags, payload));
}

/// The connection itself is as good as ever.
#[track_caller]
fn is_good(bench: &mut Bench, front_end: &mut FrontEnd) {
    front_end.plain(GET_FEATURES);
    bench.driver.expect(GET_FEATURES);
    bench.driver.answer(GET_FEATURES, 1 << 33 | 1);
    assert_eq!(front_end.answer(GET_FEATURES), 1 << 33 | 1);
}

pub(super) fn c36_backend_channel(target: &dyn Target) {
    let mut bench = bench(target, 16);
    let idle = bench.descriptors();
    let mut front_end = connect_up(&mut bench);
    front_end.plain(GET_PROTOCOL_FEATURES);
    bench.driver.expect(GET_PROTOCOL_FEATURES);
    bench.driver.answer(GET_PROTOCOL_FEATURES, u64::MAX);
    let heard = front_end.answer(GET_PROTOCOL_FEATURES);
    assert_eq!(heard & CHANNEL, CHANNEL);

    step("nobody listens");
    bench.driver.send(CONFIG_CHANGE, PLAIN, &[]);
    front_end.hears_nothing();
    is_good(&mut bench, &mut front_end);

    step("there before the driver knows of it");
    let (mut channel, other) = FrontEnd::pair();
    front_end.send(SET_BACKEND_REQ_FD, NEED_REPLY, &[], &[other.as_fd()]);
    drop(other);
    bench.driver.expect(SET_BACKEND_REQ_FD);
    passes(&mut bench, &mut channel, CONFIG_CHANGE, PLAIN, &[]);
    bench.driver.answer(SET_BACKEND_REQ_FD, 0);
    assert_eq!(front_end.answer(SET_BACKEND_REQ_FD), 0);
    passes(&mut bench, &mut channel, IOTLB, PLAIN, &[0x33; 32]);
    passes(&mut bench, &mut channel, VRING_CALL, PLAIN, &[1; 8]);
    passes(&mut bench, &mut channel, VRING_ERR, PLAIN, &[2; 8]);

    step("answers come back, in order");
    for _ in 0..3 {
        passes(&mut bench, &mut channel, CONFIG_CHANGE, NEED_REPLY, &[]);
    }
    bench.driver.expect_none();
    for number in 0..3u64 {
        channel.send(CONFIG_CHANGE, REPLY, &number.to_le_bytes(), &[]);
    }
    channel.send(CONFIG_CHANGE, REPLY, &[9; 8], &[]);
    for number in 0..3u64 {
        let heard = bench.driver.receive();
        assert_eq!(heard, message(CONFIG_CHANGE, REPLY, &number.to_le_bytes()));
    }
    // Nobody asked for the fourth.
    bench.driver.expect_none();
    is_good(&mut bench, &mut front_end);

    step("what no channel carries");
    for number in NOT_CARRIED {
        bench.driver.send(number, PLAIN, &[0; 40]);
    }
    channel.hears_nothing();
    front_end.hears_nothing();

    step("another one in its place");
    let mut next = hand_over(&mut bench, &mut front_end);
    channel.is_hung_up();
    drop(channel);
    passes(&mut bench, &mut next, CONFIG_CHANGE, PLAIN, &[]);

    step("closed by the front-end");
    drop(next);
    for _ in 0..3 {
        bench.driver.send(CONFIG_CHANGE, NEED_REPLY, &[]);
    }
    is_good(&mut bench, &mut front_end);
    let mut channel = hand_over(&mut bench, &mut front_end);
    passes(&mut bench, &mut channel, CONFIG_CHANGE, NEED_REPLY, &[]);
    drop(channel);
    bench.driver.expect_none();
    is_good(&mut bench, &mut front_end);

    step("gone with the connection");
    let mut channel = hand_over(&mut bench, &mut front_end);
    bench.close(front_end);
    channel.is_hung_up();
    drop(channel);
    bench.driver.set_status(BACKEND_UP);
    bench.wait_descriptors(idle);
    step("and with a reset");
    let mut front_end = connect_up(&mut bench);
    let mut channel = hand_over(&mut bench, &mut front_end);
    bench.driver.reset();
    channel.is_hung_up();
    drop((channel, front_end));
    bench.driver.start(LAYOUT | BACKEND_CH, 16, 8192);
    bench.driver.set_status(BACKEND_UP);
    bench.wait_descriptors(idle);
}

pub(super) fn c36_hostile_channels(target: &dyn Target) {
    let mut bench = bench(target, 1);
    let (event, spare) = (eventfd(), FrontEnd::pair().1);
    let stranger = |family, kind| -> OwnedFd {
        socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap()
    };
    let packets = stranger(AddressFamily::UNIX, SocketType::SEQPACKET);
    let internet = stranger(AddressFamily::INET, SocketType::STREAM);
    let before = bench.descriptors();
    let mut front_end = connect_up(&mut bench);

    step("no channel");
    let mut channel = hand_over(&mut bench, &mut front_end);
    for (what, payload, fds) in [
        ("no descriptor", &[][..], &[][..]),
        ("two of them", &[], &[&spare, &spare]),
        ("not a socket", &[], &[&event]),
        ("packets", &[], &[&packets]),
        ("the internet", &[], &[&internet]),
        ("a payload", &[0; 8], &[&spare]),
    ] {
        step(what);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        front_end.send(SET_BACKEND_REQ_FD, NEED_REPLY, payload, &fds);
        assert_ne!(front_end.answer(SET_BACKEND_REQ_FD), 0, "{what}");
        bench.driver.expect_none();
    }
    passes(&mut bench, &mut channel, CONFIG_CHANGE, PLAIN, &[]);

    step("a socket that is not connected");
    let alone = stranger(AddressFamily::UNIX, SocketType::STREAM);
    front_end.send(SET_BACKEND_REQ_FD, PLAIN, &[], &[alone.as_fd()]);
    bench.driver.expect(SET_BACKEND_REQ_FD);
    channel.is_hung_up();
    drop((channel, alone));
    bench.driver.send(CONFIG_CHANGE, NEED_REPLY, &[]);
    is_good(&mut bench, &mut front_end);

    step("nobody reads");
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    sockopt::set_socket_send_buffer_size(&theirs, 4096).unwrap();
    front_end.send(SET_BACKEND_REQ_FD, PLAIN, &[], &[theirs.as_fd()]);
    bench.driver.expect(SET_BACKEND_REQ_FD);
    drop(theirs);
    for _ in 0..64 {
        bench.driver.send(CONFIG_CHANGE, NEED_REPLY, &[]);
    }
    let mut channel = FrontEnd::from(ours);
    let mut heard = 0;
    while let Some(sent) = channel.receive_or_end() {
        assert_eq!(sent, message(CONFIG_CHANGE, NEED_REPLY, &[]));
        heard += 1;
    }
    drop(channel);
    assert!((1..64).contains(&heard), "{heard}");
    is_good(&mut bench, &mut front_end);

    step("said without being asked");
    let mut channel = hand_over(&mut bench, &mut front_end);
    channel.plain(CONFIG_CHANGE);
    channel.raw(&[0xff; 4096], &[event.as_fd()]);
    bench.driver.expect_none();
    passes(&mut bench, &mut channel, CONFIG_CHANGE, PLAIN, &[]);
    drop(channel);

    let answer = message(CONFIG_CHANGE, REPLY, &[0; 8]).to_bytes();
    let words =
        |request: u32, flags: u32, size: u32| [request, flags, size].map(u32::to_le_bytes).concat();
    for (what, bytes, fds) in [
        ("a request", words(CONFIG_CHANGE, PLAIN, 0), &[][..]),
        ("version 2", words(CONFIG_CHANGE, 2 | 4, 0), &[]),
        ("too long", words(CONFIG_CHANGE, REPLY, 1 << 17), &[]),
        ("endless", words(CONFIG_CHANGE, REPLY, u32::MAX), &[]),
        ("descriptors", answer.clone(), &[&event]),
        ("many descriptors", answer.clone(), &[&event; 16]),
    ] {
        step(what);
        let mut channel = hand_over(&mut bench, &mut front_end);
        passes(&mut bench, &mut channel, CONFIG_CHANGE, NEED_REPLY, &[]);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        channel.raw(&bytes, &fds);
        channel.is_hung_up();
        bench.driver.expect_none();
        is_good(&mut bench, &mut front_end);
    }
    for cut in 0..answer.len() {
        step(format!("cut after {cut} bytes"));
        let mut channel = hand_over(&mut bench, &mut front_end);
        passes(&mut bench, &mut channel, CONFIG_CHANGE, NEED_REPLY, &[]);
        channel.raw(&answer[..cut], &[]);
        drop(channel);
    }
    bench.driver.expect_none();
    is_good(&mut bench, &mut front_end);

    step("an answer waits for a buffer, and the front-end is gone");
    let mut channel = hand_over(&mut bench, &mut front_end);
    passes(&mut bench, &mut channel, CONFIG_CHANGE, NEED_REPLY, &[]);
    passes(&mut bench, &mut channel, CONFIG_CHANGE, NEED_REPLY, &[]);
    front_end.plain(GET_FEATURES);
    bench.driver.wait_rx(GET_FEATURES);
    channel.raw(&answer, &[]);
    channel.raw(&answer, &[]);
    drop(channel);
    bench.driver.expect_none();
    for _ in 0..2 {
        bench.driver.post_rx();
        bench.driver.wait_rx(CONFIG_CHANGE);
    }
    bench.driver.post_rx();
    bench.driver.answer(GET_FEATURES, 7);
    assert_eq!(front_end.answer(GET_FEATURES), 7);

    step("nobody asked for the outcome");
    front_end.send(SET_BACKEND_REQ_FD, PLAIN, &[], &[event.as_fd()]);
    bench.is_dropped(front_end);
    bench.driver.set_status(BACKEND_UP);
    bench.wait_descriptors(before);

    step("a driver that does not take it");
    assert_eq!(bench.driver.features() as u32 & BACKEND_CH, BACKEND_CH);
    bench.driver.start(LAYOUT, 16, 8192);
    let mut front_end = bench.connect_up();
    front_end.number(SET_PROTOCOL_FEATURES, PLAIN, u64::MAX, &[]);
    let heard = bench.driver.expect(SET_PROTOCOL_FEATURES);
    let heard = u64::from_le_bytes(heard.try_into().unwrap());
    assert_eq!(heard & CHANNEL, 0);
    let (mut channel, other) = FrontEnd::pair();
    front_end.send(SET_BACKEND_REQ_FD, NEED_REPLY, &[], &[other.as_fd()]);
    drop(other);
    assert_ne!(front_end.answer(SET_BACKEND_REQ_FD), 0);
    channel.is_hung_up();
    bench.driver.send(CONFIG_CHANGE, PLAIN, &[]);
    front_end.hears_nothing();
    // And promises no requests.
    front_end.plain(GET_FEATURES);
    bench.driver.expect(GET_FEATURES);
    bench.driver.answer(GET_FEATURES, 1 << 33 | 1);
    assert_eq!(front_end.answer(GET_FEATURES), 1);
}
