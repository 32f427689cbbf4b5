//! What can be done with what is shared: memory that goes away, signals without end.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::ftruncate;
use vvu::protocol::{MemRegion, Request, VringState};

use super::raw::Raw;
use super::rig::{Rig, SIZE, Which};
use super::{Deed, Scene};
use crate::guest::error::GuestError;
use crate::guest::memory::Memory;

/// For this long.
const WHILE: Duration = Duration::from_millis(300);
/// The rings are in the first bytes of the memory, and the buffers behind them.
const RINGS: u64 = 8192;

/// Rings with traffic: everything is offered in both.
fn busy(scene: &mut Scene<'_>) -> Result<Rig, GuestError> {
    let rig = Rig::new(scene)?;
    for which in [Which::Receive, Which::Transmit] {
        for index in 0..SIZE {
            rig.desc(which, index, rig.good(which, index));
        }
        rig.offer(which, 0..SIZE);
        rig.publish(which, SIZE);
    }
    Ok(rig)
}

/// More of the same frames, if the back-end has taken those that there were.
fn feed(rig: &Rig, index: &mut u16) {
    if index.wrapping_sub(rig.used_index(Which::Transmit)) < SIZE {
        *index = index.wrapping_add(1);
    }
    rig.publish(Which::Transmit, *index);
}

fn shrink(scene: &mut Scene<'_>, len: u64) -> Result<(), GuestError> {
    let rig = busy(scene)?;
    ftruncate(rig.memory.file(), len)
        .map_err(|errno| GuestError::system("shrink memory", errno))?;
    rig.receive.notify();
    rig.transmit.notify();
    rig.look();
    Ok(())
}

fn enable(index: u32, num: u32) -> Request {
    Request::SetVringEnable(VringState { index, num })
}

/// A table that names `memory` where the rig's memory was.
fn table(rig: &Rig, memory: &Memory) -> Request {
    let regions = rig.memory.table().into_iter().zip(memory.table());
    let regions = regions.map(|(before, now)| MemRegion {
        guest_addr: before.guest_phys_addr,
        size: now.memory_size,
        user_addr: before.userspace_addr,
        mmap_offset: now.mmap_offset,
    });
    Request::SetMemTable(regions.collect())
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "memory-shrunk",
        what: "the memory's file is truncated to nothing while rings run",
        act: |scene| shrink(scene, 0),
    },
    Deed {
        name: "buffers-shrunk",
        what: "the file is truncated so that only the rings are left",
        act: |scene| shrink(scene, RINGS),
    },
    Deed {
        name: "memory-replaced",
        what: "another memory, full of zeroes, under running rings",
        act: |scene| {
            let rig = busy(scene)?;
            let len = rig
                .memory
                .table()
                .first()
                .map_or(0, |region| region.memory_size);
            let other = Memory::new(len, 1, true)?;
            let mut raw = Raw::over(rig.link.stream()?)?;
            raw.say(&table(&rig, &other), &[other.file().as_fd()]);
            rig.transmit.notify();
            raw.settle();
            rig.look();
            Ok(())
        },
    },
    Deed {
        name: "memory-taken-away",
        what: "a smaller memory, without the rings, under running rings",
        act: |scene| {
            let rig = busy(scene)?;
            let other = Memory::new(4096, 1, true)?;
            let mut raw = Raw::over(rig.link.stream()?)?;
            raw.say(&table(&rig, &other), &[other.file().as_fd()]);
            rig.transmit.notify();
            raw.settle();
            rig.look();
            Ok(())
        },
    },
    Deed {
        name: "kick-storm",
        what: "kicks without end, about nothing",
        act: |scene| {
            let rig = busy(scene)?;
            let end = Instant::now() + WHILE;
            while Instant::now() < end {
                rig.receive.notify();
                rig.transmit.notify();
            }
            Ok(())
        },
    },
    Deed {
        name: "kick-full",
        what: "a kick whose counter is full",
        act: |scene| {
            let rig = busy(scene)?;
            let _ = rig.transmit.kick.write(u64::MAX - 1);
            rig.look();
            Ok(())
        },
    },
    Deed {
        name: "call-full",
        what: "calls whose counters are full, while frames arrive",
        act: |scene| {
            let rig = busy(scene)?;
            for queue in [&rig.receive, &rig.transmit] {
                let _ = queue.call.write(u64::MAX - 1);
            }
            let mut index = SIZE;
            let end = Instant::now() + WHILE;
            while Instant::now() < end && !rig.link.is_over() {
                feed(&rig, &mut index);
            }
            Ok(())
        },
    },
    Deed {
        name: "enable-storm",
        what: "rings turned off and on 2000 times under traffic",
        act: |scene| {
            let rig = busy(scene)?;
            let mut raw = Raw::over(rig.link.stream()?)?;
            let mut index = SIZE;
            for n in 0..2000 {
                feed(&rig, &mut index);
                if !raw.say(&enable(n / 2 % 2, n % 2), &[]) {
                    break;
                }
            }
            raw.settle();
            Ok(())
        },
    },
    Deed {
        name: "stop-under-traffic",
        what: "GET_VRING_BASE while frames are being sent",
        act: |scene| {
            let rig = busy(scene)?;
            let mut raw = Raw::over(rig.link.stream()?)?;
            let mut index = SIZE;
            for ring in [1, 0, 1] {
                feed(&rig, &mut index);
                raw.say(
                    &Request::GetVringBase(VringState {
                        index: ring,
                        num: 0,
                    }),
                    &[],
                );
                feed(&rig, &mut index);
            }
            raw.settle();
            Ok(())
        },
    },
    Deed {
        name: "hang-up-under-traffic",
        what: "50 connections closed while frames are being sent",
        act: |scene| {
            for _ in 0..50 {
                let rig = busy(scene)?;
                rig.transmit.notify();
            }
            Ok(())
        },
    },
];
