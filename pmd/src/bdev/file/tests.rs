#![allow(clippy::unwrap_used)]
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vvu::memory::{Area, Mapping};

use super::*;
use crate::bdev::{Data, Done, Op};
use crate::wake::Quiet;

const SIZE: u64 = 8 << 20;

/// A file that is gone when the test is over.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let name = format!("vvu-file-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// What the file has, past our disk.
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file = std::fs::File::open(&self.0).unwrap();
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn config(&self) -> FileConfig {
        FileConfig {
            create: Some(SIZE),
            ..FileConfig::new(&self.0)
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `len` bytes of memory of ours, from `skip` on: misaligned if that is.
fn memory(skip: usize, len: usize) -> (Area, Data) {
    let area = Area::whole(Mapping::anonymous(skip + len).unwrap());
    let area = area.sub(skip, len).unwrap();
    let data = Some(Box::new(Scatter::of_area(area.clone())));
    (area, data)
}

fn request(op: Op, offset: u64, len: u64, data: Data) -> Request {
    Request {
        token: 7,
        op,
        offset,
        len,
        data,
        fua: false,
    }
}

/// Submits and waits for all answers, asleep.
fn run(channel: &mut dyn Channel, mut requests: Vec<Request>) -> Vec<Done> {
    let count = requests.len();
    channel.submit(&mut requests);
    assert!(requests.is_empty());
    let start = Instant::now();
    let mut done = Vec::new();
    while done.len() < count {
        channel.reap(&mut done);
        assert_eq!(channel.in_flight() + done.len(), count);
        if done.len() < count && channel.arm() != Quiet::Busy {
            let fds = channel.fds();
            let mut fds: Vec<_> = fds
                .iter()
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            let short = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let _ = poll(&mut fds, Some(&short));
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no answer");
    }
    assert_eq!(channel.arm(), Quiet::Kicked);
    done
}

fn one(channel: &mut dyn Channel, request: Request) -> Result<(), IoError> {
    run(channel, vec![request]).remove(0).result
}

fn all_ways(name: &str, test: impl Fn(&Temp, File)) {
    for (direct, sqpoll) in [(false, false), (true, false), (false, true)] {
        let temp = Temp::new(&format!("{name}-{direct}-{sqpoll}"));
        let config = FileConfig {
            direct,
            sqpoll,
            ..temp.config()
        };
        match File::open(config) {
            Ok(file) => test(&temp, file),
            Err(error) if direct => eprintln!("SKIPPED: no direct I/O here: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_is_written_is_in_the_file_and_is_read() {
    all_ways("rw", |temp, file| {
        let mut channel = file.channel().unwrap();
        let block = u64::from(file.geometry().logical_block);
        // Aligned and misaligned memory; one block, a buffer, several buffers and a rest.
        for (skip, len, offset) in [
            (0, block, 0),
            (0, 1 << 20, 1 << 20),
            (1, block, 3 * block),
            (64, (BUFFER as u64) + block, 4 << 20),
            (3, 3 * (BUFFER as u64) + block, 5 << 20),
        ] {
            let (area, data) = memory(skip, len as usize);
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + len) as u8).collect();
            area.slice().copy_from(&bytes);
            let write = request(Op::Write, offset, len, data);
            assert_eq!(one(&mut *channel, write), Ok(()));
            assert!(temp.read(offset, len as usize) == bytes);

            let (area, data) = memory(skip, len as usize);
            let read = request(Op::Read, offset, len, data);
            assert_eq!(one(&mut *channel, read), Ok(()));
            let mut read = vec![0; len as usize];
            area.slice().copy_to(&mut read[..]);
            assert!(read == bytes);
        }
        assert_eq!(one(&mut *channel, request(Op::Flush, 0, 0, None)), Ok(()));
    });
}

#[test]
fn more_than_the_ring_and_the_buffers_hold() {
    all_ways("many", |temp, file| {
        let mut channel = file.channel().unwrap();
        let len = 4096;
        let writes = (0..1500u64).map(|n| {
            // Every other one needs a buffer, if I/O is direct.
            let (area, data) = memory((n % 2) as usize * 5, len);
            area.slice().copy_from(&[n as u8 | 1; 4096]);
            Request {
                token: n,
                fua: n % 3 == 0,
                ..request(Op::Write, n * 4096, 4096, data)
            }
        });
        let done = run(&mut *channel, writes.collect());
        let mut seen = vec![false; 1500];
        for done in done {
            assert_eq!(done.result, Ok(()));
            assert!(done.data.is_some(), "the data comes back");
            assert!(!std::mem::replace(&mut seen[done.token as usize], true));
        }
        for n in 0..1500 {
            assert!(temp.read(n * 4096, len) == [n as u8 | 1; 4096]);
        }
    });
}

#[test]
fn zeroes_and_holes() {
    all_ways("zero", |temp, file| {
        let mut channel = file.channel().unwrap();
        let (area, data) = memory(0, 1 << 20);
        area.slice().copy_from(&vec![0xa5u8; 1 << 20]);
        let write = request(Op::Write, 0, 1 << 20, data);
        assert_eq!(one(&mut *channel, write), Ok(()));
        let ops = [
            Op::WriteZeroes { unmap: false },
            Op::WriteZeroes { unmap: true },
        ];
        for (n, op) in (0..).zip(ops) {
            for fua in [false, true] {
                let offset = n * (256 << 10) + u64::from(fua) * (128 << 10);
                let zero = Request {
                    fua,
                    ..request(op, offset + 4096, 8192, None)
                };
                assert_eq!(one(&mut *channel, zero), Ok(()));
                assert!(temp.read(offset, 4096) == [0xa5; 4096]);
                assert!(temp.read(offset + 4096, 8192) == [0; 8192]);
                assert!(temp.read(offset + 12288, 4096) == [0xa5; 4096]);
            }
        }
        let discard = request(Op::Discard, 768 << 10, 64 << 10, None);
        assert_eq!(one(&mut *channel, discard), Ok(()));
        assert_eq!(temp.read(0, 1).len(), 1);
        assert_eq!(file.size().get(), SIZE, "a hole at the end changes no size");
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let temp = Temp::new("bounds");
    let file = File::open(temp.config()).unwrap();
    let mut channel = file.channel().unwrap();
    let mut refused = |op, offset, len: u64| {
        let (_, data) = memory(0, len.clamp(512, 1 << 20) as usize);
        one(&mut *channel, request(op, offset, len, data))
    };
    for (offset, len) in [
        (SIZE, 512),
        (SIZE - 512, 1024),
        (u64::MAX - 511, 512),
        (!511, 1024),
        (1, 512),
        (0, 511),
        (1 << 63, 512),
    ] {
        for op in [
            Op::Read,
            Op::Write,
            Op::Discard,
            Op::WriteZeroes { unmap: true },
        ] {
            assert_eq!(refused(op, offset, len), Err(IoError::Range), "{offset:#x}");
        }
    }
    assert_eq!(
        refused(Op::Read, 0, 2 << 20),
        Err(IoError::Range),
        "data is shorter"
    );
    assert_eq!(refused(Op::Read, SIZE - 512, 512), Ok(()));

    drop((channel, file));
    let config = FileConfig {
        read_only: true,
        ..temp.config()
    };
    let file = File::open(config).unwrap();
    assert!(file.abilities().read_only && file.abilities().discard.is_none());
    let mut channel = file.channel().unwrap();
    for op in [Op::Write, Op::Discard, Op::WriteZeroes { unmap: false }] {
        let (_, data) = memory(0, 512);
        let result = one(&mut *channel, request(op, 0, 512, data));
        assert_eq!(result, Err(IoError::ReadOnly));
    }
    assert_eq!(one(&mut *channel, request(Op::Flush, 0, 0, None)), Ok(()));
}

#[test]
fn a_file_changes_its_size() {
    use std::sync::atomic::AtomicU64;

    #[derive(Default)]
    struct Heard(AtomicU64);
    impl crate::bdev::Resized for Heard {
        fn resized(&self, bytes: u64) {
            self.0.store(bytes, Ordering::Relaxed);
        }
    }
    let temp = Temp::new("size");
    let disk = File::open(temp.config()).unwrap();
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn crate::bdev::Resized> = Arc::clone(&heard) as _;
    disk.size().listen(&listener);
    let mut channel = disk.channel().unwrap();
    let mut read_at = |offset| {
        let (_, data) = memory(0, 4096);
        one(&mut *channel, request(Op::Read, offset, 4096, data))
    };
    assert_eq!(read_at(SIZE), Err(IoError::Range));
    let file = std::fs::File::options().write(true).open(&temp.0).unwrap();
    file.set_len(2 * SIZE + 100).unwrap();
    disk.refresh().unwrap();
    assert_eq!(heard.0.load(Ordering::Relaxed), 2 * SIZE, "whole blocks");
    assert_eq!(read_at(SIZE), Ok(()));
    // Somebody cuts the file, and we do not know yet.
    file.set_len(SIZE).unwrap();
    assert_eq!(read_at(SIZE), Err(IoError::Io(libc::EIO)));
    disk.refresh().unwrap();
    assert_eq!(read_at(SIZE), Err(IoError::Range));
}

#[test]
fn what_is_no_disk_is_refused_with_a_reason() {
    let missing = FileConfig::new(Path::new("/nowhere/at/all"));
    let error = File::open(missing).unwrap_err().to_string();
    assert!(
        error.contains("file:/nowhere/at/all: cannot open"),
        "{error}"
    );
    let error = File::open(FileConfig::new(Path::new("/dev/null"))).unwrap_err();
    assert!(error.to_string().contains("neither"), "{error}");
    let temp = Temp::new("empty");
    std::fs::write(&temp.0, b"short").unwrap();
    let error = File::open(FileConfig::new(&temp.0))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("5 bytes") && error.contains("size=10G"),
        "{error}"
    );
    let config = FileConfig {
        block: Some(256),
        ..temp.config()
    };
    assert!(File::open(config).is_err());
}

#[test]
fn a_file_that_is_written_has_one_user() {
    let temp = Temp::new("locked");
    let at_once = |read_only| {
        let config = FileConfig {
            read_only,
            patience: Duration::ZERO,
            ..temp.config()
        };
        File::open(config).map_err(|error| error.to_string())
    };
    let writer = at_once(false).unwrap();
    for read_only in [false, true] {
        let error = at_once(read_only).unwrap_err();
        let name = format!("file:{}: somebody else has it locked", temp.0.display());
        assert!(error.starts_with(&name), "{error}");
    }
    // Whoever still does I/O has it.
    let channel = writer.channel().unwrap();
    drop(writer);
    assert!(at_once(false).is_err());
    drop(channel);
    // The kernel takes its time to close an io_uring.
    let deadline = Instant::now() + Duration::from_secs(20);
    let readers = loop {
        match at_once(true) {
            Ok(reader) => break [reader, at_once(true).unwrap()],
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(at_once(false).is_err());
    // It is waited for.
    let waits = temp.config();
    let waits = std::thread::spawn(move || File::open(waits).is_ok());
    std::thread::sleep(Duration::from_millis(50));
    drop(readers);
    assert!(waits.join().unwrap());
}

#[test]
fn a_channel_that_goes_away_waits_for_what_is_in_flight() {
    all_ways("drop", |temp, file| {
        for round in 0..20u8 {
            let mut channel = file.channel().unwrap();
            let writes = (0..100u64).map(|n| {
                let (area, data) = memory(0, 4096);
                area.slice().copy_from(&[round + 1; 4096]);
                request(Op::Write, n * 4096, 4096, data)
            });
            channel.submit(&mut writes.collect());
            drop(channel);
        }
        assert!(temp.read(0, 100 * 4096).iter().all(|&byte| byte == 20));
    });
}
