//! `vvu demo` as a newcomer meets it, from the first line to an empty folder.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes that long; a loaded machine may.
const PATIENCE: Duration = Duration::from_secs(90);

/// A folder of nobody else's.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-demo-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().next().is_none()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a demo whose files are in `folder`.
fn demo(folder: &Scratch, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vvu"))
        .arg("demo")
        .args(args)
        .env("TMPDIR", &folder.0)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the end; exit code, and what was said on standard output and on standard error.
fn end(mut child: Child) -> (Option<i32>, String, String) {
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the demo does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (mut out, mut err) = (String::new(), String::new());
    child
        .stdout
        .take()
        .map(|mut from| from.read_to_string(&mut out));
    child
        .stderr
        .take()
        .map(|mut from| from.read_to_string(&mut err));
    (status.code(), out, err)
}

/// The processes that `child` has started and that still run.
fn children(child: &Child) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id()));
    let mut found = Vec::new();
    for task in tasks.into_iter().flatten() {
        let list = std::fs::read_to_string(task.unwrap().path().join("children"));
        let list = list.unwrap_or_default();
        found.extend(
            list.split_whitespace()
                .map(|pid| pid.parse::<i32>().unwrap()),
        );
    }
    found
}

/// Waits until both guests of an act run.
fn guests(child: &Child) -> Vec<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = children(child);
        if found.len() == 2 {
            return found;
        }
        assert!(Instant::now() < deadline, "the guests are not started");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn runs(pid: i32) -> bool {
    // One that nobody has waited for yet runs no more.
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !status.is_empty() && !status.contains(") Z ")
}

#[test]
fn it_ends_by_itself_with_nothing_lost_and_nothing_left() {
    let scratch = Scratch::new("whole");
    let (code, said, errors) = end(demo(&scratch, &["--seconds", "4", "--size", "128"]));
    assert_eq!(code, Some(0), "{said}{errors}");
    assert!(
        said.contains("lost 0, duplicated 0, reordered 0, corrupt 0"),
        "{said}"
    );
    assert!(
        said.contains("128-byte frames") && said.contains("round trips"),
        "{said}"
    );
    assert_eq!(errors, "");
    assert!(scratch.is_empty(), "files were left behind");
}

#[test]
fn it_can_be_stopped_at_any_time() {
    let scratch = Scratch::new("stopped");
    let mut child = demo(&scratch, &["--seconds", "60"]);
    let guests = guests(&child);
    // Anything that it says of the first act.
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ping") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it ended");
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, _, errors) = end(child);
    assert_eq!(code, Some(130), "{errors}");
    assert!(scratch.is_empty(), "files were left behind");
    for guest in guests {
        assert!(!runs(guest), "guest {guest} was left behind");
    }
}

#[test]
fn a_guest_that_dies_is_a_failure_with_a_reason() {
    let scratch = Scratch::new("dies");
    let child = demo(&scratch, &["--seconds", "60"]);
    let guests = guests(&child);
    let victim = Pid::from_raw(guests[1]).unwrap();
    kill_process(victim, Signal::KILL).unwrap();
    let (code, said, errors) = end(child);
    assert_eq!(code, Some(1), "{said}{errors}");
    assert!(errors.contains("guest"), "{errors}");
    assert!(scratch.is_empty(), "files were left behind");
    assert!(!runs(guests[0]), "the other guest was left behind");
}

#[test]
fn the_three_machines_are_another_program() {
    // Nothing is written that is then run: links need a folder where the program is.
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = Scratch(place.join(format!("vvu-demo-vms-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let program = folder.0.join("vvu");
    std::fs::hard_link(env!("CARGO_BIN_EXE_vvu"), &program).unwrap();
    let run = |args: &[&str]| Command::new(&program).args(args).output().unwrap();

    let missing = run(&["demo", "--vms"]);
    let said = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        said.contains("./run demo --vms") && said.lines().count() == 1,
        "{said}"
    );

    std::os::unix::fs::symlink("/bin/echo", folder.0.join("vmlab")).unwrap();
    let found = run(&["demo", "--vms"]);
    assert_eq!(
        (found.stdout.as_slice(), found.status.code()),
        (&b"demo\n"[..], Some(0))
    );

    assert_eq!(
        run(&["demo", "--vms", "--size", "64"]).status.code(),
        Some(2)
    );
}
