//! Doorbells and kicks.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_setfl};
use vvu::mmio::Window;

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, BOTH_UP, KICK, NONE, read, write};
use crate::front_end::{NOFD, PLAIN, eventfd, request, signal, signals, wait_signal};
use crate::target::Target;
use crate::{PATIENCE, QUIET, pause};

const RINGS: u16 = 8;

/// Capability of MSI-X, and where in it the place of the pending bits is.
const CAP_MSIX: u8 = 0x11;
const MSIX_PENDING: usize = 8;
/// Byte of configuration space: the function's shared interrupt, 0 if it has none.
const INTERRUPT_PIN: usize = 0x3d;
/// Bit of the interrupt status: a kick, where there is no MSI-X.
const ISR_KICK: u8 = 4;

pub(super) fn c25_doorbells(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let mut front_end = bench.connect_up();
    let all: Vec<OwnedFd> = (0..2 * RINGS).map(|_| eventfd()).collect();
    let (calls, errors) = all.split_at(RINGS.into());
    let bells = bench.driver.doorbells.clone();
    let flush = || read::<u8>(&bells, 0);
    let rung = |number: u16| {
        flush();
        let values: Vec<u64> = all.iter().map(signals).collect();
        let others = (values.iter().enumerate()).filter(|(at, _)| *at != usize::from(number));
        assert!(
            others.into_iter().all(|(_, value)| *value == 0),
            "{number}: {values:?}"
        );
        values[usize::from(number)]
    };
    // None is armed: nothing happens.
    for offset in (0..bells.len()).step_by(4) {
        write(&bells, offset, 1u16);
    }
    for (ring, (call, error)) in (0..).zip(calls.iter().zip(errors)) {
        for (number, fd) in [
            (request::SET_VRING_CALL, call),
            (request::SET_VRING_ERR, error),
        ] {
            front_end.number(number, PLAIN, ring, &[fd]);
            bench.driver.expect(number);
        }
    }
    for number in 0..2 * RINGS {
        let at = bench.driver.doorbell(number);
        // Any width and value; each write rings once.
        for value in [0u8, 0xff] {
            write(&bells, at, value);
        }
        for value in [0u16, number, 0xffff] {
            write(&bells, at, value);
        }
        write(&bells, at, 0xdead_beefu32);
        assert_eq!(rung(number), 6);
        // Beside it there is nothing.
        write(&bells, at + 1, 1u8);
        write(&bells, at + 2, 1u16);
        assert_eq!(rung(number), 0);
    }
    // Nor is there one for the log.
    bench.driver.ring(2 * RINGS);
    for offset in (bench.driver.doorbell(2 * RINGS)..bells.len()).step_by(2) {
        write(&bells, offset, 1u16);
    }
    assert_eq!(rung(0), 0);

    // A front-end that makes the counter full and blocking does not make the device wait.
    let full = u64::MAX - 1;
    rustix::io::write(&calls[0], &full.to_ne_bytes()).unwrap();
    fcntl_setfl(&calls[0], OFlags::empty()).unwrap();
    bench.driver.ring(0);
    bench.driver.status();
    fcntl_setfl(&calls[0], OFlags::NONBLOCK).unwrap();
    assert_eq!(signals(&calls[0]), full);

    // Without a descriptor, after the ring has stopped or gone, and after the front-end has.
    front_end.number(request::SET_VRING_CALL, PLAIN, 1 | NOFD, &[]);
    bench.driver.expect(request::SET_VRING_CALL);
    bench.driver.ring(1);
    assert_eq!(rung(1), 0);
    front_end.send(
        request::GET_VRING_BASE,
        PLAIN,
        &[2, 0, 0, 0, 0, 0, 0, 0],
        &[],
    );
    bench.driver.expect(request::GET_VRING_BASE);
    bench.driver.ring(2);
    assert_eq!(rung(2), 1, "the last call of a ring that stops");
    bench.close(front_end);
    for number in 0..2 * RINGS {
        bench.driver.ring(number);
    }
    assert_eq!(rung(0), 0);
}

/// Writes to a doorbell as fast as it can.
struct Storm {
    stop: Arc<AtomicBool>,
    rings: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Storm {
    fn start(bells: &Window, offset: u64) -> Self {
        let (stop, rings) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = {
            let (stop, rings, bells) = (Arc::clone(&stop), Arc::clone(&rings), bells.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    write(&bells, offset, 1u16);
                    // It has arrived when this is answered.
                    read::<u16>(&bells, offset);
                    rings.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        Self {
            stop,
            rings,
            thread: Some(thread),
        }
    }

    /// Waits until a write began and ended that had not begun before.
    fn passes(&self) {
        let now = self.rings.load(Ordering::SeqCst);
        while self.rings.load(Ordering::SeqCst) < now + 2 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(super) fn c26_replacement_under_a_storm(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let mut front_end = bench.connect_up();
    let fds = [eventfd(), eventfd()];
    let arm = |bench: &mut Bench, front_end: &mut crate::front_end::FrontEnd, fd: &OwnedFd| {
        front_end.number(request::SET_VRING_CALL, PLAIN, 2, &[fd]);
        bench.driver.expect(request::SET_VRING_CALL);
    };
    arm(&mut bench, &mut front_end, &fds[0]);
    let before = bench.descriptors();
    let offset = bench.driver.doorbell(2);
    let storm = Storm::start(&bench.driver.doorbells, offset);
    for round in 0..300 {
        arm(&mut bench, &mut front_end, &fds[round & 1]);
        // What is written now meets the new one, and only that.
        storm.passes();
        let _ = fds.each_ref().map(signals);
        storm.passes();
        assert!(wait_signal(&fds[round & 1]) > 0);
        assert_eq!(signals(&fds[!round & 1]), 0);
    }
    drop(storm);
    let _ = fds.each_ref().map(signals);
    bench.driver.ring(2);
    assert_eq!(fds.each_ref().map(signals), [0, 1]);
    bench.wait_descriptors(before);
}

/// The vectors' pending bits.
fn pending_bits(bench: &Bench) -> Window {
    let driver = &bench.driver;
    let mut capabilities = driver.space.capabilities();
    let msix = capabilities.find(|found| found.id == CAP_MSIX).unwrap();
    let place = msix.bytes[MSIX_PENDING..].first_chunk().unwrap();
    let place = u32::from_le_bytes(*place);
    let (bar, offset) = ((place & 7) as u8, u64::from(place & !7));
    driver.function.registers(bar, offset, 8).unwrap()
}

pub(super) fn c27_kicks(target: &dyn Target) {
    const RING: u16 = 3;
    const VECTOR: u16 = KICK + RING;
    let mut bench = Bench::started(target);
    let mut front_end = bench.connect_up();
    let bits = pending_bits(&bench);
    let is_pending = |vector: u16| read::<u32>(&bits, 0) >> vector & 1 != 0;
    let kick = eventfd();
    let ring = u64::from(RING);
    let arm = |bench: &mut Bench, front_end: &mut crate::front_end::FrontEnd, fds: &[&OwnedFd]| {
        let value = if fds.is_empty() { ring | NOFD } else { ring };
        front_end.number(request::SET_VRING_KICK, PLAIN, value, fds);
        bench.driver.expect(request::SET_VRING_KICK);
    };
    assert_eq!(bench.driver.kick_vector(RING, VECTOR), VECTOR);
    arm(&mut bench, &mut front_end, &[&kick]);
    bench.driver.no_interrupt(VECTOR);
    signal(&kick);
    bench.driver.wait_interrupt(VECTOR);
    bench.driver.no_interrupt(VECTOR);

    // Not mapped: it stays in the eventfd, and comes out when there is a vector.
    assert_eq!(bench.driver.kick_vector(RING, NONE), NONE);
    for _ in 0..3 {
        signal(&kick);
    }
    bench.driver.no_interrupt(VECTOR);
    assert_eq!(bench.driver.kick_vector(RING, VECTOR + 1), VECTOR + 1);
    bench.driver.wait_interrupt(VECTOR + 1);
    bench.driver.no_interrupt(VECTOR + 1);
    assert_eq!(bench.driver.kick_vector(RING, VECTOR), VECTOR);

    // Masked: pending, and raised when it is not masked any more.
    bench.machine.mask(VECTOR, None);
    assert!(!is_pending(VECTOR));
    signal(&kick);
    bench.driver.no_interrupt(VECTOR);
    assert!(is_pending(VECTOR));
    bench
        .machine
        .mask(VECTOR, Some(bench.driver.vector(VECTOR)));
    bench.driver.wait_interrupt(VECTOR);
    assert!(!is_pending(VECTOR));

    // MSI-X off for a moment, as when a driver adds vectors: not lost, and no other interrupt.
    bench.turn_vectors(false);
    signal(&kick);
    std::thread::sleep(QUIET);
    assert_eq!(read::<u8>(&bench.driver.isr, 0) & ISR_KICK, 0);
    bench.turn_vectors(true);
    bench.driver.wait_interrupt(VECTOR);

    // GET_VRING_BASE disarms; what comes then is seen when the ring is armed again.
    front_end.send(
        request::GET_VRING_BASE,
        PLAIN,
        &[3, 0, 0, 0, 0, 0, 0, 0],
        &[],
    );
    bench.driver.expect(request::GET_VRING_BASE);
    signal(&kick);
    bench.driver.no_interrupt(VECTOR);
    arm(&mut bench, &mut front_end, &[&kick]);
    bench.driver.wait_interrupt(VECTOR);

    // No descriptor: the driver polls.
    arm(&mut bench, &mut front_end, &[]);
    signal(&kick);
    bench.driver.no_interrupt(VECTOR);
    assert_eq!(signals(&kick), 1);

    // The vector is kept over a disconnect.
    bench.close(front_end);
    write(&bench.driver.notifications, 0, RING);
    assert_eq!(read::<u16>(&bench.driver.notifications, 2), VECTOR);
    let mut front_end = bench.connect_up();
    arm(&mut bench, &mut front_end, &[&kick]);
    signal(&kick);
    bench.driver.wait_interrupt(VECTOR);
    bench.close(front_end);

    // Without MSI-X a kick is a bit of the interrupt status, and not the configuration's.
    if bench.driver.space.bytes()[INTERRUPT_PIN] == 0 {
        return;
    }
    bench.driver.start(0, 16, 8192);
    bench.turn_vectors(false);
    let mut front_end = bench.connect();
    bench.driver.set_status(BACKEND_UP);
    bench.driver.wait_status(BOTH_UP);
    arm(&mut bench, &mut front_end, &[&kick]);
    read::<u8>(&bench.driver.isr, 0);
    signal(&kick);
    let start = Instant::now();
    let isr = loop {
        match read::<u8>(&bench.driver.isr, 0) {
            0 => assert!(start.elapsed() < PATIENCE, "no interrupt"),
            other => break other,
        }
        pause();
    };
    assert_eq!(isr, ISR_KICK);
}

pub(super) fn c28_notification_selector(target: &dyn Target) {
    let bench = Bench::started(target);
    let driver = &bench.driver;
    let selected = || read::<u16>(&driver.notifications, 0);
    let vector = |ring: u16| {
        write(&driver.notifications, 0, ring);
        read::<u16>(&driver.notifications, 2)
    };
    for ring in 0..RINGS {
        assert_eq!(vector(ring), NONE);
        assert_eq!(driver.kick_vector(ring, KICK + ring), KICK + ring);
    }
    for beyond in [RINGS, RINGS + 1, 256, 1024, 0xffff] {
        assert_eq!(driver.kick_vector(beyond, 1), NONE);
        assert_eq!(selected(), beyond);
    }
    for ring in 0..RINGS {
        assert_eq!(vector(ring), KICK + ring);
    }
    // Vectors may be shared. One that is not there is none.
    assert_eq!(driver.kick_vector(1, KICK), KICK);
    let vectors = driver.function.vectors();
    for beyond in [vectors, vectors + 1, 0xfffe] {
        assert_eq!(driver.kick_vector(0, beyond), NONE);
    }

    driver.reset();
    assert_eq!(selected(), 0);
    for ring in 0..RINGS {
        assert_eq!(vector(ring), NONE);
    }
}
