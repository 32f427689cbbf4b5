//! Messages that are well-formed and wrong.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vvu::protocol::{
    MemRegion, Message, REQUESTS, Request, VERSION, VringAddr, VringFd, VringState,
};

use super::raw::Raw;
use super::{Deed, Scene};
use crate::guest::error::{GuestError, io};

/// Where a region is for the front-end, and how long it is.
const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 1 << 20;

fn file(len: u64) -> Result<OwnedFd, GuestError> {
    let failed = |errno: rustix::io::Errno| GuestError::system("make memory to share", errno);
    let file = memfd_create("vvu-abuse", MemfdFlags::CLOEXEC).map_err(failed)?;
    ftruncate(&file, len).map_err(failed)?;
    Ok(file)
}

fn event() -> Result<OwnedFd, GuestError> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| GuestError::system("make an eventfd", errno))
}

fn region(guest_addr: u64, size: u64, user_addr: u64, mmap_offset: u64) -> MemRegion {
    MemRegion {
        guest_addr,
        size,
        user_addr,
        mmap_offset,
    }
}

fn whole() -> MemRegion {
    region(0, LEN, USER, 0)
}

fn ring(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn addr(index: u32, desc: u64) -> VringAddr {
    VringAddr {
        index,
        flags: 0,
        desc,
        used: desc.wrapping_add(0x2000),
        avail: desc.wrapping_add(0x1000),
        log: 0,
    }
}

fn fd(index: u8) -> VringFd {
    VringFd { index, nofd: false }
}

/// Everything that an honest front-end says for one ring, each message with its descriptors.
fn script<'f>(memory: &'f OwnedFd, event: &'f OwnedFd) -> Vec<(Request, Vec<BorrowedFd<'f>>)> {
    vec![
        (Request::SetMemTable(vec![whole()]), vec![memory.as_fd()]),
        (Request::SetVringNum(ring(0, 64)), vec![]),
        (Request::SetVringBase(ring(0, 0)), vec![]),
        (Request::SetVringAddr(addr(0, USER)), vec![]),
        (Request::SetVringCall(fd(0)), vec![event.as_fd()]),
        (Request::SetVringKick(fd(0)), vec![event.as_fd()]),
        (Request::SetVringEnable(ring(0, 1)), vec![]),
    ]
}

/// Says each message on a connection of its own, on which all before a ring's start was honest.
fn each_after_memory(
    scene: &mut Scene<'_>,
    requests: impl IntoIterator<Item = Request>,
) -> Result<(), GuestError> {
    let memory = file(LEN)?;
    for request in requests {
        let mut raw = negotiated(scene)?;
        raw.say(&Request::SetMemTable(vec![whole()]), &[memory.as_fd()]);
        raw.say(&request, &[]);
        raw.settle();
    }
    Ok(())
}

fn negotiated(scene: &mut Scene<'_>) -> Result<Raw, GuestError> {
    let mut raw = scene.connect()?;
    raw.negotiate();
    Ok(raw)
}

/// Announces a memory table with as many descriptors of `file` as it has regions.
fn tables(
    scene: &mut Scene<'_>,
    file: impl AsFd,
    tables: &[&[MemRegion]],
) -> Result<(), GuestError> {
    for regions in tables {
        let mut raw = negotiated(scene)?;
        let fds = vec![file.as_fd(); regions.len()];
        raw.say(&Request::SetMemTable(regions.to_vec()), &fds);
        raw.settle();
    }
    Ok(())
}

/// Says an honest script up to its message `upto`, with the rings' messages in any order.
fn recite(raw: &mut Raw, script: &[(Request, Vec<BorrowedFd<'_>>)]) {
    for (request, fds) in script {
        if !raw.say(request, fds) {
            return;
        }
    }
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "hang-up-at-each-step",
        what: "an honest handshake that ends after each of its messages",
        act: |scene| {
            let (memory, event) = (file(LEN)?, event()?);
            let script = script(&memory, &event);
            for len in 0..=script.len() {
                let mut raw = negotiated(scene)?;
                recite(&mut raw, script.get(..len).unwrap_or_default());
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "order-backwards",
        what: "an honest handshake, last message first",
        act: |scene| {
            let (memory, event) = (file(LEN)?, event()?);
            let mut script = script(&memory, &event);
            script.reverse();
            let mut raw = scene.connect()?;
            recite(&mut raw, &script);
            raw.negotiate();
            raw.settle();
            Ok(())
        },
    },
    Deed {
        name: "order-random",
        what: "the messages of a handshake, shuffled, 20 times",
        act: |scene| {
            let (memory, event) = (file(LEN)?, event()?);
            let mut script = script(&memory, &event);
            for _ in 0..20 {
                scene.rng.shuffle(&mut script);
                let mut raw = negotiated(scene)?;
                recite(&mut raw, &script);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "started-twice",
        what: "a whole handshake, and once more without stopping",
        act: |scene| {
            let (memory, event) = (file(LEN)?, event()?);
            let script = script(&memory, &event);
            let mut raw = negotiated(scene)?;
            recite(&mut raw, &script);
            recite(&mut raw, &script);
            raw.negotiate();
            raw.settle();
            Ok(())
        },
    },
    Deed {
        name: "stopped-without-start",
        what: "GET_VRING_BASE again and again",
        act: |scene| {
            let mut raw = negotiated(scene)?;
            for index in [0, 0, 1, 0] {
                raw.say(&Request::GetVringBase(ring(index, 0)), &[]);
            }
            raw.settle();
            Ok(())
        },
    },
    Deed {
        name: "fds-unwanted",
        what: "descriptors with messages that have none",
        act: |scene| {
            let event = event()?;
            for count in [1, 8, 32, super::raw::MOST_FDS] {
                let mut raw = scene.connect()?;
                let fds = vec![event.as_fd(); count];
                raw.say(&Request::GetFeatures, &fds);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "fds-missing",
        what: "memory and kicks without their descriptors",
        act: |scene| {
            let table = Request::SetMemTable(vec![whole()]);
            let rings = [fd(0)].map(|fd| [Request::SetVringKick(fd), Request::SetVringCall(fd)]);
            for request in rings.into_iter().flatten().chain([table]) {
                let mut raw = negotiated(scene)?;
                raw.say(&request, &[]);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "fds-too-many",
        what: "memory and kicks with more descriptors than they have",
        act: |scene| {
            let (memory, event) = (file(LEN)?, event()?);
            for count in [2, 9, 64] {
                let mut raw = negotiated(scene)?;
                let table = Request::SetMemTable(vec![whole()]);
                raw.say(&table, &vec![memory.as_fd(); count]);
                raw.say(&Request::SetVringKick(fd(0)), &vec![event.as_fd(); count]);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "fds-of-the-wrong-kind",
        what: "memory, a pipe and a socket as kick and call",
        act: |scene| {
            let failed = io("make a pipe or a socket");
            let memory = file(LEN)?;
            let (reader, writer) = std::io::pipe().map_err(&failed)?;
            let (socket, _other) = UnixStream::pair().map_err(failed)?;
            let kinds = [
                memory.as_fd(),
                reader.as_fd(),
                writer.as_fd(),
                socket.as_fd(),
            ];
            for kind in kinds {
                let mut raw = negotiated(scene)?;
                let mut script = script(&memory, &memory);
                for (request, fds) in &mut script {
                    if matches!(request, Request::SetVringKick(_) | Request::SetVringCall(_)) {
                        *fds = vec![kind];
                    }
                }
                recite(&mut raw, &script);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "table-of-nothing",
        what: "no regions, and regions of no bytes",
        act: |scene| {
            let memory = file(LEN)?;
            tables(scene, &memory, &[&[], &[region(0, 0, USER, 0)]])
        },
    },
    Deed {
        name: "table-too-long",
        what: "a table that claims 9, and 4294967295, regions",
        act: |scene| {
            let memory = file(LEN)?;
            for count in [9u32, u32::MAX] {
                let mut raw = negotiated(scene)?;
                let mut message = Request::SetMemTable(vec![whole(); 8]).to_message(false);
                if let Some(start) = message.payload.get_mut(..4) {
                    start.copy_from_slice(&count.to_le_bytes());
                }
                raw.message(&message, &[memory.as_fd(); 8]);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "table-overlaps",
        what: "two regions with the same addresses",
        act: |scene| {
            let memory = file(LEN)?;
            tables(
                scene,
                &memory,
                &[&[whole(), whole()], &[whole(), region(4096, LEN, USER, 0)]],
            )
        },
    },
    Deed {
        name: "table-wraps",
        what: "regions whose ends do not fit 64 bits",
        act: |scene| {
            let memory = file(LEN)?;
            let end = u64::MAX - 4095;
            tables(
                scene,
                &memory,
                &[
                    &[region(end, LEN, USER, 0)],
                    &[region(0, LEN, end, 0)],
                    &[region(0, LEN, USER, end)],
                    &[region(0, u64::MAX, USER, u64::MAX)],
                ],
            )
        },
    },
    Deed {
        name: "table-beyond-its-file",
        what: "regions longer than their file",
        act: |scene| {
            let memory = file(LEN)?;
            tables(
                scene,
                &memory,
                &[
                    &[region(0, LEN + 4096, USER, 0)],
                    &[region(0, LEN, USER, 4096)],
                    &[region(0, 1 << 50, USER, 0)],
                ],
            )
        },
    },
    Deed {
        name: "table-of-a-pipe",
        what: "memory that cannot be mapped",
        act: |scene| {
            let (reader, _writer) = std::io::pipe().map_err(io("make a pipe"))?;
            tables(scene, &reader, &[&[whole()]])
        },
    },
    Deed {
        name: "features-not-offered",
        what: "all feature bits, then a ring",
        act: |scene| {
            let (memory, event) = (file(LEN)?, event()?);
            for request in [
                Request::SetFeatures(u64::MAX),
                Request::SetProtocolFeatures(u64::MAX),
            ] {
                let mut raw = scene.connect()?;
                raw.say(&request, &[]);
                recite(&mut raw, &script(&memory, &event));
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "ring-indices",
        what: "messages about rings that do not exist",
        act: |scene| {
            let indices = [2, 254, 255, 256, 65535, u32::MAX];
            let requests = indices.into_iter().flat_map(|index| {
                [
                    Request::SetVringNum(ring(index, 64)),
                    Request::SetVringBase(ring(index, 0)),
                    Request::SetVringAddr(addr(index, USER)),
                    Request::SetVringEnable(ring(index, 1)),
                    Request::GetVringBase(ring(index, 0)),
                ]
            });
            each_after_memory(scene, requests)
        },
    },
    Deed {
        name: "ring-sizes",
        what: "rings of 0, 3, 65536 and 4294967295 descriptors",
        act: |scene| {
            let sizes = [0, 3, 32769, 65536, u32::MAX];
            with_changed(scene, sizes.map(|size| Request::SetVringNum(ring(0, size))))
        },
    },
    Deed {
        name: "ring-addresses",
        what: "rings outside of memory, across its end, and not aligned",
        act: |scene| {
            let places = [
                0,
                USER + LEN,
                USER + LEN - 16,
                USER + 1,
                u64::MAX - 15,
                u64::MAX,
            ];
            with_changed(scene, places.map(|at| Request::SetVringAddr(addr(0, at))))
        },
    },
    Deed {
        name: "ring-bases",
        what: "rings that begin at an impossible index",
        act: |scene| {
            let bases = [1, 65535, 65536, u32::MAX];
            with_changed(
                scene,
                bases.map(|base| Request::SetVringBase(ring(0, base))),
            )
        },
    },
    Deed {
        name: "random-messages",
        what: "300 requests with random payloads of about the right length",
        act: |scene| {
            for _ in 0..30 {
                let mut raw = negotiated(scene)?;
                for _ in 0..10 {
                    let number = scene.rng.choice(REQUESTS).map_or(0, |info| info.number);
                    let len = scene.rng.choice([0, 8, 8, 12, 40]).unwrap_or(0);
                    let mut payload = vec![0; len];
                    scene.rng.fill(&mut payload);
                    // Small numbers get further than large ones.
                    for byte in payload.iter_mut().skip(1) {
                        *byte &= if scene.rng.u8(..4) == 0 { 0xff } else { 0 };
                    }
                    let message = Message {
                        request: number,
                        flags: VERSION,
                        payload,
                    };
                    if !raw.message(&message, &[]) {
                        break;
                    }
                }
            }
            Ok(())
        },
    },
];

/// Plays an honest script in which one message is another, and looks whether the back-end copes
/// with its kick; once for each.
fn with_changed<const N: usize>(
    scene: &mut Scene<'_>,
    changed: [Request; N],
) -> Result<(), GuestError> {
    let (memory, event) = (file(LEN)?, event()?);
    for other in changed {
        let mut script = script(&memory, &event);
        let same =
            |request: &Request| std::mem::discriminant(request) == std::mem::discriminant(&other);
        for (request, _) in &mut script {
            if same(request) {
                *request = other.clone();
            }
        }
        let mut raw = negotiated(scene)?;
        recite(&mut raw, &script);
        let _ = rustix::io::write(&event, &1u64.to_ne_bytes());
        raw.settle();
    }
    Ok(())
}
