//! `vvu net` between a TAP and a packet socket, and between files, with what it captures.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use pcap_parser::{Block, PcapBlockOwned, PcapError};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `vvu net`.
struct Net(Child);

impl Net {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vvu"))
            .arg("net")
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("ready") {
            let read = log.read_line(&mut said).unwrap();
            assert!(read > 0, "vvu net {args:?}: {said}");
        }
        // Somebody reads on, or it would wait.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Ends it, and returns what it printed.
    fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let mut printed = String::new();
        let output = self.0.stdout.as_mut().unwrap();
        output.read_to_string(&mut printed).unwrap();
        assert!(self.0.wait().unwrap().success(), "{printed}");
        printed
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
}

/// Flags (0 without) and bytes.
type Frame = (u32, Vec<u8>);

/// Frames of a file, and what its statistics say.
fn frames(path: &str) -> (Vec<Frame>, Option<(u64, u64)>) {
    let file = std::fs::File::open(path).unwrap();
    let mut reader = pcap_parser::create_reader(1 << 20, file).unwrap();
    let (mut frames, mut counts) = (Vec::new(), None);
    loop {
        match reader.next() {
            Ok((len, block)) => {
                let number = |value: &[u8]| {
                    let mut bytes = [0; 8];
                    bytes[..value.len()].copy_from_slice(value);
                    u64::from_le_bytes(bytes)
                };
                if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = &block {
                    let flags = packet.options.iter().find(|option| option.code.0 == 2);
                    let flags = flags.map_or(0, |option| number(&option.value) as u32);
                    let bytes = packet.data[..packet.caplen as usize].to_vec();
                    frames.push((flags, bytes));
                }
                if let PcapBlockOwned::NG(Block::InterfaceStatistics(block)) = &block {
                    counts = Some((
                        number(&block.options[0].value),
                        number(&block.options[1].value),
                    ));
                }
                reader.consume(len);
            }
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            // It may still be written.
            Err(PcapError::Eof | PcapError::UnexpectedEof) => return (frames, counts),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// What other programs make of a file, if they are there.
fn others_read(path: &str) {
    for program in ["capinfos", "tshark -r", "tcpdump -nr"] {
        let mut words = program.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        match command.args(words).arg(path).output() {
            Ok(output) => assert!(output.status.success(), "{program}: {output:?}"),
            Err(_) => println!("{program} is not there"),
        }
    }
}

#[test]
fn captures_begin_and_end_when_a_signal_asks() {
    let scratch = Scratch::new("asked");
    let file = scratch.join("a.pcapng");
    let net = Net::start(&[
        "--port",
        "gen:size=60,pps=2000",
        "--port",
        "null:",
        "--pcap",
        &format!("1={file},paused"),
    ]);
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    assert!(!Path::new(&file).exists());
    for _ in 0..2 {
        net.signal(Signal::USR1);
        until("a capture begins", &|| {
            Path::new(&file).exists() && !frames(&file).0.is_empty()
        });
        net.signal(Signal::USR1);
        until("it ends", &|| frames(&file).1.is_some());
        let len = || std::fs::metadata(&file).unwrap().len();
        let before = len();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(len(), before, "it goes on");
        std::fs::remove_file(&file).unwrap();
    }
    net.stop();
}

#[test]
fn a_file_is_played_into_another() {
    let scratch = Scratch::new("files");
    let (input, output) = (scratch.join("in.pcap"), scratch.join("out.pcapng"));
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    let sent: Vec<Vec<u8>> = (0..1000u32)
        .map(|number| {
            let len = 60 + number as usize % 1455;
            let mut frame: Vec<u8> = (0..len).map(|at| (at as u32 * number) as u8).collect();
            frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
            frame
        })
        .collect();
    for frame in &sent {
        let len = (frame.len() as u32).to_le_bytes();
        file.extend([&[0; 8][..], &len, &len, frame].concat());
    }
    std::fs::write(&input, file).unwrap();
    let net = Net::start(&[
        "--port",
        &format!("pcap:in={input}"),
        "--port",
        &format!("pcap:out={output}"),
    ]);
    let start = Instant::now();
    while frames(&output).0.len() < sent.len() {
        assert!(start.elapsed() < PATIENCE, "{}", frames(&output).0.len());
        std::thread::sleep(Duration::from_millis(20));
    }
    net.stop();
    let (got, counts) = frames(&output);
    assert!(got.into_iter().map(|(_, frame)| frame).eq(sent));
    assert_eq!(counts, Some((1000, 0)));
    others_read(&output);
}

/// Moves a thread into a network namespace of its own.
fn leave() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces take root".into());
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("no network namespace: {errno}"))
}

/// A UDP and a TCP exchange through a TAP, the program and a packet socket, and what the program
/// wrote down of it.
#[test]
fn tap_and_packet_socket_with_a_capture() {
    if let Err(why) = leave() {
        assert!(std::env::var_os("CI").is_none(), "skipped in CI: {why}");
        println!("SKIPPED: {why}");
        return;
    }
    let scratch = Scratch::new("capture");
    let capture = scratch.join("a.pcapng");
    run("ip link add v0 type veth peer name v1");
    let net = Net::start(&[
        "--port",
        "tap:t0,mtu=1400",
        "--port",
        "packet:v1",
        "--pcap",
        &format!("tap:t0={capture}"),
        "--stats",
        "1",
    ]);
    run("ip address add 10.0.0.1/24 dev t0");
    run("ip link set t0 up");
    // The other end of the veth is in a namespace of a thread.
    let (there, ready) = mpsc::channel();
    let (moved, go) = mpsc::channel();
    let (address, told) = mpsc::channel();
    let other = std::thread::spawn(move || {
        leave().unwrap();
        there.send(rustix::thread::gettid()).unwrap();
        go.recv().unwrap();
        run("ip address add 10.0.0.2/24 dev v0");
        run("ip link set v0 mtu 1400 up");
        let socket = UdpSocket::bind("10.0.0.2:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let listener = TcpListener::bind("10.0.0.2:0").unwrap();
        let addresses = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
        address.send(addresses).unwrap();
        let mut bytes = [0; 2000];
        for _ in 0..10 {
            let (len, from) = socket.recv_from(&mut bytes).unwrap();
            socket
                .send_to(&[&b"echo "[..], &bytes[..len]].concat(), from)
                .unwrap();
        }
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    let thread = ready.recv_timeout(PATIENCE).unwrap();
    run(&format!("ip link set v0 netns {thread}"));
    moved.send(()).unwrap();
    let (datagrams, stream) = told.recv_timeout(PATIENCE).unwrap();
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for number in 0..10 {
        let said = format!("datagram {number}");
        socket.send_to(said.as_bytes(), datagrams).unwrap();
        let mut bytes = [0; 100];
        let len = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], format!("echo {said}").as_bytes());
    }
    let much: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 3) as u8).collect();
    let mut out = TcpStream::connect(stream).unwrap();
    out.write_all(&much).unwrap();
    drop(out);
    assert!(other.join().unwrap() == much);
    let printed = net.stop();
    assert!(
        printed.contains("tap:t0") && printed.contains("packet:v1"),
        "{printed}"
    );

    let (frames, counts) = frames(&capture);
    assert_eq!(counts, Some((frames.len() as u64, 0)));
    let with = |what: &str| -> Vec<u32> {
        let what = what.as_bytes();
        let found = frames.iter().filter(|(_, frame)| frame.ends_with(what));
        found.map(|(flags, _)| *flags).collect()
    };
    for number in 0..10 {
        // From the port, then to it: both end alike.
        assert_eq!(with(&format!("datagram {number}")), [1, 2]);
        assert_eq!(with(&format!("echo datagram {number}")), [2]);
    }
    // Offloaded frames are captured as they are.
    assert!(
        frames
            .iter()
            .any(|(flags, frame)| *flags == 1 && frame.len() > 1500)
    );
    others_read(&capture);
    assert!(Path::new(&capture).exists());
}
