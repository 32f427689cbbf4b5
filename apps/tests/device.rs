//! `vvu device` as a process: what it refuses, how it starts and ends, and what a driver in
//! another process finds.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vvu::device::{Device, Options, Rule};
use vvu::vfio_user::VfioUserFunction;

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(20);

const MIB: u64 = 1 << 20;

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "it did not come to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-device-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A file of this length.
    fn file(&self, name: &str, len: u64) -> String {
        let path = self.join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A `vvu` that runs until it is told to stop, or is killed with the test.
struct Program {
    child: Child,
    said: PathBuf,
}

impl Program {
    fn start(scratch: &Scratch, args: &[&str]) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let said = scratch.0.join(format!("said-{number}"));
        let log = File::create(&said).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vvu"))
            .args(args)
            .stdin(Stdio::null())
            .env_remove("RUST_LOG")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, said }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    /// The same, when it is ready.
    fn ready(scratch: &Scratch, args: &[&str]) -> Self {
        let mut this = Self::start(scratch, args);
        until("ready", || {
            let ended = this.child.try_wait().unwrap();
            assert!(ended.is_none(), "{args:?}: {}", this.said());
            this.said().contains("ready")
        });
        this
    }

    /// Waits for its end; its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut status = None;
        until("the end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (status.unwrap().code(), self.said())
    }

    fn stop(self, signal: Signal) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.end()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line, all of `parts` in it.
fn refused_with(scratch: &Scratch, args: &[&str], parts: &[&str]) {
    let args = [&["device"], args].concat();
    let (code, said) = Program::start(scratch, &args).end();
    assert_eq!(code, Some(1), "{args:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{args:?} should say {part:?}: {said}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let scratch = Scratch::new("refused");
    let (vfio, vhost) = (scratch.join("a.vfio"), scratch.join("a.vhost"));
    let sockets = ["--vfio-user", &vfio, "--vhost-user", &vhost];
    let with = |more: &[&'static str]| [&sockets[..], more].concat();
    refused_with(
        &scratch,
        &with(&["--window", "3M"]),
        &["3145728", "powers of two"],
    );
    refused_with(&scratch, &with(&["--max-queues", "1000"]), &["1000", "256"]);
    refused_with(
        &scratch,
        &with(&["--peer-memory", "/no/such"]),
        &["/no/such"],
    );
    let memory = scratch.file("memory", 3 * MIB);
    let small = [&sockets[..], &["--window", "2M", "--peer-memory", &memory]].concat();
    refused_with(&scratch, &small, &["0x300000", "0x200000"]);
    refused_with(
        &scratch,
        &["--vfio-user", &scratch.join("no/a"), "--vhost-user", &vhost],
        &["vfio-user", &scratch.join("no")],
    );
    let _live = UnixListener::bind(&vfio).unwrap();
    refused_with(&scratch, &sockets, &[&vfio, "in use"]);
    for bad in [
        &["--vhost-user", "/a,clinet", "--vfio-user", "/b"][..],
        &["--vhost-user", "/a", "--vfio-user", "/b", "--uuid", "7"],
        &["--vhost-user", "/a", "--vfio-user", "/b", "--window", "big"],
        &["--vhost-user", "/a"],
    ] {
        let (code, said) = Program::start(&scratch, &[&["device"], bad].concat()).end();
        assert_eq!(code, Some(2), "{said}");
    }
}

#[test]
fn it_stops_clean_and_sums_up() {
    let scratch = Scratch::new("stop");
    let (vfio, vhost) = (scratch.join("a.vfio"), scratch.join("a.vhost"));
    let args = ["device", "--vfio-user", &vfio, "--vhost-user", &vhost];
    for signal in [Signal::TERM, Signal::INT] {
        let device = Program::ready(&scratch, &args);
        assert!(device.said().contains("--peer-memory"), "{}", device.said());
        // With a client that would stay.
        let function = VfioUserFunction::connect(Path::new(&vfio)).unwrap();
        let (code, said) = device.stop(signal);
        assert_eq!(code, Some(0), "{said}");
        let last = said.trim_end().lines().last().unwrap();
        assert!(last.contains("1 clients"), "{said}");
        assert!(!Path::new(&vfio).exists() && !Path::new(&vhost).exists());
        drop(function);
    }
    // A killed one leaves its sockets, which the next one replaces.
    drop(Program::ready(&scratch, &args));
    assert!(Path::new(&vfio).exists() && Path::new(&vhost).exists());
    let device = Program::ready(&scratch, &args);
    refused_with(&scratch, &args[1..], &["in use"]);
    assert_eq!(device.stop(Signal::TERM).0, Some(0));
}

/// Opens the function and says what it is.
fn identity(scratch: &Scratch, more: &[&str]) -> vvu::device::Identity {
    let (vfio, vhost) = (scratch.join("i.vfio"), scratch.join("i.vhost"));
    let args = ["device", "--vfio-user", &vfio, "--vhost-user", &vhost];
    let program = Program::ready(scratch, &[&args, more].concat());
    let function = VfioUserFunction::connect(Path::new(&vfio)).unwrap();
    let device = Device::open(Box::new(function), Options::default()).unwrap();
    let identity = device.identity().clone();
    drop(device);
    assert_eq!(program.stop(Signal::TERM).0, Some(0));
    identity
}

#[test]
fn options_are_what_a_driver_finds() {
    let scratch = Scratch::new("options");
    let memory = scratch.file("memory", 5 * MIB);
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let found = identity(
        &scratch,
        &[
            "--uuid",
            uuid,
            "--max-queues",
            "6",
            "--peer-memory",
            &memory,
        ],
    );
    assert_eq!(found.uuid[..3], [0x00, 0x11, 0x22]);
    assert_eq!(
        (found.rings, found.window, found.rule),
        (6, 8 * MIB, Rule::Told)
    );
    let found = identity(&scratch, &["--dialect", "crosvm", "--window", "64M"]);
    assert_eq!((found.rings, found.rule), (16, Rule::Packed));
    assert_eq!(found.window, 64 * MIB);
    for (dialect, id) in [("prototype", 0x1058), ("port2022", 0x106b)] {
        let found = identity(&scratch, &["--dialect", dialect]);
        assert_eq!((found.pci_device, found.rule), (id, Rule::Whole));
    }
}

/// The three processes of a tunnel: a function, its driver, and guests now and then.
struct Tunnel<'a> {
    scratch: &'a Scratch,
    sockets: [String; 2],
    memory: String,
}

impl<'a> Tunnel<'a> {
    fn new(scratch: &'a Scratch) -> Self {
        Self {
            sockets: ["t.vfio", "t.vhost"].map(|name| scratch.join(name)),
            memory: scratch.file("memory", 16 * MIB),
            scratch,
        }
    }

    fn device(&self) -> Program {
        let [vfio, vhost] = &self.sockets;
        let args = ["device", "--vfio-user", vfio, "--vhost-user", vhost];
        let args = [&args[..], &["--peer-memory", &self.memory]].concat();
        Program::ready(self.scratch, &args)
    }

    fn net(&self) -> Program {
        let port = format!("vfio-user:{}", self.sockets[0]);
        let args = ["net", "--port", &port, "--port", "echo:"];
        Program::ready(self.scratch, &args)
    }

    fn guest(&self, job: &[&str]) -> Program {
        let [_, vhost] = &self.sockets;
        let args = ["guest", "--socket", vhost, "--memory-file", &self.memory];
        let args = [&args[..], &["--timeout", "20"], job].concat();
        Program::start(self.scratch, &args)
    }

    /// Frames of all sizes come back, every one of them as it was sent.
    fn works(&self) {
        let (code, said) = self.guest(&["verify", "--seconds", "1"]).end();
        assert_eq!(code, Some(0), "{said}");
    }
}

/// File descriptors of a process.
fn descriptors(program: &Program) -> usize {
    let path = format!("/proc/{}/fd", program.child.id());
    std::fs::read_dir(path).unwrap().count()
}

/// Processor time of a process so far, in ticks of a hundredth of a second.
fn ticks(program: &Program) -> u64 {
    let path = format!("/proc/{}/stat", program.child.id());
    let text = std::fs::read_to_string(path).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // utime and stime; the state is field 3 of the file and 0 here.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn each_of_the_three_is_killed_and_comes_back() {
    let scratch = Scratch::new("tunnel");
    let tunnel = Tunnel::new(&scratch);
    let mut device = tunnel.device();
    let mut net = tunnel.net();
    // As they are with nobody connected.
    let (of_device, of_net) = (descriptors(&device), descriptors(&net));
    tunnel.works();
    let quiet = |program: &Program, count: usize| {
        until("nothing is left open", || descriptors(program) == count);
    };
    for round in 1..=2 {
        let guest = tunnel.guest(&["blast", "--seconds", "60"]);
        until("traffic", || guest.said().contains("connected"));
        drop(guest);
        quiet(&device, of_device);
        quiet(&net, of_net);
        tunnel.works();

        let guest = tunnel.guest(&["blast", "--seconds", "60"]);
        until("traffic", || guest.said().contains("connected"));
        drop(net);
        // The function was reset, which its front-end sees.
        let (code, said) = guest.end();
        assert_eq!(code, Some(3), "{said}");
        net = tunnel.net();
        tunnel.works();
        quiet(&device, of_device);

        let guest = tunnel.guest(&["blast", "--seconds", "60"]);
        until("traffic", || guest.said().contains("connected"));
        drop(device);
        assert_eq!(guest.end().0, Some(3));
        until("noticed", || net.said().contains("the function is gone"));
        device = tunnel.device();
        until("found again", || {
            net.said().matches("brought up again").count() >= 1
        });
        tunnel.works();
        quiet(&net, of_net);
        assert!(
            !net.said().contains("panicked"),
            "round {round}: {}",
            net.said()
        );
    }
    // Nobody has anything to do.
    let before = ticks(&device);
    std::thread::sleep(Duration::from_secs(1));
    let busy = ticks(&device) - before;
    assert!(busy < 20, "{busy} ticks in an idle second");
    for program in [net, device] {
        let (code, said) = program.stop(Signal::TERM);
        assert_eq!(code, Some(0), "{said}");
    }
    assert!(!Path::new(&tunnel.sockets[0]).exists() && !Path::new(&tunnel.sockets[1]).exists());
}

#[test]
fn a_server_that_hangs_is_given_up_and_found_again() {
    let scratch = Scratch::new("hang");
    let tunnel = Tunnel::new(&scratch);
    let device = tunnel.device();
    let net = tunnel.net();
    let guest = tunnel.guest(&["blast", "--seconds", "60", "--no-event-idx"]);
    until("traffic", || guest.said().contains("connected"));
    let signal = |signal| kill_process(Pid::from_child(&device.child), signal).unwrap();
    signal(Signal::STOP);
    until("noticed", || net.said().contains("the function is gone"));
    signal(Signal::CONT);
    until("found again", || net.said().contains("brought up again"));
    drop(guest);
    tunnel.works();
    assert_eq!(net.stop(Signal::TERM).0, Some(0));
    assert_eq!(device.stop(Signal::TERM).0, Some(0));
}

#[test]
fn memory_that_is_not_the_windows_is_refused_with_both_files() {
    let scratch = Scratch::new("other-memory");
    let tunnel = Tunnel::new(&scratch);
    let device = tunnel.device();
    let _net = tunnel.net();
    let [_, vhost] = &tunnel.sockets;
    let args = ["guest", "--socket", vhost, "verify", "--seconds", "1"];
    let (code, said) = Program::start(&scratch, &args).end();
    assert_eq!(code, Some(3), "{said}");
    tunnel.works();
    let (_, said) = device.stop(Signal::TERM);
    assert!(said.contains("--peer-memory"), "{said}");
}
