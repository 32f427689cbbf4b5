//! Processes that tests start, and what they say.
#![allow(clippy::unwrap_used, dead_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Nothing here takes that long; a loaded machine may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for sockets, of nobody else's.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-guest-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with its value.
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub(crate) fn new(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        Self {
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The next line that it says.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Waits for the end; exit code and output.
    pub(crate) fn end(mut self) -> (i32, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).unwrap();
        (status.code().expect("no signal ended it"), said)
    }

    /// The same, and the report that the job gave in JSON.
    pub(crate) fn report(self) -> (i32, Value) {
        let (code, said) = self.end();
        let last = said.lines().last().expect("a report");
        let report: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {said}"));
        assert_eq!(report["event"], "report", "{said}");
        assert_eq!(report["ok"], code == 0, "{said}");
        (code, report)
    }
}

pub(crate) fn vvu(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vvu"));
    command
        .args(args)
        .stdin(Stdio::null())
        .env_remove("RUST_LOG");
    command
}

pub(crate) fn until_listening(path: &str) {
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(path).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {path}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a job.
pub(crate) fn start(socket: &str, job: &[&str]) -> Running {
    let mut args = vec![
        "-q",
        "guest",
        "--socket",
        socket,
        "--json",
        "--timeout",
        "30",
    ];
    args.extend(job);
    Running::new(&mut vvu(&args))
}

/// Does a job that must succeed.
pub(crate) fn job(socket: &str, job: &[&str]) -> Value {
    let (code, report) = start(socket, job).report();
    assert_eq!(code, 0, "{job:?}: {report}");
    report
}

/// Runs to the end with whatever output.
pub(crate) fn output(args: &[&str]) -> Output {
    vvu(args).output().unwrap()
}

pub(crate) fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// How many files a process has open.
pub(crate) fn open_files(of: &Running) -> usize {
    let folder = format!("/proc/{}/fd", of.child.id());
    std::fs::read_dir(Path::new(&folder)).unwrap().count()
}
