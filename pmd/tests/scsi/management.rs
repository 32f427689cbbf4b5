//! Task management, with a disk that keeps its requests for as long as a test likes.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vvu_pmd::bdev::{
    Abilities, Channel, Disk, DiskError, Done, Geometry, IoError, Op, Request, Size,
};
use vvu_pmd::mock::Random;
use vvu_pmd::wake::Quiet;

use super::*;

const ABORT_TASK: u32 = 0;
const ABORT_TASK_SET: u32 = 1;
const CLEAR_ACA: u32 = 2;
const CLEAR_TASK_SET: u32 = 3;
const NEXUS_RESET: u32 = 4;
const UNIT_RESET: u32 = 5;
const QUERY_TASK: u32 = 6;
const QUERY_TASK_SET: u32 = 7;

/// What a slow disk and its channels share.
#[derive(Debug, Default)]
struct Shared {
    /// Requests are kept.
    keeps: AtomicBool,
    /// How many are there.
    kept: AtomicUsize,
    /// Writes that were done, by their offset.
    written: Mutex<Vec<u64>>,
}

/// A disk that answers when it is told to.
#[derive(Debug)]
struct Slow {
    size: Size,
    shared: Arc<Shared>,
}

impl Slow {
    fn with_shared() -> (Arc<dyn Disk>, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        let disk = Arc::new(Self {
            size: Size::new(SIZE),
            shared: Arc::clone(&shared),
        });
        (disk, shared)
    }
}

impl Disk for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn size(&self) -> &Size {
        &self.size
    }

    fn geometry(&self) -> Geometry {
        Geometry::default()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            read_only: false,
            write_back: true,
            discard: None,
            write_zeroes: None,
            needs_pinnable: false,
        }
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(SlowChannel {
            shared: Arc::clone(&self.shared),
            list: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct SlowChannel {
    shared: Arc<Shared>,
    list: Vec<Request>,
}

impl Channel for SlowChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        self.shared.kept.fetch_add(requests.len(), Ordering::SeqCst);
        self.list.append(requests);
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        if self.shared.keeps.load(Ordering::SeqCst) {
            return;
        }
        for request in self.list.drain(..) {
            if request.op == Op::Write {
                self.shared.written.lock().unwrap().push(request.offset);
            }
            self.shared.kept.fetch_sub(1, Ordering::SeqCst);
            let end = request.offset + request.len;
            let result = if end > SIZE {
                Err(IoError::Range)
            } else {
                Ok(())
            };
            done.push(request.done(result));
        }
    }

    fn in_flight(&self) -> usize {
        self.list.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn arm(&mut self) -> Quiet {
        Quiet::Polled
    }
}

impl Shared {
    fn keep(&self, keeps: bool) {
        self.keeps.store(keeps, Ordering::SeqCst);
    }

    /// Waits until so many requests are with the disk.
    fn wait(&self, count: usize) {
        let start = Instant::now();
        while self.kept.load(Ordering::SeqCst) != count {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn slow(features: u64, queues: u16) -> (Bench, Arc<Shared>) {
    let workers = ScsiWorkers::new(&[0, 1][..usable()], Polling::default()).unwrap();
    let mut bench = Bench::with("test", &workers, features, queues);
    let (disk, shared) = Slow::with_shared();
    bench
        .face
        .add(at(0, 0), Lun::new("slow", disk, false, None));
    bench.settle(at(0, 0));
    (bench, shared)
}

/// How many workers there can be: two where there are two CPUs.
pub(crate) fn usable() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(2))
}

/// Waits for so many answers of a queue: code and status of each, by id.
fn answers(bench: &mut Bench, queue: usize, count: usize) -> Vec<(u16, u8, u8)> {
    (0..count)
        .map(|_| {
            let answer = bench.driver.wait(queue);
            let response = Response::new(&answer.bytes);
            (answer.id, response.code, response.status)
        })
        .collect()
}

#[test]
fn one_task_is_aborted_when_the_disk_has_let_go_of_it() {
    for features in [SPLIT, PACKED] {
        let (mut bench, shared) = slow(features, 1);
        shared.keep(true);
        let first = bench.begin(REQUESTS, at(0, 0), 77, &write(0, 1), &[1; 512], 0);
        let second = bench.begin(REQUESTS, at(0, 0), 78, &write(1, 1), &[1; 512], 0);
        shared.wait(2);
        bench.begin_management(ABORT_TASK, at(0, 0), 77);
        std::thread::sleep(Duration::from_millis(20));
        assert!(bench.driver.answer(CONTROL).is_none(), "it is not over yet");
        shared.keep(false);
        assert_eq!(bench.driver.wait(CONTROL).bytes[0], 0);
        let mut found = answers(&mut bench, REQUESTS, 2);
        found.sort_unstable();
        let mut expected = vec![(first, 2, 0), (second, 0, 0)];
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(bench.face.snapshot().queues[0].wrong("aborted"), 1);
        // One that is not there is aborted at once.
        assert_eq!(bench.manage(ABORT_TASK, at(0, 0), 77), 0);
    }
}

#[test]
fn functions_have_the_scope_that_they_are_named_for() {
    // Function, and which of three tasks it ends: of unit 0, of unit 1, of another target.
    for (function, code, ends) in [
        (ABORT_TASK_SET, 2, [true, false, false]),
        (CLEAR_TASK_SET, 2, [true, false, false]),
        (UNIT_RESET, 4, [true, false, false]),
        (NEXUS_RESET, 4, [true, true, false]),
    ] {
        let (mut bench, shared) = slow(SPLIT, 1);
        let units = [at(0, 0), at(0, 1), at(1, 0)];
        let all: Vec<_> = [Slow::with_shared(), Slow::with_shared()].into();
        for ((disk, _), unit) in all.iter().zip(&units[1..]) {
            bench
                .face
                .add(*unit, Lun::new("more", Arc::clone(disk), false, None));
        }
        // Two more units: the others hear of them.
        units.iter().for_each(|unit| bench.settle(*unit));
        let shared = [&shared, &all[0].1, &all[1].1];
        shared.iter().for_each(|shared| shared.keep(true));
        let ids = units.map(|unit| bench.begin(REQUESTS, unit, 5, &read(0, 1), &[], 512));
        shared.iter().for_each(|shared| shared.wait(1));
        bench.begin_management(function, units[0], 0);
        std::thread::sleep(Duration::from_millis(20));
        assert!(bench.driver.answer(CONTROL).is_none());
        shared.iter().for_each(|shared| shared.keep(false));
        assert_eq!(bench.driver.wait(CONTROL).bytes[0], 0);
        let found = answers(&mut bench, REQUESTS, 3);
        for (id, ends) in ids.iter().zip(ends) {
            let (_, got, _) = found.iter().find(|(found, ..)| found == id).unwrap();
            assert_eq!(*got, if ends { code } else { 0 }, "function {function}");
        }
        let told = bench.run(units[0], &[0; 6], &[], 0);
        match function {
            UNIT_RESET => assert_eq!(told.sense(), (6, 0x2900)),
            NEXUS_RESET => assert_eq!(told.sense(), (6, 0x2907)),
            _ => assert_eq!(told.status, 0),
        }
    }
}

#[test]
fn tasks_are_found_or_not() {
    let (mut bench, shared) = slow(SPLIT, 2);
    assert_eq!(bench.manage(QUERY_TASK_SET, at(0, 0), 0), 0);
    shared.keep(true);
    bench.begin(REQUESTS + 1, at(0, 0), 9, &read(0, 1), &[], 512);
    shared.wait(1);
    assert_eq!(bench.manage(QUERY_TASK, at(0, 0), 8), 0);
    assert_eq!(bench.manage(QUERY_TASK, at(0, 0), 9), 10);
    assert_eq!(bench.manage(QUERY_TASK_SET, at(0, 0), 0), 10);
    shared.keep(false);
    assert_eq!(
        answers(&mut bench, REQUESTS + 1, 1)[0].1,
        0,
        "looked for, not ended"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut bench = Bench::new(SPLIT);
    assert_eq!(bench.manage(CLEAR_ACA, at(0, 0), 0), 11);
    assert_eq!(bench.manage(99, at(0, 0), 0), 11);
    assert_eq!(bench.manage(UNIT_RESET, at(0, 9), 0), 12);
    assert_eq!(bench.manage(UNIT_RESET, at(9, 0), 0), 3);
    // Queries for notifications: none are ever sent.
    for kind in [1u32, 2] {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(lun_bytes(at(0, 0)));
        bytes.extend(2u32.to_le_bytes());
        bench.driver.chain(CONTROL, &[&bytes], &[5], false).unwrap();
        bench.driver.submit(CONTROL);
        assert_eq!(bench.driver.wait(CONTROL).bytes, [0; 5]);
    }
    // Requests and responses that are too short.
    for (len, room) in [(23, 1), (4, 1), (0, 1), (24, 0)] {
        bench
            .driver
            .chain(CONTROL, &[&vec![0; len]], &[room], false)
            .unwrap();
        bench.driver.submit(CONTROL);
        let answer = bench.driver.wait(CONTROL);
        assert_eq!((answer.len, answer.bytes), (0, vec![0xee; room]));
    }
}

#[test]
fn nothing_of_what_was_aborted_is_written_later() {
    let (mut bench, shared) = slow(SPLIT, 2);
    let mut random = Random::new(11);
    let mut tag = 100;
    for _ in 0..60 {
        let mut flying = HashSet::new();
        shared.keep(random.range(0, 2) == 0);
        for queue in [REQUESTS, REQUESTS + 1] {
            for _ in 0..random.range(0, 6) {
                tag += 1;
                let cdb = write(random.range(0, 1000) as u32, 1);
                bench.begin(queue, at(0, 0), tag, &cdb, &[1; 512], 0);
                flying.insert(tag);
            }
        }
        let function = [ABORT_TASK_SET, UNIT_RESET, ABORT_TASK][random.range(0, 2)];
        bench.begin_management(function, at(0, 0), tag);
        if random.range(0, 1) == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        shared.keep(false);
        assert_eq!(bench.driver.wait(CONTROL).bytes[0], 0);
        let written = shared.written.lock().unwrap().len();
        if function != ABORT_TASK {
            assert_eq!(shared.kept.load(Ordering::SeqCst), 0);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(shared.written.lock().unwrap().len(), written);
        }
        for queue in [REQUESTS, REQUESTS + 1] {
            for _ in 0..bench.driver.flying(queue) {
                let response = Response::new(&bench.driver.wait(queue).bytes);
                let fine = matches!((response.code, response.status), (0, 0 | 2) | (2 | 4, 0));
                assert!(fine, "{response:?}");
            }
        }
        bench.settle(at(0, 0));
    }
}

#[test]
fn a_unit_that_goes_takes_its_tasks_along() {
    let (mut bench, shared) = slow(SPLIT, 1);
    shared.keep(true);
    bench.begin(REQUESTS, at(0, 0), 9, &read(0, 1), &[], 512);
    shared.wait(1);
    bench.face.remove(at(0, 0));
    // Another one is there at once, but its place is not free yet.
    bench
        .face
        .add(at(0, 0), Lun::new("next", mem(), false, None));
    let id = bench.begin(REQUESTS, at(0, 0), 10, &read(0, 1), &[], 512);
    let told = answers(&mut bench, REQUESTS, 1);
    assert_eq!(told[0].0, id);
    shared.keep(false);
    assert_eq!(answers(&mut bench, REQUESTS, 1)[0].1, 2);
    bench.settle(at(0, 0));
    assert_eq!(bench.run(at(0, 0), &read(0, 1), &[], 512).status, 0);
}

#[test]
fn a_ring_is_stopped_when_the_disk_has_answered() {
    let (mut bench, shared) = slow(SPLIT, 1);
    shared.keep(true);
    // A long job among them: it does not hold up the end.
    let verify = rw10(0x2f, 0, 8000);
    bench.begin(REQUESTS, at(0, 0), 1, &verify, &[], 0);
    bench.begin(REQUESTS, at(0, 0), 2, &read(0, 1), &[], 512);
    shared.wait(2);
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        shared.keep(false);
    });
    bench.device.stop_ring(2).unwrap();
    release.join().unwrap();
    let mut statuses: Vec<_> = answers(&mut bench, REQUESTS, 2)
        .iter()
        .map(|a| a.2)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [0, 8], "the job was told to come again");
}
