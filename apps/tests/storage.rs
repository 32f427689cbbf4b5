//! `vvu guest blk` against `vvu blk`, and against qemu-storage-daemon, a back-end that others
//! wrote, so that the front-end is not wrong in the same way as ours.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    PATIENCE, Running, Scratch, job, number, open_files, output, start, until_listening, vvu,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Queues that the back-end is told to have.
const QUEUES: u64 = 4;

/// qemu-storage-daemon with a file of so many bytes behind a socket; `None`, said aloud, if it is
/// not installed.
fn daemon(scratch: &Scratch, options: &str) -> Option<(Running, String)> {
    const PROGRAM: &str = "qemu-storage-daemon";
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "{PROGRAM} is not installed"
        );
        eprintln!("SKIPPED: {PROGRAM} is not installed (Debian's package qemu-utils)");
        return None;
    }
    let (image, socket) = (scratch.path("image"), scratch.path("disk.sock"));
    if !Path::new(&image).exists() {
        File::create(&image).unwrap().set_len(32 * MIB).unwrap();
    }
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "--blockdev",
            &format!("driver=file,node-name=file,filename={image},discard=unmap"),
        ])
        .args([
            "--blockdev",
            "driver=raw,node-name=disk,file=file,discard=unmap",
        ])
        .args([
            "--export",
            &format!(
                "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={socket},\
             num-queues={QUEUES},{options}"
            ),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let running = Running::new(&mut command);
    until_listening(&socket);
    Some((running, socket))
}

/// `vvu blk` with a disk of as many bytes behind a socket.
fn ours(scratch: &Scratch, kind: &str) -> (Running, String) {
    serve(scratch, "blk", kind)
}

/// The same, or `vvu scsi`.
fn serve(scratch: &Scratch, device: &str, kind: &str) -> (Running, String) {
    let socket = scratch.path("ours.sock");
    let _ = std::fs::remove_file(&socket);
    let port = format!("unix:{socket},queues={QUEUES}");
    let disk = match kind {
        "mem" => format!("mem:{}", 32 * MIB),
        _ => format!("file:{},size={}", scratch.path("ours"), 32 * MIB),
    };
    let (option, disk) = match device {
        "blk" => ("--disk", disk),
        _ => ("--lun", format!("0:0={disk}")),
    };
    let mut command = vvu(&["-q", device, "--port", &port, option, &disk]);
    // Much is said there about those who misbehave.
    let running = Running::new(command.stderr(Stdio::null()));
    until_listening(&socket);
    (running, socket)
}

#[test]
fn every_block_is_what_was_written_last_in_every_format_of_ours() {
    let scratch = Scratch::new("disk-ours");
    for kind in ["mem", "file"] {
        let (_server, socket) = ours(&scratch, kind);
        for options in [
            &[][..],
            &["--no-indirect"],
            &["--no-event-idx", "--regions", "4"],
            &["--queues", "4", "--depth", "200"],
            &["--queue-size", "16", "--queues", "2"],
            &["--max-size", "4M", "--depth", "4"],
            &["--packed"],
            &["--packed", "--no-event-idx", "--no-indirect"],
            &[
                "--packed",
                "--queue-size",
                "100",
                "--queues",
                "4",
                "--depth",
                "200",
            ],
            &["--no-protocol-features"],
        ] {
            if options.contains(&"--no-protocol-features") {
                // Then nobody can ask how large it is.
                let (code, report) = start(&socket, &[&["blk", "read"], options].concat()).report();
                assert_eq!(code, 3, "{report}");
                continue;
            }
            let verify = ["blk", "verify", "--count", "1500", "--seed", "6"];
            let report = job(&socket, &[&verify, options].concat());
            let account = &report["verify_disk"];
            assert_eq!(number(&account["corrupt"]), 0, "{kind} {options:?}");
            for kind in ["reads", "writes", "flushes", "discards", "zeroings"] {
                assert!(number(&account[kind]) > 0, "{options:?}: {account}");
            }
        }
    }
}

#[test]
fn a_disk_may_be_killed_and_started_again() {
    let scratch = Scratch::new("disk-again");
    let (mut server, socket) = ours(&scratch, "file");
    let verify = [
        "blk",
        "verify",
        "--seconds",
        "3",
        "--depth",
        "64",
        "--reconnect",
        "--progress",
    ];
    for options in [
        &["--queues", "4"][..],
        &["--packed"],
        &["--inflight", "--queues", "2"],
        &["--inflight", "--packed"],
    ] {
        let mut job = start(&socket, &[&verify, options].concat());
        assert!(job.line().contains("progress"));
        drop(server);
        server = ours(&scratch, "file").0;
        let (code, report) = job.report();
        assert_eq!(code, 0, "{options:?}: {report}");
        assert_eq!(number(&report["connections"]), 2, "{options:?}: {report}");
        let account = &report["verify_disk"];
        assert!(number(&account["writes"]) > 0, "{options:?}: {report}");
    }
}

#[test]
fn a_unit_may_be_killed_and_started_again() {
    let scratch = Scratch::new("unit-again");
    let (mut server, socket) = serve(&scratch, "scsi", "file");
    for options in [
        &["--inflight", "--queues", "4"][..],
        &["--inflight", "--packed", "--queues", "2"],
        &["--queues", "2"],
    ] {
        let verify = ["scsi", "verify", "--seconds", "3", "--depth", "64"];
        let more = ["--reconnect", "--progress"];
        let mut job = start(&socket, &[&verify[..], &more, options].concat());
        for _ in 0..2 {
            assert!(job.line().contains("progress"));
            drop(server);
            server = serve(&scratch, "scsi", "file").0;
        }
        let (code, report) = job.report();
        assert_eq!(code, 0, "{options:?}: {report}");
        assert_eq!(number(&report["connections"]), 3, "{options:?}: {report}");
        let account = &report["verify_disk"];
        assert_eq!(number(&account["corrupt"]), 0, "{options:?}: {report}");
        assert!(number(&account["writes"]) > 0, "{options:?}: {report}");
    }
}

#[test]
fn a_file_that_somebody_else_writes_is_waited_for() {
    let scratch = Scratch::new("disk-locked");
    let file = format!("file:{},size=1M", scratch.path("image"));
    let blk = |socket: &str| {
        let port = format!("unix:{}", scratch.path(socket));
        vvu(&["blk", "--port", &port, "--disk", &file])
    };
    let first = Running::new(blk("first").stderr(Stdio::null()));
    until_listening(&scratch.path("first"));
    let mut second = Running::new(blk("second").stderr(Stdio::piped()));
    let said = BufReader::new(second.child.stderr.take().unwrap());
    // Said once, long before it gives up.
    let mut said = said.lines().map(Result::unwrap);
    let waits = said.find(|line| line.contains("somebody else")).unwrap();
    assert!(waits.contains(&scratch.path("image")), "{waits}");
    drop(first);
    until_listening(&scratch.path("second"));
    job(&scratch.path("second"), &["blk", "read", "--seconds", "1"]);
    drop(second);
    assert!(!said.any(|line| line.contains("somebody else")));
}

#[test]
fn no_abuse_of_a_disk_keeps_others_from_being_served() {
    let scratch = Scratch::new("disk-abused");
    let (server, socket) = ours(&scratch, "mem");
    job(&socket, &["blk", "flush", "--count", "1"]);
    let before = open_files(&server);
    let report = job(&socket, &["blk", "abuse", "--all"]);
    let abuse = &report["abuse"];
    let listed = output(&["guest", "blk", "abuse", "--list"]).stdout;
    let listed = String::from_utf8(listed).unwrap().lines().count() as u64;
    assert_eq!(number(&abuse["done"]), listed);
    assert_eq!(abuse["failed"], Value::Array(vec![]));
    // The last connection may not be closed on the other side yet.
    let deadline = Instant::now() + PATIENCE;
    while open_files(&server) > before {
        assert!(
            Instant::now() < deadline,
            "files stay open: {before} before"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_block_is_what_was_written_last_in_every_format() {
    let scratch = Scratch::new("disk-formats");
    let Some((_daemon, socket)) = daemon(&scratch, "writable=on") else {
        return;
    };
    for options in [
        &[][..],
        &["--no-indirect"],
        &["--no-event-idx"],
        &["--no-event-idx", "--no-indirect", "--regions", "4"],
        &["--queues", "4", "--depth", "200"],
        &["--queue-size", "16", "--queues", "2"],
        &["--offset", "1M", "--length", "64K"],
        &["--max-size", "512"],
        &["--max-size", "4M", "--depth", "4"],
    ] {
        let verify = ["blk", "verify", "--count", "2000", "--seed", "5"];
        let report = job(&socket, &[&verify, options].concat());
        let account = &report["verify_disk"];
        assert_eq!(number(&account["corrupt"]), 0, "{options:?}");
        for kind in ["reads", "writes", "flushes", "discards", "zeroings"] {
            assert!(number(&account[kind]) > 0, "{options:?}: {account}");
        }
        assert_eq!(number(&report["capacity"]), 32 * MIB);
    }
}

#[test]
fn what_is_written_is_in_the_file_and_what_is_wrong_there_is_found() {
    let scratch = Scratch::new("disk-file");
    let Some((daemon, socket)) = daemon(&scratch, "writable=on") else {
        return;
    };
    let report = job(
        &socket,
        &["blk", "write", "--whole", "--seed", "9", "--size", "64K"],
    );
    assert_eq!(number(&report["disk"]["requests"]), 512);
    assert_eq!(number(&report["disk"]["bytes"]), 32 * MIB);
    job(&socket, &["blk", "flush", "--count", "3"]);
    drop(daemon);

    let (_daemon, socket) = self::daemon(&scratch, "writable=on").expect("as before");
    let whole = ["blk", "read", "--whole", "--seed", "9"];
    let report = job(&socket, &whole);
    assert_eq!(number(&report["disk"]["requests"]), 8192);
    // One byte of a block in the middle, and a block of its neighbour's.
    let image = File::options()
        .read(true)
        .write(true)
        .open(scratch.path("image"))
        .unwrap();
    image.write_all_at(&[0], 20 * MIB + 100).unwrap();
    let mut block = [0; 512];
    image.read_exact_at(&mut block, 30 * MIB).unwrap();
    image.write_all_at(&block, 30 * MIB + 512).unwrap();
    let (code, report) = start(&socket, &whole).report();
    assert_eq!(code, 1, "{report}");
    assert_eq!(number(&report["disk"]["failed"]), 2, "{report}");
    let torn = ["--offset", "20M", "--length", "4K"];
    let moved = ["--offset", "30M", "--length", "4K"];
    for (place, reason) in [
        (
            torn,
            "block 40960 holds something else from its byte 100 on",
        ),
        (
            moved,
            "block 61441 holds what was written to block 61440 as write 0",
        ),
    ] {
        let (_, report) = start(&socket, &[&whole[..], &place].concat()).report();
        let said = report["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{said}");
    }

    for kind in [&["discard"][..], &["discard", "--zeroes"]] {
        let report = job(&socket, &[&["blk"], kind].concat());
        assert_eq!(number(&report["disk"]["bytes"]), 32 * MIB);
    }
    image.read_exact_at(&mut block, 7 * MIB).unwrap();
    assert_eq!(block, [0; 512]);
}

#[test]
fn a_disk_that_is_not_written_refuses_what_writes() {
    let scratch = Scratch::new("disk-ro");
    let Some((_daemon, socket)) = daemon(&scratch, "writable=off") else {
        return;
    };
    let report = job(&socket, &["blk", "verify", "--count", "500"]);
    let account = &report["verify_disk"];
    assert_eq!(number(&account["writes"]), 0, "{account}");
    let (code, report) = start(&socket, &["blk", "write", "--seconds", "1"]).report();
    assert_eq!(code, 1, "{report}");
    let said = report["reason"].as_str().unwrap();
    assert!(said.contains("status 1"), "{said}");
}

#[test]
fn what_cannot_be_asked_of_a_disk_is_told() {
    let scratch = Scratch::new("disk-codes");
    let Some((_daemon, socket)) = daemon(&scratch, "writable=on") else {
        return;
    };
    for (args, code, reason) in [
        (
            &["blk", "--queues", "5", "verify"][..],
            3,
            "4 queues; --queues 5 is too many",
        ),
        (&["blk", "--offset", "100", "read"], 3, "blocks of 512"),
        (&["blk", "--length", "1G", "read"], 3, "no part of a disk"),
        (&["blk", "--inflight", "read"], 3, "INFLIGHT_SHMFD"),
        (&["--packed", "blk", "read"], 3, "RING_PACKED"),
        (&["blk", "read", "--size", "1000"], 2, "whole sectors"),
        (&["blk", "abuse", "--name", "kindness"], 2, "kindness"),
        (&["--pairs", "2", "blk", "read"], 2, "--pairs"),
    ] {
        let base = ["-q", "guest", "--socket", &socket, "--timeout", "5"];
        let refused = output(&[&base, args].concat());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(reason), "{args:?}: {said}");
    }
}

#[test]
fn hostile_requests_are_refused_by_others_too() {
    let scratch = Scratch::new("disk-abuse");
    let Some((_daemon, socket)) = daemon(&scratch, "writable=on") else {
        return;
    };
    let listed = output(&["guest", "blk", "abuse", "--list"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    // Of the others, some end qemu-storage-daemon.
    let names = listed
        .split_whitespace()
        .filter(|word| word.starts_with("blk-"));
    let mut args = vec!["blk", "abuse"];
    args.extend(names.flat_map(|name| ["--name", name]));
    let report = job(&socket, &args);
    assert_eq!(
        number(&report["abuse"]["done"]) as usize,
        args.len() / 2 - 1
    );
}
