//! Ring states: what starts, changes and stops a ring, and what must not.

use std::os::fd::AsFd;

use vm_memory::Bytes;

use super::bench::{Bench, memory};
use super::fake::{PACKED, VERSION_1};
use super::script::{
    BIT30, LEN, Script, USER, addr, call, eventfd, fd, kick, polled, region, state,
};
use crate::notify::{Call, Kick};
use crate::protocol::{Reply, Request, VringAddr};

fn bench() -> (Bench, Script) {
    let bench = Bench::new(2);
    let script = Script::negotiated(&bench, VERSION_1);
    (bench, script)
}

impl Bench {
    fn runs(&self, index: u16) -> bool {
        let runs = self.device.seen().rings.contains_key(&index);
        assert_eq!(
            self.report().running_rings,
            self.device.seen().rings.len() as u64
        );
        runs
    }
}

#[test]
fn calls_may_come_before_everything_else() {
    let (bench, mut script) = bench();
    let told = eventfd();
    script.ok(&call(0), &[told.as_fd()]);
    script.set_memory(&memory(LEN));
    script.start(0);
    bench.device.seen().rings[&0].call.ring();
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&told, &mut count), Ok(8));
}

#[test]
fn the_kick_may_come_first() {
    // Without memory.
    let (bench, mut script) = bench();
    script.start(0);
    assert!(!bench.runs(0));
    script.set_memory(&memory(LEN));
    assert!(bench.runs(0));
    // Without anything else: the last of the others starts the ring.
    script.ok(&polled(1), &[]);
    script.prepare(1);
    assert!(bench.runs(1));
    assert!(matches!(bench.device.seen().rings[&1].kick, Kick::Polled));
    assert!(matches!(bench.device.seen().rings[&1].call, Call::Silent));
}

#[test]
fn what_keeps_a_ring_from_starting_is_forgotten() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.ok(&polled(0), &[]);
    script.ok(&Request::SetVringBase(state(0, 0)), &[]);
    script.ok(&Request::SetVringNum(state(0, 256)), &[]);
    let nowhere = VringAddr {
        desc: USER + LEN,
        ..addr(0)
    };
    script.refused(&Request::SetVringAddr(nowhere), &[]);
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    assert!(!bench.runs(0));
    bench.device.seen().fail = Some("start_ring");
    script.refused(&Request::SetVringAddr(addr(0)), &[]);
    script.ok(&Request::SetVringAddr(addr(0)), &[]);
    assert!(bench.runs(0));
}

#[test]
fn enabling_starts_a_ring_that_has_all_but_a_base() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.ok(&polled(0), &[]);
    script.ok(&Request::SetVringNum(state(0, 256)), &[]);
    script.ok(&Request::SetVringAddr(addr(0)), &[]);
    assert!(!bench.runs(0));
    script.ok(&Request::SetVringEnable(state(0, 0)), &[]);
    assert!(!bench.runs(0));
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    assert!(bench.runs(0));
    assert!(bench.device.seen().rings[&0].enabled);
}

#[test]
fn a_stopped_ring_needs_a_new_kick() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.ok(&call(0), &[eventfd().as_fd()]);
    script.start(0);
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    let stop = Request::GetVringBase(state(0, 0));
    assert_eq!(script.ask(&stop, &[]), Reply::Vring(state(0, 1)));
    assert!(!bench.runs(0));
    // Once more: nothing moves.
    assert_eq!(script.ask(&stop, &[]), Reply::Vring(state(0, 1)));
    script.prepare(0);
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    script.set_memory(&memory(LEN));
    assert!(!bench.runs(0), "the old kick was forgotten");
    script.ok(&Request::SetVringBase(state(0, 77)), &[]);
    script.ok(&kick(0), &[eventfd().as_fd()]);
    assert!(bench.runs(0));
    let seen = bench.device.seen();
    assert_eq!(seen.rings[&0].base, 77);
    assert!(seen.rings[&0].enabled, "being enabled outlives a stop");
    assert!(matches!(seen.rings[&0].call, Call::Silent));
}

#[test]
fn notifications_are_replaced_while_a_ring_runs() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.start(0);
    let (kicked, called, failed) = (eventfd(), eventfd(), eventfd());
    script.ok(&kick(0), &[kicked.as_fd()]);
    script.ok(&call(0), &[called.as_fd()]);
    script.ok(&Request::SetVringErr(fd(0, false)), &[failed.as_fd()]);
    {
        let seen = bench.device.seen();
        let ring = &seen.rings[&0];
        rustix::io::write(&kicked, &1u64.to_ne_bytes()).unwrap();
        ring.kick.clear();
        ring.call.ring();
        ring.err.ring();
    }
    let mut count = [0; 8];
    assert!(rustix::io::read(&kicked, &mut count).is_err());
    assert!(rustix::io::read(&called, &mut count).is_ok());
    assert!(rustix::io::read(&failed, &mut count).is_ok());
    script.ok(&polled(0), &[]);
    script.ok(&Request::SetVringCall(fd(0, true)), &[]);
    script.ok(&Request::SetVringErr(fd(0, true)), &[]);
    let seen = bench.device.seen();
    assert!(matches!(seen.rings[&0].kick, Kick::Polled));
    assert!(matches!(seen.rings[&0].call, Call::Silent));
    assert!(matches!(seen.rings[&0].err, Call::Silent));
    assert_eq!(seen.starts, 1);
}

#[test]
fn a_running_ring_keeps_its_shape() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.start(0);
    // What is in force may be said again; the log flag may change.
    script.ok(&Request::SetVringNum(state(0, 256)), &[]);
    script.ok(
        &Request::SetVringAddr(VringAddr {
            flags: 1,
            log: 0x9000,
            ..addr(0)
        }),
        &[],
    );
    script.refused(&Request::SetVringNum(state(0, 128)), &[]);
    script.refused(&Request::SetVringBase(state(0, 0)), &[]);
    for moved in [
        VringAddr {
            desc: USER + 0x8000,
            ..addr(0)
        },
        VringAddr {
            avail: USER + 0x8000,
            ..addr(0)
        },
        VringAddr {
            used: USER + 0x8000,
            ..addr(0)
        },
    ] {
        script.refused(&Request::SetVringAddr(moved), &[]);
    }
    assert!(bench.runs(0));
    // Another ring is another matter.
    script.ok(&Request::SetVringNum(state(1, 128)), &[]);
}

#[test]
fn features_stay_while_a_ring_runs() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.start(0);
    assert!(!bench.device.seen().rings[&0].enabled);
    script.ok(&Request::SetFeatures(VERSION_1 | BIT30), &[]);
    script.refused(&Request::SetFeatures(BIT30), &[]);
    assert!(!bench.device.seen().rings[&0].enabled);
    // Without bit 30, all rings are enabled at once.
    script.ok(&Request::SetFeatures(VERSION_1), &[]);
    assert!(bench.device.seen().rings[&0].enabled);
    script.start(1);
    assert!(bench.device.seen().rings[&1].enabled);
}

#[test]
fn rings_move_with_their_memory() {
    let (bench, mut script) = bench();
    let (old, new) = (memory(LEN), memory(LEN));
    script.set_memory(&old);
    script.start(0);
    rustix::io::pwrite(&new, b"new", 0).unwrap();
    script.set_memory(&new);
    let seen = bench.device.seen();
    let mut bytes = [0; 3];
    let areas = &seen.rings[&0].areas;
    areas.desc.slice().read_slice(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"new");
    assert_eq!(seen.starts, 1, "it went on");
}

#[test]
fn a_ring_without_memory_stops_until_it_is_back() {
    let (bench, mut script) = bench();
    script.ok(&Request::AddMemReg(region(0)), &[memory(LEN).as_fd()]);
    script.ok(&Request::AddMemReg(region(1)), &[memory(LEN).as_fd()]);
    let kicked = eventfd();
    script.prepare(0);
    script.ok(&kick(0), &[kicked.as_fd()]);
    assert!(bench.runs(0));
    script.ok(&Request::RemMemReg(region(0)), &[]);
    assert!(!bench.runs(0));
    let reason = bench.report().last_error.unwrap();
    assert!(reason.contains("is not in the front-end's memory"));
    script.ok(&Request::AddMemReg(region(0)), &[memory(LEN).as_fd()]);
    assert!(bench.runs(0));
    let seen = bench.device.seen();
    assert_eq!(seen.rings[&0].base, 1, "it goes on where it stopped");
    rustix::io::write(&kicked, &1u64.to_ne_bytes()).unwrap();
    seen.rings[&0].kick.clear();
    assert!(rustix::io::read(&kicked, &mut [0; 8]).is_err());
}

#[test]
fn addresses_are_checked() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    for (desc, avail, used) in [(8, 0, 0), (0, 1, 0), (0, 0, 2)] {
        let good = addr(0);
        script.refused(
            &Request::SetVringAddr(VringAddr {
                desc: good.desc + desc,
                avail: good.avail + avail,
                used: good.used + used,
                ..good
            }),
            &[],
        );
    }
    script.ok(&Request::SetVringNum(state(0, 256)), &[]);
    let end = USER + LEN;
    // The last byte of each part must be in the region, event index included.
    for (desc, avail, used, good) in [
        (end - 4096, end - 518, end - 2056, true),
        (end - 4096 + 16, end - 518, end - 2056, false),
        (end - 4096, end - 516, end - 2056, false),
        (end - 4096, end - 518, end - 2052, false),
        (USER - 16, end - 518, end - 2056, false),
        (u64::MAX - 15, end - 518, end - 2056, false),
    ] {
        let place = VringAddr {
            desc,
            avail,
            used,
            ..addr(0)
        };
        script.ok(&Request::SetVringAddr(place), &[]);
        if good {
            script.ok(&polled(0), &[]);
            assert!(bench.runs(0));
            script.ask(&Request::GetVringBase(state(0, 0)), &[]);
        } else {
            script.refused(&polled(0), &[]);
        }
        assert!(!bench.runs(0));
    }
}

#[test]
fn sizes_and_bases_of_split_rings() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.prepare(0);
    for size in [0, 32769, 65536, u32::MAX] {
        script.refused(&Request::SetVringNum(state(0, size)), &[]);
    }
    script.ok(&Request::SetVringNum(state(0, 255)), &[]);
    script.refused(&polled(0), &[]);
    script.ok(&Request::SetVringNum(state(0, 1)), &[]);
    script.ok(&Request::SetVringBase(state(0, 0x1_0000)), &[]);
    script.refused(&polled(0), &[]);
    assert!(!bench.runs(0));
    script.ok(&Request::SetVringBase(state(0, 0xffff)), &[]);
    script.ok(&polled(0), &[]);
    assert!(bench.runs(0));
}

#[test]
fn sizes_and_bases_of_packed_rings() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, VERSION_1 | PACKED);
    script.set_memory(&memory(LEN));
    script.prepare(0);
    script.ok(&Request::SetVringNum(state(0, 255)), &[]);
    for base in [255, 255 << 16, 0x7fff] {
        script.ok(&Request::SetVringBase(state(0, base)), &[]);
        script.refused(&polled(0), &[]);
    }
    let base = 0x8000 | 254 | (0x8000 | 3) << 16;
    script.ok(&Request::SetVringBase(state(0, base)), &[]);
    script.ok(&polled(0), &[]);
    assert!(bench.runs(0));
    let areas = bench.device.seen().rings[&0].areas.clone();
    assert_eq!(
        (areas.desc.len(), areas.driver.len(), areas.device.len()),
        (255 * 16, 4, 4)
    );
    // Event suppression structures are aligned to 4.
    script.ok(&Request::SetVringNum(state(1, 255)), &[]);
    let odd = VringAddr {
        avail: addr(1).avail + 2,
        ..addr(1)
    };
    script.ok(&Request::SetVringAddr(odd), &[]);
    script.refused(&polled(1), &[]);
}

#[test]
fn every_index_is_checked() {
    let (bench, mut script) = bench();
    for index in [2, 255] {
        script.refused(&kick(index), &[eventfd().as_fd()]);
        script.refused(&call(index), &[eventfd().as_fd()]);
        script.refused(&polled(index), &[]);
        script.refused(&Request::SetVringErr(fd(index, true)), &[]);
    }
    for index in [2, 256, u32::MAX] {
        script.refused(&Request::SetVringNum(state(index, 256)), &[]);
        script.refused(&Request::SetVringBase(state(index, 0)), &[]);
        script.refused(&Request::SetVringAddr(addr(0).at(index)), &[]);
        script.refused(&Request::SetVringEnable(state(index, 1)), &[]);
    }
    script.refused(&Request::SetVringEnable(state(0, 2)), &[]);
    // This one has no way to say no.
    script.tell(&Request::GetVringBase(state(2, 0)), &[]);
    script.is_closed();
    bench.until("disconnected", |status| !status.connected);
}

impl VringAddr {
    fn at(self, index: u32) -> Self {
        Self { index, ..self }
    }
}

#[test]
fn nothing_changes_when_the_device_refuses() {
    let (bench, mut script) = bench();
    script.set_memory(&memory(LEN));
    script.prepare(0);
    let fail = |name| bench.device.seen().fail = Some(name);
    fail("start_ring");
    script.refused(&polled(0), &[]);
    assert!(!bench.runs(0));
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    assert!(!bench.runs(0), "a refused kick is not kept");
    script.ok(&Request::SetVringEnable(state(0, 0)), &[]);
    fail("set_features");
    script.refused(&Request::SetFeatures(BIT30), &[]);
    script.ok(&polled(0), &[]);
    assert_eq!(bench.device.seen().rings[&0].features, VERSION_1);
    fail("change_ring");
    script.refused(&Request::SetVringEnable(state(0, 1)), &[]);
    fail("change_ring");
    script.refused(&call(0), &[eventfd().as_fd()]);
    assert!(matches!(bench.device.seen().rings[&0].call, Call::Silent));
    fail("set_memory");
    let table = Request::SetMemTable(vec![region(1)]);
    script.refused(
        &Request::SetMemTable(vec![region(0), region(0)]),
        &[memory(LEN).as_fd(), memory(LEN).as_fd()],
    );
    assert!(bench.runs(0), "a table that is none changes nothing");
    script.refused(&table, &[memory(LEN).as_fd()]);
    assert!(!bench.runs(0), "its memory was said to be gone");
    // The old memory is still the one in force.
    script.ok(&polled(0), &[]);
    assert!(bench.runs(0));
}
