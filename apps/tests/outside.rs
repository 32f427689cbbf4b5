//! What goes wrong behind a disk: its filesystem is full, its server is killed, or stops. The guest
//! reads what happened, the log names the disk, and the process goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Running, Scratch, job, number, start, until_listening};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// Says that something is not tested here, which must not happen in CI.
fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `vvu blk` or `vvu scsi` with a disk, its log in a file.
struct Served {
    _running: Running,
    socket: String,
    log: String,
}

impl Served {
    /// `wrapped` comes before the program, and may run it in another surrounding.
    fn new(scratch: &Scratch, mut wrapped: Command, kind: &str, disk: &str) -> Self {
        match kind {
            "blk" => wrapped.args([kind, "--disk", disk]),
            _ => wrapped.args([kind, "--lun", &format!("0:0={disk}")]),
        };
        Self::with(scratch, wrapped)
    }

    /// With everything but its port.
    fn with(scratch: &Scratch, mut command: Command) -> Self {
        let (socket, log) = (scratch.path("sock"), scratch.path("log"));
        let _ = std::fs::remove_file(&socket);
        command.args(["--port", &format!("unix:{socket},queues=2")]);
        let stderr = File::create(&log).unwrap();
        let running = Running::new(command.stdin(Stdio::null()).stderr(stderr));
        until_listening(&socket);
        Self {
            _running: running,
            socket,
            log,
        }
    }

    #[track_caller]
    fn says(&self, words: &[&str]) {
        says(&self.log, words);
    }
}

/// Waits until a line of the log has all these words.
#[track_caller]
fn says(log: &str, words: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = std::fs::read_to_string(log).unwrap();
        let mut lines = log.lines();
        if lines.any(|line| words.iter().all(|word| line.contains(word))) {
            return;
        }
        assert!(Instant::now() < deadline, "nothing of {words:?}: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn vvu() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vvu"));
    command.env_remove("RUST_LOG");
    command
}

/// The program where a filesystem of so many bytes is mounted at `folder`, which nobody else sees.
fn in_small_filesystem(folder: &str, bytes: u64) -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script = "mount -t tmpfs -o size=$1 tmpfs \"$2\" && shift 2 && exec \"$@\"";
    command.args(["--mount", "--", "sh", "-c", script, "sh"]);
    command.args([&bytes.to_string(), folder]);
    command
}

#[test]
fn a_full_filesystem_is_told_to_the_guest() {
    let scratch = Scratch::new("full");
    let folder = scratch.path("small");
    std::fs::create_dir(&folder).unwrap();
    let small = || in_small_filesystem(&folder, 8 * MIB);
    if !small().arg("true").status().is_ok_and(|s| s.success()) {
        return skipped("no filesystem can be mounted here (unshare --mount)");
    }
    let disk = format!("file:{folder}/image,size=32M");
    for (kind, refusal) in [("blk", "status 1 (I/O error)"), ("scsi", "sense 7/27/07")] {
        let mut wrapped = small();
        wrapped.arg(env!("CARGO_BIN_EXE_vvu"));
        let served = Served::new(&scratch, wrapped, kind, &disk);
        let write = [kind, "write", "--whole", "--size", "64K"];
        let (code, report) = start(&served.socket, &write).report();
        assert_eq!(code, 1, "{report}");
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains(refusal), "{reason}");
        let (failed, bytes) = (&report["disk"]["failed"], &report["disk"]["bytes"]);
        assert!(number(failed) >= 24 * MIB / 65536, "{report}");
        assert!(number(bytes) >= 6 * MIB, "{report}");
        served.says(&[&format!("{folder}/image"), "no space left"]);
        // What is there is read, and what is given back can be written again.
        job(&served.socket, &[kind, "read", "--seconds", "1"]);
        job(&served.socket, &[kind, "discard"]);
        let some = ["--length", "4M"];
        job(&served.socket, &[&write[..], &some].concat());
    }
}

#[test]
fn a_unit_of_a_list_comes_when_its_file_is_free() {
    let scratch = Scratch::new("list");
    let (image, list) = (scratch.path("image"), scratch.path("units"));
    let put = |line: String| {
        std::fs::write(scratch.path("new"), line).unwrap();
        std::fs::rename(scratch.path("new"), &list).unwrap();
    };
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let holder = File::open(&image).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    put(String::new());
    let mut wrapped = vvu();
    wrapped.args(["scsi", "--luns", &list, "--lun", "0:7=mem:1M"]);
    let served = Served::with(&scratch, wrapped);
    put(format!("0:0=file:{image}"));
    served.says(&["units stay", &image, "somebody else has it locked"]);
    drop(holder);
    served.says(&["unit added", "lun=0", &image]);
    job(&served.socket, &["scsi", "verify", "--count", "100"]);
    // It moves, while its old place may still have the file for a moment.
    put(format!("0:1=file:{image}"));
    served.says(&["unit removed", "lun=0", &image]);
    served.says(&["unit added", "lun=1", &image]);
    let verify = ["scsi", "--lun", "1", "verify", "--count", "100"];
    job(&served.socket, &verify);
}

#[test]
fn who_waits_for_a_file_can_be_told_to_end() {
    let scratch = Scratch::new("waiting");
    let (image, log) = (scratch.path("image"), scratch.path("log"));
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let holder = File::open(&image).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    let port = format!("unix:{}", scratch.path("sock"));
    let (disk, lun) = (format!("file:{image}"), format!("0:0=file:{image}"));
    for arguments in [["blk", "--disk", &disk], ["scsi", "--lun", &lun]] {
        let mut command = vvu();
        command.args(arguments).args(["--port", &port]);
        let stderr = File::create(&log).unwrap();
        let mut running = Running::new(command.stdin(Stdio::null()).stderr(stderr));
        says(&log, &[&image, "somebody else has it locked: waiting"]);
        running.signal(Signal::TERM);
        let status = running.child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
    }
}

/// qemu-nbd with a file of 16 MiB behind a socket.
struct Server {
    arguments: [String; 2],
    running: Running,
}

impl Server {
    fn new(scratch: &Scratch) -> Option<Self> {
        const PROGRAM: &str = "qemu-nbd";
        let there = Command::new(PROGRAM)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if there.is_err() {
            skipped("qemu-nbd is not installed (Debian's package qemu-utils)");
            return None;
        }
        let arguments = [scratch.path("nbd"), scratch.path("image")];
        File::create(&arguments[1])
            .unwrap()
            .set_len(16 * MIB)
            .unwrap();
        Some(Self {
            running: Self::run(&arguments),
            arguments,
        })
    }

    fn run([socket, image]: &[String; 2]) -> Running {
        let mut command = Command::new("qemu-nbd");
        command
            .args(["--persistent", "--shared=16", "--format=raw"])
            .args(["--discard=unmap", "--socket", socket, image])
            .stderr(Stdio::null());
        let running = Running::new(&mut command);
        until_listening(socket);
        running
    }

    /// Killed, and started again.
    fn again(&mut self) {
        self.running.child.kill().unwrap();
        self.running.child.wait().unwrap();
        self.running = Self::run(&self.arguments);
    }

    fn disk(&self, timeout: u64) -> String {
        format!("nbd:{},timeout={timeout}", self.arguments[0])
    }
}

#[test]
fn a_server_that_is_killed_or_stalls_for_a_moment_is_a_slow_disk() {
    let scratch = Scratch::new("nbd-killed");
    let Some(mut server) = Server::new(&scratch) else {
        return;
    };
    for kind in ["blk", "scsi"] {
        let served = Served::new(&scratch, vvu(), kind, &server.disk(20));
        let verify = [
            kind,
            "verify",
            "--seconds",
            "4",
            "--queues",
            "2",
            "--progress",
        ];
        let mut job = start(&served.socket, &verify);
        assert!(job.line().contains("progress"));
        server.again();
        assert!(job.line().contains("progress"));
        server.running.signal(Signal::STOP);
        assert!(job.line().contains("progress"));
        server.running.signal(Signal::CONT);
        let (code, report) = job.report();
        assert_eq!(code, 0, "{kind}: {report}");
        assert!(number(&report["verify_disk"]["writes"]) > 0, "{report}");
        let name = &scratch.path("nbd");
        served.says(&[name, "no connection to the server"]);
        served.says(&[name, "the server is back"]);
    }
}

#[test]
fn a_server_that_stops_ends_requests_in_time() {
    let scratch = Scratch::new("nbd-stopped");
    let Some(server) = Server::new(&scratch) else {
        return;
    };
    for (kind, refusal) in [("blk", "status 1 (I/O error)"), ("scsi", "sense 4/08/01")] {
        let served = Served::new(&scratch, vvu(), kind, &server.disk(2));
        let write = [kind, "write", "--seconds", "4", "--progress"];
        let mut load = start(&served.socket, &write);
        assert!(load.line().contains("progress"));
        server.running.signal(Signal::STOP);
        // It would end with another code if nothing came back for long.
        let (code, report) = load.report();
        assert_eq!(code, 1, "{kind}: {report}");
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains(refusal), "{reason}");
        served.says(&[&scratch.path("nbd"), "no connection to the server"]);
        server.running.signal(Signal::CONT);
        // The process is as before, and so is the disk.
        job(&served.socket, &[kind, "verify", "--count", "500"]);
    }
}

#[test]
fn buffers_that_may_not_be_registered_are_used_all_the_same() {
    let scratch = Scratch::new("memlock");
    let image = scratch.path("image");
    let flags = OFlags::DIRECT | OFlags::CREATE | OFlags::RDWR;
    if rustix::fs::open(&image, flags, Mode::RUSR | Mode::WUSR).is_err() {
        return skipped("no direct I/O here");
    }
    let disk = format!("file:{image},size=16M,direct");
    for (allowed, word) in [(false, "cannot be registered"), (true, "are registered")] {
        std::fs::remove_file(&image).unwrap();
        let mut wrapped = Command::new("prlimit");
        if !allowed {
            // Enough for the rings of queues, which count on some kernels, and for no buffers.
            let limit = MIB;
            wrapped.arg(format!("--memlock={limit}:{limit}"));
        }
        if !allowed && is_root() {
            // Whom no limit holds otherwise.
            wrapped.args(["setpriv", "--bounding-set=-ipc_lock"]);
        }
        wrapped.args([env!("CARGO_BIN_EXE_vvu"), "-vv"]);
        let served = Served::new(&scratch, wrapped, "blk", &disk);
        // Cut anywhere, so that most of it goes through buffers.
        let verify = ["blk", "verify", "--count", "1000", "--queues", "2"];
        job(&served.socket, &verify);
        served.says(&[&image, word]);
    }
}
