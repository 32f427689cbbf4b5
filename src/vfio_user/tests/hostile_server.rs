//! Servers that do as they please: a good one, and somebody in between who changes what it says.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::Bytes;
use zerocopy::IntoBytes;

use super::super::client::Times;
use super::super::message::{self, ERROR, HEADER_LEN, Header};
use super::super::*;
use super::bench::{Bench, LONG, SocketPath};
use crate::mmio::{ReadWrite, Reg};
use crate::pci::PciFunction;
use crate::socket::{Frame, Frames, send};

/// For servers that are slow on purpose. Where one that is not seems so, on a busy machine, the
/// function is gone a little early, which is no less of a test.
const IMPATIENT: Times = Times {
    request: Duration::from_millis(100),
    requests: Duration::from_millis(400),
    writes: Duration::from_millis(100),
};

/// What is done to one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Nothing,
    /// Hang up instead, or after half of it.
    Close,
    CloseHalfway,
    /// Say no more, or no more after half of it.
    Silence,
    HalfSilence,
    /// Refuse, with this reason.
    Refuse(u32),
    /// Answer something else, or ask.
    OtherId,
    OtherCommand,
    Ask,
    /// Say it twice.
    Twice,
    /// Announce this size.
    Size(u32),
    /// Announce more than follows.
    Longer,
    /// Fill the body with this.
    Fill(u8),
    /// Cut the body to this.
    Cut(usize),
    /// Append this many zeroes.
    Append(usize),
    /// Add this many file descriptors, which are no files; or take away those that are there.
    Attach(usize),
    Detach,
}

const DEEDS: &[Deed] = &[
    Deed::Close,
    Deed::CloseHalfway,
    Deed::Silence,
    Deed::HalfSilence,
    Deed::Refuse(0),
    Deed::Refuse(22),
    Deed::Refuse(u32::MAX),
    Deed::OtherId,
    Deed::OtherCommand,
    Deed::Ask,
    Deed::Twice,
    Deed::Size(0),
    Deed::Size(15),
    Deed::Size(u32::MAX),
    Deed::Longer,
    Deed::Fill(0),
    Deed::Fill(0xff),
    Deed::Fill(0x40),
    Deed::Cut(0),
    Deed::Cut(4),
    Deed::Append(8),
    Deed::Append(9000),
    Deed::Attach(1),
    Deed::Attach(16),
    Deed::Detach,
];

/// Passes everything on between one client and a server, and does a deed to one reply.
struct Between {
    stop: OwnedFd,
    thread: Option<JoinHandle<u32>>,
}

impl Between {
    fn new(path: &SocketPath, server: &SocketPath, which: u32, deed: Deed) -> Self {
        let listener = UnixListener::bind(path.path()).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE).unwrap();
        let thread = {
            let (server, stop) = (server.path().to_owned(), stop.try_clone().unwrap());
            std::thread::spawn(move || {
                let (client, _) = listener.accept().unwrap();
                let server = UnixStream::connect(server).unwrap();
                let (replies, after) = relay(&client, &server, &stop, which, deed);
                if after == After::Close {
                    drop((client, server));
                }
                // Twice: to stop listening, and to hang up.
                for _ in 0..2 {
                    rustix::io::read(&stop, &mut [0; 8]).unwrap();
                }
                replies
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Listens to nobody any more.
    fn deafen(&self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
    }

    /// How many replies there were.
    fn finish(mut self) -> u32 {
        rustix::io::write(&self.stop, &2u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn payload_len(header: &[u8; HEADER_LEN]) -> Result<usize, String> {
    message::payload_len(header, 1 << 16)
}

fn relay(
    client: &UnixStream,
    server: &UnixStream,
    stop: &OwnedFd,
    which: u32,
    deed: Deed,
) -> (u32, After) {
    let (mut commands, mut replies) = (Frames::new(16), Frames::new(16));
    let mut number = 0;
    let mut mute = false;
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(client, PollFlags::IN),
            PollFd::new(server, PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        let ready = fds.map(|fd| !fd.revents().is_empty());
        if ready[0] {
            return (number, After::Mute);
        }
        if ready[1] {
            match commands.receive(client.as_fd(), payload_len) {
                Ok(None) => {}
                Ok(Some(frame)) => pass(server, &frame.header, &frame.payload, &frame.attached),
                Err(_) => return (number, After::Close),
            }
        }
        if ready[2] {
            match replies.receive(server.as_fd(), payload_len) {
                Ok(None) => {}
                Ok(Some(_)) if mute => {}
                Ok(Some(frame)) => {
                    let done = if number == which { deed } else { Deed::Nothing };
                    number += 1;
                    match misdeed(client, frame, done) {
                        After::GoOn => {}
                        After::Mute => mute = true,
                        After::Close => return (number, After::Close),
                    }
                }
                Err(_) => return (number, After::Close),
            }
        }
    }
}

fn pass(to: &UnixStream, header: &[u8], body: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    // Whoever is gone, or full, is not our business.
    let _ = send(
        to.as_fd(),
        &[IoSlice::new(header), IoSlice::new(body)],
        &fds,
    );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    GoOn,
    Mute,
    Close,
}

fn misdeed(client: &UnixStream, frame: Frame<HEADER_LEN>, deed: Deed) -> After {
    let mut header: Header = zerocopy::transmute!(frame.header);
    let (mut body, mut fds) = (frame.payload, frame.attached);
    let whole = [header.as_bytes(), &body].concat();
    let half = &whole[..whole.len() / 2];
    let fitting = |header: &mut Header, body: &[u8]| {
        header.size = (HEADER_LEN + body.len()) as u32;
    };
    match deed {
        Deed::Nothing => {}
        Deed::Close => return After::Close,
        Deed::Silence => return After::Mute,
        Deed::CloseHalfway => {
            pass(client, half, &[], &fds);
            return After::Close;
        }
        Deed::HalfSilence => {
            pass(client, half, &[], &fds);
            return After::Mute;
        }
        Deed::Refuse(errno) => {
            header.flags |= ERROR;
            header.error = errno;
            body.clear();
            fitting(&mut header, &body);
        }
        Deed::OtherId => header.id ^= 0x55,
        Deed::OtherCommand => header.command ^= 1,
        Deed::Ask => header.flags = 0,
        Deed::Twice => pass(client, header.as_bytes(), &body, &fds),
        Deed::Size(size) => header.size = size,
        Deed::Longer => header.size += 8,
        Deed::Fill(byte) => body.fill(byte),
        Deed::Cut(len) => {
            body.truncate(len);
            fitting(&mut header, &body);
        }
        Deed::Append(len) => {
            body.extend(vec![0; len]);
            fitting(&mut header, &body);
        }
        Deed::Attach(count) => {
            let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            fds.splice(0..0, (0..count).map(|_| event()));
            fds.truncate(16);
        }
        Deed::Detach => fds.clear(),
    }
    pass(client, header.as_bytes(), &body, &fds);
    After::GoOn
}

/// All that a driver does with a function, as far as it lets him.
fn tour(path: &SocketPath, times: Times) -> Result<(), Box<dyn std::error::Error>> {
    let mut function = VfioUserFunction::with_times(path.path(), times)?;
    function.reset()?;
    let mut space = [0; 256];
    function.read_config(0, &mut space);
    function.write_config(4, &[6, 0]);
    let register: Option<Reg<u32, ReadWrite>> = function.registers(0, 0, 0x40)?.register(8);
    if let Some(register) = &register {
        register.write(5);
        register.read();
    }
    let dma = function.alloc_dma(0x2000)?;
    dma.bytes.slice().write_obj(1u32, 0)?;
    function.enable_vectors(function.vectors().min(20))?;
    if let Ok(area) = function.map_bar(2, 0x1000, 0x1000) {
        area.slice().read_obj::<u32>(0x10)?;
    }
    function.reset()?;
    match register.map(|register| register.read()) {
        Some(5) => Ok(()),
        other => Err(format!("the register has {other:x?}").into()),
    }
}

#[test]
fn nothing_is_wrong_with_one_that_changes_nothing() {
    let (path, server) = (SocketPath::new(), SocketPath::new());
    let bench = Bench::at(server.path());
    let between = Between::new(&path, &server, 0, Deed::Nothing);
    tour(&path, Times::default()).unwrap();
    assert!(between.finish() > 20);
    drop(bench);
}

#[test]
fn whatever_a_server_answers_the_driver_goes_on() {
    let name = "vfio_user::tests::hostile_server::every_deed_to_every_reply";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by whatever_a_server_answers_the_driver_goes_on, in a process of its own"]
fn every_deed_to_every_reply() {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let server = SocketPath::new();
    let bench = Bench::at(server.path());
    let mut baseline = None;
    let mut failed = 0;
    // Beyond the last reply nothing is done, and the tour comes to its end.
    for which in 0..30 {
        for deed in DEEDS {
            let path = SocketPath::new();
            let between = Between::new(&path, &server, which, *deed);
            let start = Instant::now();
            let ended = tour(&path, IMPATIENT);
            let took = start.elapsed();
            between.finish();
            failed += u32::from(ended.is_err());
            // Three waits at most, and what a busy machine makes of them.
            assert!(took < LONG / 4, "{deed:?} to reply {which}: {took:?}");
        }
        super::bench::until("it is clean", || bench.function.is_clean());
        if which % 10 == 9 {
            let now = || (count("fd"), count("map_files"));
            let (fds, maps) = *baseline.get_or_insert_with(now);
            // The other end of a connection may be closed a moment later.
            super::bench::until("nothing is left over", || {
                let now = now();
                now.0 <= fds && now.1 <= maps + 8
            });
        }
    }
    assert!(failed > 200, "{failed} of them were noticed");
}

#[test]
fn one_that_never_answers_has_a_deadline() {
    let path = SocketPath::new();
    let listener = UnixListener::bind(path.path()).unwrap();
    let start = Instant::now();
    let error = VfioUserFunction::with_times(path.path(), IMPATIENT)
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            VfioUserError::Timeout {
                what: "VERSION",
                ..
            }
        ),
        "{error}"
    );
    assert!(start.elapsed() < LONG / 4);
    drop(listener);
    let error = VfioUserFunction::with_times(path.path(), IMPATIENT)
        .err()
        .unwrap();
    assert!(matches!(error, VfioUserError::Connect(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("vvu device") && text.contains(path.path().to_str().unwrap()));
}

/// A server that answers reads, each of them after a while, and nothing else after the first
/// `prompt` messages.
fn slow_server(path: &SocketPath, pause: Duration) -> JoinHandle<()> {
    let server = SocketPath::new();
    let bench = Bench::at(server.path());
    let listener = UnixListener::bind(path.path()).unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let stream = UnixStream::connect(server.path()).unwrap();
        let (mut commands, mut replies) = (Frames::new(16), Frames::new(16));
        loop {
            let mut fds = [
                PollFd::new(&client, PollFlags::IN),
                PollFd::new(&stream, PollFlags::IN),
            ];
            poll(&mut fds, None).unwrap();
            let ready = fds.map(|fd| !fd.revents().is_empty());
            if ready[0] {
                match commands.receive(client.as_fd(), payload_len) {
                    Ok(Some(frame)) => {
                        pass(&stream, &frame.header, &frame.payload, &frame.attached)
                    }
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
            if ready[1]
                && let Ok(Some(frame)) = replies.receive(stream.as_fd(), payload_len)
            {
                let header: Header = zerocopy::transmute!(frame.header);
                if header.command == message::command::REGION_READ {
                    std::thread::sleep(pause);
                }
                pass(&client, &frame.header, &frame.payload, &frame.attached);
            }
        }
        drop(bench);
    })
}

#[test]
fn one_that_is_always_just_in_time_runs_out_of_patience() {
    let path = SocketPath::new();
    let thread = slow_server(&path, Duration::from_millis(50));
    let times = Times {
        request: LONG,
        requests: Duration::from_secs(1),
        ..Times::default()
    };
    let function = VfioUserFunction::with_times(path.path(), times).unwrap();
    let window = function.registers(0, 0, 4).unwrap();
    let register: Reg<u32, ReadWrite> = window.register(0).unwrap();
    let mut reads = 0;
    while register.read() == 0 {
        reads += 1;
        assert!(reads < 200, "it may go on for ever");
    }
    // From now on nothing is waited for.
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(register.read(), u32::MAX);
    }
    assert!(start.elapsed() < LONG / 4);
    drop(function);
    thread.join().unwrap();
}

#[test]
fn one_that_reads_nothing_holds_writers_up_for_a_moment_only() {
    let path = SocketPath::new();
    let server = SocketPath::new();
    let bench = Bench::at(server.path());
    let between = Between::new(&path, &server, u32::MAX, Deed::Nothing);
    let mut function = VfioUserFunction::with_times(path.path(), IMPATIENT).unwrap();
    let window = function.registers(0, 0, 4).unwrap();
    let register: Reg<u32, ReadWrite> = window.register(0).unwrap();
    register.write(1);
    assert_eq!(register.read(), 1);
    between.deafen();
    let start = Instant::now();
    for number in 0..100_000u32 {
        register.write(number);
    }
    assert!(start.elapsed() < LONG / 4, "{:?}", start.elapsed());
    assert_eq!(register.read(), u32::MAX);
    let error = function.reset().unwrap_err().to_string();
    assert!(error.contains("read messages too late"), "{error}");
    between.finish();
    drop(bench);
}
