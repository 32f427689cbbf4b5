//! A client of a modelled function's server, which sends what the input says.
//!
//! Each step is a command with its right length, or bytes; after it the server serves what came.
//! Whatever that was, nothing of a client is left when it is gone.

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vvu::model::{ByHand, FrontEnd as Source, Model, Shape};
use vvu::socket::send;
use vvu::vfio_user::{Connection, Served};

use crate::Input;
use crate::front_end::{FrontEnd, event};

/// What happens next; the numbers are those of the input.
pub mod op {
    /// A command: u16 its number, u8 its flags, u8 file descriptors, a part.
    pub const COMMAND: u8 = 0;
    /// Bytes: u8 file descriptors, a part.
    pub const BYTES: u8 = 1;
    /// The client hangs up, and another one comes.
    pub const HANG_UP: u8 = 2;
    /// A front-end comes at the other side of the device, or goes.
    pub const FRONT_END: u8 = 3;
    /// Number of operations.
    pub const COUNT: u8 = 4;
}

/// File descriptors that come with a message: how many, and of what kind they are.
pub mod fds {
    /// Memory of [`super::MEMORY`] bytes.
    pub const MEMORY: u8 = 0x10;
    /// Eventfds.
    pub const EVENT: u8 = 0x20;
    /// Sockets.
    pub const SOCKET: u8 = 0x30;
}

/// Length of the client's memory, one file.
pub const MEMORY: u64 = 0x2_0000;

/// Length of a message's header.
const HEADER: usize = 16;

/// Clients, one after the other.
const CLIENTS: u32 = 8;

struct Bench {
    model: Model,
    hand: ByHand,
    connection: Connection,
    client: UnixStream,
    clients: u32,
    memory: OwnedFd,
    event: OwnedFd,
}

fn pair() -> Option<(Connection, UnixStream)> {
    let (server, client) = UnixStream::pair().ok()?;
    for end in [&server, &client] {
        end.set_nonblocking(true).ok()?;
    }
    Some((Connection::new(server.into()), client))
}

impl Bench {
    fn new(front_end: &FrontEnd) -> Option<Self> {
        let shape = Shape {
            rings: 4,
            vectors: 7,
            window: 4 << 20,
            ..Shape::ours()
        };
        let source = Source::Listen(front_end.path());
        let peer = front_end.memory.try_clone().ok()?;
        let (model, hand) = Model::by_hand(shape, source, Some(peer)).ok()?;
        let (connection, client) = pair()?;
        let memory = memfd_create("vvu-fuzz", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&memory, MEMORY).ok()?;
        Some(Self {
            model,
            hand,
            connection,
            client,
            clients: 1,
            memory,
            event: event()?,
        })
    }

    fn send(&self, bytes: &[u8], kinds: u8) {
        let fd = match kinds & 0xf0 {
            fds::EVENT => self.event.as_fd(),
            fds::SOCKET => self.client.as_fd(),
            _ => self.memory.as_fd(),
        };
        let all = vec![fd; usize::from(kinds & 0xf)];
        let _ = send(self.client.as_fd(), &[IoSlice::new(bytes)], &all);
    }

    /// Serves what came; false if the connection is over.
    fn serve(&mut self, served: &mut dyn Served) -> bool {
        let good = self.connection.serve(served).is_ok();
        // Replies that nobody reads would be waited for.
        while self.client.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {}
        good
    }

    /// The client is gone; whether there is another one.
    fn next(&mut self, served: &mut dyn Served) -> Option<()> {
        self.connection.end(served);
        assert_eq!(self.model.status().device_status, 0, "not reset");
        self.clients += 1;
        (self.clients <= CLIENTS).then_some(())?;
        (self.connection, self.client) = pair()?;
        Some(())
    }
}

/// Lets the client do what the input says.
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
    let mut bench = Bench::new(&front_end)?;
    let mut served = bench.model.served();
    while !input.is_empty() {
        let mut over = false;
        match input.u8() % op::COUNT {
            op::COMMAND => {
                let (command, flags, kinds) = (input.u16(), input.u8(), input.u8());
                let payload = input.part();
                let mut bytes = vec![0, 0];
                bytes.extend(command.to_ne_bytes());
                bytes.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
                bytes.extend(u32::from(flags).to_ne_bytes());
                bytes.extend([0; 4]);
                bytes.extend(payload);
                bench.send(&bytes, kinds);
            }
            op::BYTES => {
                let kinds = input.u8();
                bench.send(&input.part(), kinds);
            }
            op::HANG_UP => over = true,
            _ if front_end.is_connected() => front_end.hang_up(),
            _ => {
                front_end.connect();
            }
        }
        if !bench.serve(&mut served) || over {
            bench.next(&mut served)?;
        }
        for _ in 0..200 {
            if !bench.hand.work() {
                break;
            }
        }
    }
    bench.next(&mut served)
}
