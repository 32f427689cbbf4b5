//! QEMU as the front-end, up to the point where its guest would start.

use std::time::{Duration, Instant};

use vvu::protocol::{Message, info};

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, BOTH_UP, Driver};
use crate::front_end::{REPLY, request};
use crate::target::{Target, qemu_front_end};
use crate::{PATIENCE, pause, step};

/// How long a front-end that has nothing more to say is silent.
const SILENCE: Duration = Duration::from_secs(1);

const SET_OWNER: u32 = 3;

/// Answers as a back-end does that agrees with everything.
fn answer(driver: &mut Driver, asked: &Message) {
    match asked.request {
        request::GET_FEATURES => driver.answer(asked.request, 1 << 30 | 1 << 32),
        // The device takes away what it cannot carry.
        request::GET_PROTOCOL_FEATURES => driver.answer(asked.request, u64::MAX),
        request::GET_QUEUE_NUM => driver.answer(asked.request, 8),
        request::GET_CONFIG | request::GET_VRING_BASE => {
            driver.send(asked.request, REPLY, &asked.payload);
        }
        other => {
            let own = info(other).is_some_and(|row| row.answer != vvu::protocol::Answer::Ack);
            if own || asked.needs_reply() {
                driver.answer(other, 0);
            }
        }
    }
}

/// What a front-end says until it says nothing more, by request.
fn listen(bench: &mut Bench) -> Vec<u32> {
    let mut seen = Vec::new();
    let (start, mut last) = (Instant::now(), Instant::now());
    while last.elapsed() < SILENCE || seen.is_empty() {
        assert!(start.elapsed() < 2 * PATIENCE, "after {seen:?}");
        let Some(asked) = bench.driver.poll_rx() else {
            pause();
            continue;
        };
        bench.driver.post_rx();
        answer(&mut bench.driver, &asked);
        seen.push(asked.request);
        last = Instant::now();
    }
    seen
}

pub(super) fn c30_front_ends_of_qemu(target: &dyn Target) {
    let folder = tempfile::tempdir().unwrap();
    for (name, devices) in [
        (
            "net",
            "-netdev vhost-user,id=n,chardev=v -device virtio-net-pci,netdev=n,romfile=",
        ),
        ("blk", "-device vhost-user-blk-pci,chardev=v,num-queues=2"),
        ("scsi", "-device vhost-user-scsi-pci,chardev=v"),
    ] {
        step(name);
        let mut bench = Bench::started(target);
        bench.driver.set_status(BACKEND_UP);
        let socket = bench.machine.socket().to_owned();
        let mut process = match qemu_front_end(&socket, devices, folder.path()) {
            Ok(process) => process,
            Err(error) => crate::missing(format!("{error:#}")),
        };
        bench.driver.wait_status(BOTH_UP);
        let seen = listen(&mut bench);
        let said = || format!("{name}: {seen:?}: {}", process.output());
        assert_eq!(bench.driver.status(), BOTH_UP, "{}", said());
        let count = |wanted: u32| seen.iter().filter(|one| **one == wanted).count();
        assert_eq!(count(SET_OWNER), 1, "{}", said());
        assert!(count(request::SET_VRING_CALL) >= 2, "{}", said());
        assert!(count(request::SET_VRING_ERR) >= 2, "{}", said());
        assert!(
            name != "blk" || count(request::GET_CONFIG) > 0,
            "{}",
            said()
        );
        assert!(process.ended().unwrap().is_none(), "{}", process.output());
        process.kill().unwrap();
        bench.driver.wait_status(0);
    }
}
