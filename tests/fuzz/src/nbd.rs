//! Bytes as what an NBD server says, and what a disk of it is asked meanwhile.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use vvu::memory::{Area, Mapping, Scatter};
use vvu_pmd::bdev::nbd::probe::Probe;
use vvu_pmd::bdev::{Channel, Data, Op, Request};

use crate::Input;

/// The server says what follows...
pub const SAY: u8 = 0;
/// ...listens to everything that it was asked...
pub const LISTEN: u8 = 1;
/// ...or leaves; the disk is asked something...
pub const LEAVE: u8 = 2;
/// ...asked for what is done...
pub const REAP: u8 = 3;
/// ...or about to sleep.
pub const ARM: u8 = 4;
/// What is not one of these is a request; this is a read.
pub const READ: u8 = 5;

/// Most requests in flight.
const MOST: usize = 16;

/// Memory for `len` bytes.
fn data(len: usize) -> Data {
    let mapping = Mapping::anonymous(len.max(1)).ok()?;
    let area = Area::whole(mapping).sub(0, len)?;
    Some(Box::new(Scatter::of_area(area)))
}

/// What is asked, from four bytes.
fn request(kind: u8, token: u64, input: &mut Input) -> Request {
    let (offset, len) = (
        u64::from(input.u16()) * 512,
        u64::from(input.u8() % 8) * 512,
    );
    let op = match kind % 6 {
        0 => Op::Write,
        1 => Op::Flush,
        2 => Op::Discard,
        3 => Op::WriteZeroes { unmap: true },
        4 => Op::WriteZeroes { unmap: false },
        _ => Op::Read,
    };
    let moves = matches!(op, Op::Read | Op::Write);
    Request {
        token,
        op,
        offset: if op == Op::Flush { 0 } else { offset },
        len: if op == Op::Flush { 0 } else { len },
        data: if moves { data(len as usize) } else { None },
        fua: input.u8() & 1 != 0,
    }
}

/// Shakes hands and asks, whatever the server says. Each request is answered at most once, and
/// none that was not asked.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let Ok((ours, theirs)) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
    else {
        return;
    };
    let Ok(probe) = Probe::new(ours) else {
        return;
    };
    let mut server = Some(theirs);
    let mut probe = Some(probe);
    let mut channel: Option<Box<dyn Channel>> = None;
    let mut asked = 0u64;
    let mut waiting = Vec::new();
    let mut room = [0; 4096];
    while !input.is_empty() {
        match input.u8() {
            SAY => {
                let part = input.part();
                if let Some(server) = &server {
                    let _ = send(server, &part, SendFlags::NOSIGNAL);
                }
            }
            LISTEN => {
                while let Some(server) = &server
                    && recv(server, &mut room, RecvFlags::empty()).is_ok_and(|(n, _)| n > 0)
                {
                }
            }
            LEAVE => server = None,
            REAP => {
                let mut done = Vec::new();
                if let Some(channel) = &mut channel {
                    channel.reap(&mut done);
                }
                for done in done {
                    let place = waiting.iter().position(|token| *token == done.token);
                    assert!(place.is_some(), "an answer to {}", done.token);
                    waiting.swap_remove(place.unwrap_or(0));
                }
            }
            ARM => {
                if let Some(channel) = &mut channel {
                    channel.arm();
                }
            }
            kind => {
                if let Some(channel) = channel.as_mut().filter(|_| waiting.len() < MOST) {
                    channel.submit(&mut vec![request(kind, asked, &mut input)]);
                    waiting.push(asked);
                    asked += 1;
                }
            }
        }
        if let Some(channel) = &channel {
            assert_eq!(channel.in_flight(), waiting.len());
        }
        if let Some(mut shaking) = probe.take() {
            match shaking.look() {
                Ok(true) => channel = shaking.channel(),
                Ok(false) => probe = Some(shaking),
                Err(error) => assert!(!error.to_string().contains('\n')),
            }
        }
    }
}
