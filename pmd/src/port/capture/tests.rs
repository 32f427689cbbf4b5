#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGOption};
use vvu::memory::VolatileSlice;

use super::blocks::{self, Direction};
use super::*;
use crate::port::{Heads, Stats};
use crate::stats::PortStats;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl std::ops::Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a file says, as another program reads it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    name: String,
    snap: u32,
    /// Time, flags, whole length, bytes.
    frames: Vec<(u64, u32, u32, Vec<u8>)>,
    passed: Option<u64>,
    missed: Option<u64>,
}

fn contents(path: &Path) -> Contents {
    let mut reader = pcap_parser::create_reader(1 << 20, std::fs::File::open(path).unwrap());
    let reader = reader.as_mut().unwrap();
    let mut contents = Contents::default();
    let number = |options: &[PcapNGOption<'_>], code| {
        let option = options.iter().find(|option| option.code.0 == code)?;
        let mut bytes = [0; 8];
        bytes[..option.value.len()].copy_from_slice(&option.value);
        Some(u64::from_le_bytes(bytes))
    };
    loop {
        match reader.next() {
            Ok((len, block)) => {
                match block {
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => {}
                    PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                        assert_eq!(block.ts_resolution(), Some(1_000_000_000));
                        contents.snap = block.snaplen;
                        let name = block.options.iter().find(|option| option.code.0 == 2);
                        contents.name = name.unwrap().as_str().unwrap().to_owned();
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                        let time = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
                        let flags = number(&block.options, 2).unwrap() as u32;
                        let bytes = block.data[..block.caplen as usize].to_vec();
                        contents.frames.push((time, flags, block.origlen, bytes));
                    }
                    PcapBlockOwned::NG(Block::InterfaceStatistics(block)) => {
                        contents.passed = number(&block.options, 4);
                        contents.missed = number(&block.options, 5);
                    }
                    _ => panic!("a block that was not written"),
                }
                reader.consume(len);
            }
            Err(PcapError::Eof) => return contents,
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| seed.wrapping_add((at * 13) as u8))
        .collect()
}

#[test]
fn frames_of_any_length_are_written_whole() {
    let scratch = Scratch::new("lengths");
    let path = scratch.0.join("a.pcapng");
    let (recorder, pen) = Recorder::start(&path, "unix:/run/ä.sock", 300).unwrap();
    let mut written = Vec::new();
    for len in (14..120).chain([299, 300, 301, 1514, 65557]) {
        let mut frame = pattern(len as u8, len);
        written.push((
            7 + len as u64,
            1 + len as u32 % 2,
            len as u32,
            frame[..len.min(300)].to_vec(),
        ));
        let direction = match len % 2 {
            0 => Direction::In,
            _ => Direction::Out,
        };
        // As it lies: its head, then two pieces.
        let head: Vec<u8> = frame[..len.min(96)].to_vec();
        let body = &mut frame[len.min(96)..];
        let (one, two) = body.split_at_mut(body.len() / 3);
        let pieces = [VolatileSlice::from(one), VolatileSlice::from(two)];
        assert!(pen.write(7 + len as u64, direction, len, &head, pieces.into_iter()));
    }
    drop(recorder);
    let read = contents(&path);
    assert_eq!((read.name.as_str(), read.snap), ("unix:/run/ä.sock", 300));
    assert_eq!(read.frames, written);
    assert_eq!(
        (read.passed, read.missed),
        (Some(written.len() as u64), Some(0))
    );
}

/// A disk that takes nothing: what finds no room is counted, and the worker goes on.
#[test]
fn a_slow_disk_costs_frames_and_no_time() {
    let scratch = Scratch::new("slow");
    let path = scratch.0.join("pipe");
    let status = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(status.unwrap().success());
    // Somebody opens it, so that it can be opened here, and reads nothing for now.
    let theirs = path.clone();
    let reader = std::thread::spawn(move || std::fs::File::open(theirs).unwrap());
    let (recorder, pen) = Recorder::start(&path, "p", Recorder::SNAP).unwrap();
    let pipe = reader.join().unwrap();
    let mut frame = pattern(1, 60000);
    let mut missed = 0;
    for _ in 0..1000 {
        let body = VolatileSlice::from(&mut frame[..]);
        let noted = pen.write(1, Direction::In, 60000, &[], std::iter::once(body));
        missed += u64::from(!noted);
    }
    assert!(missed > 500, "{missed}");
    // The disk recovers: the file is well formed and says what is missing.
    let copy = scratch.0.join("copy");
    let theirs = copy.clone();
    let copier = std::thread::spawn(move || {
        let (mut pipe, mut file) = (pipe, std::fs::File::create(theirs).unwrap());
        std::io::copy(&mut pipe, &mut file).unwrap();
    });
    drop(recorder);
    copier.join().unwrap();
    let read = contents(&copy);
    assert_eq!(read.frames.len() as u64, 1000 - missed);
    assert!(read.frames.iter().all(|(.., bytes)| *bytes == frame));
    assert_eq!((read.passed, read.missed), (Some(1000), Some(missed)));
}

/// A classic file of frames, in either byte order and resolution.
fn classic(big: bool, nanoseconds: bool, frames: &[Vec<u8>]) -> Vec<u8> {
    let word = |value: u32| match big {
        true => value.to_be_bytes(),
        false => value.to_le_bytes(),
    };
    let half = |value: u16| match big {
        true => value.to_be_bytes(),
        false => value.to_le_bytes(),
    };
    let magic = if nanoseconds {
        0xa1b2_3c4d
    } else {
        0xa1b2_c3d4
    };
    let mut file = [word(magic).to_vec(), half(2).to_vec(), half(4).to_vec()].concat();
    for value in [0, 0, 65535, 1] {
        file.extend(word(value));
    }
    for frame in frames {
        for value in [1, 2, frame.len() as u32, frame.len() as u32] {
            file.extend(word(value));
        }
        file.extend(frame);
    }
    file
}

fn stats() -> Stats {
    PortStats::new(0, &[])
}

/// All frames that `replay` plays to a listener that takes every other burst.
fn played(replay: &mut Replay) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut heads = Heads::default();
    let mut there = false;
    for _ in 0..1000 {
        there = !there;
        replay.rx_burst(&mut heads, |burst| {
            if there {
                for head in burst.heads() {
                    let mut frame = head.bytes().to_vec();
                    for piece in burst.body(head) {
                        let mut bytes = vec![0; piece.len()];
                        piece.copy_to(&mut bytes[..]);
                        frame.extend(bytes);
                    }
                    frames.push(frame);
                }
            }
            there
        });
    }
    frames
}

#[test]
fn files_of_either_kind_are_played_once() {
    let scratch = Scratch::new("played");
    let frames: Vec<_> = (0..200).map(|n| pattern(n as u8, 14 + n * 7)).collect();
    for (big, nanoseconds) in [(false, false), (true, false), (false, true), (true, true)] {
        let path = scratch.file("a.pcap", &classic(big, nanoseconds, &frames));
        let counters = stats();
        let mut replay = Replay::open(&path, false, Arc::clone(&counters)).unwrap();
        assert!(played(&mut replay) == frames);
        assert_eq!(counters.rx_packets.get(), 200);
    }
    let path = scratch.0.join("a.pcapng");
    let (recorder, pen) = Recorder::start(&path, "x", Recorder::SNAP).unwrap();
    for frame in &frames {
        assert!(pen.write(1, Direction::In, frame.len(), frame, std::iter::empty()));
    }
    drop(recorder);
    let mut replay = Replay::open(&path, false, stats()).unwrap();
    assert!(played(&mut replay) == frames);
    let mut replay = Replay::open(&path, true, stats()).unwrap();
    let again = played(&mut replay);
    assert!(again.len() > 600);
    assert!(
        again
            .iter()
            .zip(frames.iter().cycle())
            .all(|(one, other)| one == other)
    );
}

#[test]
fn frames_that_no_port_takes_are_left_out() {
    let scratch = Scratch::new("odd");
    let good = pattern(1, 60);
    let frames = [pattern(0, 13), good.clone(), pattern(2, 9300)];
    let mut file = classic(false, false, &frames);
    // One more, cut short when it was captured.
    for value in [1u32, 2, 20, 60] {
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 20]);
    let path = scratch.file("a.pcap", &file);
    let mut replay = Replay::open(&path, false, stats()).unwrap();
    assert_eq!(played(&mut replay), [good]);
}

#[test]
fn bad_files_are_refused_with_a_reason() {
    let scratch = Scratch::new("bad");
    let refused = |bytes: &[u8], reason: &str| {
        let path = scratch.file("a", bytes);
        let error = Replay::open(&path, false, stats()).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason:?} is not in {error}");
    };
    refused(b"", "nothing");
    refused(b"this is a text and no file of frames", "unknown header");
    let mut wrong = classic(false, false, &[pattern(0, 60)]);
    refused(&wrong[..wrong.len() - 1], "cut short");
    refused(&wrong[..30], "cut short");
    // LINKTYPE_RAW.
    wrong[20] = 101;
    refused(&wrong, "not Ethernet");
    let mut long = classic(false, false, &[]);
    for value in [1u32, 2, 0x7fff_ffff, 60] {
        long.extend(value.to_le_bytes());
    }
    long.extend(vec![0; 5 << 20]);
    refused(&long, "a block");
    let none = scratch.0.join("none");
    let error = Replay::open(&none, false, stats()).unwrap_err().to_string();
    assert!(
        error.contains("none") && error.contains("No such file"),
        "{error}"
    );
    // Frames of an interface that was not described.
    let beginning = blocks::beginning("x", 100);
    let front = blocks::front(1, 4, 4);
    let (back, from) = blocks::back(4, Direction::In);
    let section = beginning[4] as usize;
    let mut file = beginning[..section].to_vec();
    file.extend(front);
    file.extend([0; 4]);
    file.extend(&back[from..]);
    refused(&file, "not Ethernet");
}
