//! What a person sees who gives `vvu` something it cannot use: one clear line that says what to
//! do, and an exit code that is not zero.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn vvu(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vvu"));
    command
        .args(args)
        .stdin(Stdio::null())
        .env_remove("RUST_LOG");
    command
}

/// Runs to the end and returns the exit code and what was said on standard error.
fn refuse(args: &[&str]) -> (i32, String) {
    let mut child = vvu(args)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("vvu {args:?} goes on instead of refusing");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    (status.code().unwrap(), said)
}

/// One line, all of `parts` in it, exit code 1.
fn refused_with(args: &[&str], parts: &[&str]) {
    let (code, said) = refuse(args);
    assert_eq!(code, 1, "{args:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    for part in parts {
        assert!(
            said.contains(part),
            "{args:?} should mention {part:?}: {said}"
        );
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-cli-{name}-{}", std::process::id()));
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

#[test]
fn malformed_ports_name_the_argument_and_the_reason() {
    for (port, reason) in [
        ("eth0", "vvu:BDF"),
        ("unix:/run/a,clinet", "clinet"),
        ("vvu:05", "vvu:05"),
        ("vfio-user:", "the path"),
        ("gen:size=1", "60 to 9018"),
    ] {
        let (code, said) = refuse(&["net", "--port", port]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("--port") && said.contains(reason), "{said}");
    }
    let (code, said) = refuse(&["net"]);
    assert_eq!(code, 2);
    assert!(said.contains("--port"), "{said}");
}

#[test]
fn there_is_no_such_function() {
    for args in [
        &["info", "0fff:1f:1e.7"][..],
        &["bind", "0fff:1f:1e.7"],
        &["bind", "--dry-run", "0fff:1f:1e.7"],
        &["unbind", "0fff:1f:1e.7"],
        &["net", "--port", "vvu:0fff:1f:1e.7"],
    ] {
        refused_with(args, &["0fff:1f:1e.7", "no PCI function"]);
    }
}

#[test]
fn a_function_that_nobody_serves_is_named_with_its_server() {
    let scratch = Scratch::new("no-server");
    let path = scratch.join("a.vfio");
    refused_with(
        &["net", "--port", &format!("vfio-user:{path}")],
        &[&path, "No such file", "vvu device"],
    );
}

#[test]
fn a_socket_in_use_is_not_taken_over() {
    let scratch = Scratch::new("in-use");
    let path = scratch.join("a.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    refused_with(
        &["net", "--port", &format!("unix:{path}")],
        &[&path, "in use"],
    );
    assert!(Path::new(&path).exists());
}

#[test]
fn a_directory_that_is_missing_is_named() {
    let scratch = Scratch::new("no-dir");
    let path = scratch.join("no/such/a.sock");
    refused_with(
        &["net", "--port", &format!("unix:{path}")],
        &[&scratch.join("no/such")],
    );
}

#[test]
fn a_file_that_is_no_socket_is_kept() {
    let scratch = Scratch::new("file");
    let path = scratch.join("a.sock");
    std::fs::write(&path, "precious").unwrap();
    refused_with(
        &["net", "--port", &format!("unix:{path}")],
        &[&path, "not a socket"],
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn the_same_file_as_two_disks_is_refused() {
    let scratch = Scratch::new("twice");
    let image = scratch.join("image");
    let disk = format!("file:{image},size=1M");
    let [a, b] = ["a", "b"].map(|name| format!("unix:{}", scratch.join(name)));
    let ports = ["--port", &a, "--port", &b];
    let blk = ["blk", "--disk", &disk, "--disk", &disk];
    refused_with(&[&blk[..], &ports[..]].concat(), &[&image, "same file"]);
    let [first, second] = [0, 1].map(|lun| format!("0:{lun}={disk}"));
    let scsi = ["scsi", "--lun", &first, "--lun", &second];
    refused_with(&[&scsi[..], &ports[..]].concat(), &[&image, "same file"]);
    assert!(!Path::new(&image).exists());
}

#[test]
fn a_cpu_that_is_missing_is_named() {
    refused_with(
        &["net", "--cores", "4000", "--port", "null:"],
        &["4000", "CPU"],
    );
}

#[test]
fn the_same_port_twice_is_refused() {
    refused_with(
        &[
            "net",
            "--port",
            "unix:/tmp/vvu-twice.sock",
            "--port",
            "unix:/tmp/vvu-twice.sock",
        ],
        &["unix:/tmp/vvu-twice.sock", "twice"],
    );
}

/// Starts `vvu net` on a socket.
fn serve(path: &str) -> std::process::Child {
    vvu(&["net", "--port", &format!("unix:{path}")])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Starts `vvu net` on a socket, waits until it listens, stops it with `signal`.
fn stops_clean(signal: rustix::process::Signal) {
    let scratch = Scratch::new(&format!("stop-{}", signal.as_raw()));
    let path = scratch.join("a.sock");
    let mut child = serve(&path);
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::os::unix::net::UnixStream::connect(&path).is_err() {
        assert!(Instant::now() < deadline, "vvu does not listen at {path}");
        std::thread::sleep(Duration::from_millis(10));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "vvu does not stop");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{status}");
    assert!(
        !Path::new(&path).exists(),
        "the socket's path was left behind"
    );
}

#[test]
fn stops_clean_on_sigterm_and_sigint() {
    stops_clean(rustix::process::Signal::TERM);
    stops_clean(rustix::process::Signal::INT);
}

#[test]
fn a_stale_socket_is_replaced() {
    let scratch = Scratch::new("stale");
    let path = scratch.join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(Path::new(&path).exists());
    let mut child = serve(&path);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut connected = false;
    while !connected && Instant::now() < deadline {
        connected = std::os::unix::net::UnixStream::connect(&path).is_ok();
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        connected,
        "vvu did not listen at a path that a dead server left"
    );
}
