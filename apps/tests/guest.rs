//! `vvu guest` as people and scripts use it: jobs against `vvu net` and against DPDK's back-end,
//! their results, and their exit codes.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    PATIENCE, Running, Scratch, job, number, open_files, output, start, until_listening, vvu,
};
use rustix::process::Signal;
use serde_json::Value;

/// Starts `vvu net` on these ports and waits until all sockets listen.
fn net(ports: &[&str]) -> Running {
    let mut args = vec!["-q", "net"];
    args.extend(ports.iter().flat_map(|port| ["--port", port]));
    // Much is said there about those who misbehave.
    let running = Running::new(vvu(&args).stderr(Stdio::null()));
    for port in ports {
        if let Some(path) = port
            .strip_prefix("unix:")
            .filter(|path| !path.contains(','))
        {
            until_listening(path);
        }
    }
    running
}

fn unix(path: &str) -> String {
    format!("unix:{path}")
}

#[test]
fn two_guests_account_for_every_frame_both_ways() {
    let scratch = Scratch::new("two");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let _net = net(&[&unix(&a), &unix(&b)]);
    let other = start(&b, &["verify", "--count", "5000", "--seed", "1"]);
    let one = job(&a, &["verify", "--count", "3000", "--regions", "3"]);
    let (code, other) = other.report();
    assert_eq!(code, 0, "{other}");
    for (mine, theirs, count) in [(&one, &other, 3000), (&other, &one, 5000)] {
        let (mine, theirs) = (&mine["verify"], &theirs["verify"]);
        assert_eq!(number(&mine["sent"]), count);
        assert_eq!(mine["sent"], theirs["received"]);
        assert_eq!(mine["data_bytes_sent"], theirs["data_bytes_received"]);
        for wrong in [
            "lost",
            "duplicated",
            "reordered",
            "corrupt",
            "missed_by_other_side",
        ] {
            assert_eq!(number(&mine[wrong]), 0, "{wrong}");
        }
        assert_eq!(mine["loops"], false);
    }
    assert_eq!(number(&other["verify"]["seed"]), 1);
}

#[test]
fn whatever_is_negotiated_frames_come_back_whole() {
    let scratch = Scratch::new("formats");
    let path = scratch.path("a");
    let _net = net(&[&unix(&path), "echo:"]);
    for options in [
        &[][..],
        &["--no-mrg-rxbuf"],
        &["--no-event-idx"],
        &["--no-indirect"],
        &["--no-version-1"],
        &["--no-version-1", "--no-mrg-rxbuf"],
        &["--no-protocol-features"],
        &["--regions", "8"],
        &["--queue-size", "16"],
        &["--queue-size", "4096", "--memory", "256M"],
        &["--rx-buffer", "200"],
        &["--max-size", "60"],
        &["--packed"],
        &["--packed", "--no-event-idx", "--no-indirect"],
        &["--packed", "--no-mrg-rxbuf", "--regions", "3"],
        &["--packed", "--queue-size", "100"],
        &["--packed", "--no-protocol-features"],
        &["--in-order"],
        &["--packed", "--in-order", "--pairs", "3"],
        &["--pairs", "4"],
        &["--offloads"],
        &["--offloads", "--packed", "--no-mrg-rxbuf"],
    ] {
        let report = job(&path, &[&["verify", "--count", "300"], options].concat());
        let account = &report["verify"];
        assert_eq!(
            (number(&account["sent"]), number(&account["received"])),
            (300, 300)
        );
        assert_eq!(account["loops"], true);
        let has = |bit: u64| {
            let text = report["features"]
                .as_str()
                .unwrap()
                .trim_start_matches("0x");
            u64::from_str_radix(text, 16).unwrap() >> bit & 1 == 1
        };
        for (option, bit) in [
            ("--no-version-1", 32),
            ("--no-event-idx", 29),
            ("--no-indirect", 28),
            ("--no-mrg-rxbuf", 15),
        ] {
            assert_eq!(
                has(bit),
                !options.contains(&option),
                "{options:?}: feature {bit}"
            );
        }
        for (option, bit) in [("--packed", 34), ("--in-order", 35)] {
            let asked = options.contains(&option);
            assert_eq!(has(bit), asked, "{options:?}: feature {bit}");
        }
    }
}

#[test]
fn what_is_left_to_others_is_done_by_somebody() {
    let scratch = Scratch::new("offloads");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let _net = net(&[&unix(&a), &unix(&b)]);
    let verify = ["verify", "--count", "2000"];
    for (one, other, passes) in [
        (&["--offloads"][..], &["--offloads"][..], true),
        (&["--offloads", "--packed"], &[], false),
        (&["--offloads"], &["--packed", "--no-mrg-rxbuf"], false),
        (
            &["--offloads", "--no-mrg-rxbuf"],
            &["--offloads", "--packed", "--in-order"],
            true,
        ),
    ] {
        let there = start(&b, &[&verify, other].concat());
        let here = job(&a, &[&verify, one].concat());
        let (code, there) = there.report();
        assert_eq!(code, 0, "{one:?} {other:?}: {there}");
        for (mine, theirs) in [(&here, &there), (&there, &here)] {
            assert_eq!(mine["verify"]["sent"], theirs["verify"]["received"]);
        }
        // As they are for those who take them, in pieces for others.
        let long = number(&there["verify"]["long"]);
        assert_eq!(long > 0, passes, "{one:?} {other:?}: {there}");
    }
}

#[test]
fn what_the_path_loses_is_found_on_both_sides() {
    let scratch = Scratch::new("lossy");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let _net = net(&[&unix(&a), &unix(&b)]);
    // Frames that do not fit one of these buffers have nowhere to go.
    let small = [
        "verify",
        "--count",
        "500",
        "--no-mrg-rxbuf",
        "--rx-buffer",
        "500",
    ];
    let narrow = start(&b, &small);
    let (code, wide) = start(&a, &["verify", "--count", "500"]).report();
    assert_eq!(code, 1, "{wide}");
    let missed = number(&wide["verify"]["missed_by_other_side"]);
    assert!(
        missed > 0 && wide["reason"].as_str().unwrap().contains("other side"),
        "{wide}"
    );
    let (code, narrow) = narrow.report();
    assert_eq!(code, 1, "{narrow}");
    assert_eq!(number(&narrow["verify"]["lost"]), missed);
    assert_eq!(number(&narrow["verify"]["received"]), 500 - missed);
    assert!(
        narrow["reason"].as_str().unwrap().contains("lost"),
        "{narrow}"
    );
}

#[test]
fn a_sink_answers_and_counts_until_it_is_told_to_stop() {
    let scratch = Scratch::new("sink");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let _net = net(&[&unix(&a), &unix(&b)]);
    let sink = start(&b, &["sink"]);
    let report = job(&a, &["ping", "--count", "50", "--size", "1000"]);
    let times = &report["ping"];
    assert_eq!(
        (number(&times["answered"]), number(&times["lost"])),
        (50, 0)
    );
    let order = ["min", "p50", "p90", "p99", "max"].map(|name| number(&times[name]));
    assert!(order.is_sorted() && order[0] > 0, "{times}");
    // As many as the ring holds: nobody may lose any.
    let report = job(&a, &["blast", "--count", "200", "--size", "128"]);
    assert_eq!(number(&report["blast"]["taken"]), 200);
    assert_eq!(number(&report["blast"]["arrived"]), 200);
    sink.signal(Signal::INT);
    let (code, report) = sink.report();
    assert_eq!(code, 0, "{report}");
    assert_eq!(number(&report["sink"]["blasts"]), 200);
    assert!(number(&report["sink"]["answered"]) >= 52, "{report}");
}

#[test]
fn an_idle_guest_uses_next_to_no_cpu() {
    let scratch = Scratch::new("idle");
    let path = scratch.path("a");
    let _net = net(&[&unix(&path)]);
    let report = job(&path, &["sink", "--seconds", "3"]);
    let cpu = report["cpu_seconds"].as_f64().unwrap();
    assert!(cpu < 0.5, "{cpu} s of CPU in 3 s of idleness");
}

#[test]
fn a_back_end_may_be_killed_and_started_again() {
    let scratch = Scratch::new("again");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let ports = [unix(&a), unix(&b)];
    let ports = ports.each_ref().map(String::as_str);
    let first = net(&ports);
    let verify = ["verify", "--seconds", "4", "--reconnect", "--progress"];
    let mut jobs = [(&a, "--packed"), (&b, "--no-indirect")]
        .map(|(path, format)| start(path, &[&verify[..], &[format]].concat()));
    for job in &mut jobs {
        assert!(job.line().contains("progress"));
    }
    drop(first);
    let _second = net(&ports);
    for job in jobs {
        let (code, report) = job.report();
        assert_eq!(code, 0, "{report}");
        assert_eq!(number(&report["connections"]), 2, "{report}");
        assert!(number(&report["verify"]["received"]) > 0, "{report}");
    }
}

#[test]
fn a_guest_may_be_the_one_who_listens() {
    let scratch = Scratch::new("server");
    let path = scratch.path("a");
    let served = format!("{path},server");
    let guest = start(&served, &["verify", "--count", "100"]);
    let _net = net(&[&format!("unix:{path},client"), "echo:swap"]);
    let (code, report) = guest.report();
    assert_eq!(code, 0, "{report}");
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let scratch = Scratch::new("codes");
    let path = scratch.path("a");
    let lost = ["-q", "guest", "--socket", &path, "--timeout", "1", "ping"];
    let nobody = output(&lost);
    assert_eq!(nobody.status.code(), Some(3));
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert!(said.contains(&path) && said.lines().count() == 1, "{said}");

    // There is a back-end, but nobody behind it.
    let ended = net(&[&unix(&path)]);
    for name in ["ping", "verify"] {
        let lost = [&lost[..6], &[name]].concat();
        let alone = output(&lost);
        let said = String::from_utf8(alone.stderr).unwrap();
        assert_eq!(alone.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("nobody"), "{name}: {said}");
    }

    let greedy = output(&[&lost[..6], &["ping", "--pairs", "100"]].concat());
    let said = String::from_utf8(greedy.stderr).unwrap();
    assert_eq!(greedy.status.code(), Some(3), "{said}");
    assert!(said.contains("--pairs 100 is too many"), "{said}");

    // A back-end that goes away for good.
    let mut sink = start(&path, &["sink", "--progress"]);
    assert!(sink.line().contains("progress"));
    drop(ended);
    let (code, report) = sink.report();
    assert_eq!(code, 3, "{report}");
    assert!(
        report["reason"].as_str().unwrap().contains("--reconnect"),
        "{report}"
    );

    for (args, reason) in [
        (&["ping"][..], "--socket"),
        (&["--socket", "/a,b", "ping"], "server"),
        (&["--socket", "/a", "ping", "--size", "20"], "60"),
        (
            &["--socket", "/a", "--queue-size", "100", "ping"],
            "power of two",
        ),
        (&["--socket", "/a", "abuse"], "--all"),
        (
            &["--socket", "/a", "abuse", "--name", "kindness"],
            "kindness",
        ),
    ] {
        let refused = output(&[&["guest"], args].concat());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(reason), "{args:?}: {said}");
    }
}

#[test]
fn no_abuse_keeps_others_from_being_served() {
    let scratch = Scratch::new("abuse");
    let path = scratch.path("a");
    let net = net(&[&unix(&path), "echo:"]);
    job(&path, &["ping", "--count", "1"]);
    let before = open_files(&net);
    let report = job(&path, &["abuse", "--all"]);
    let abuse = &report["abuse"];
    let listed = output(&["guest", "abuse", "--list"]).stdout;
    let listed = String::from_utf8(listed).unwrap().lines().count() as u64;
    assert_eq!(number(&abuse["done"]), listed);
    assert_eq!(abuse["failed"], Value::Array(vec![]));
    assert_eq!(abuse["echoes"], true);
    // The last connection may not be closed on the other side yet.
    let deadline = Instant::now() + PATIENCE;
    while open_files(&net) > before {
        assert!(
            Instant::now() < deadline,
            "files stay open: {before} before"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn abuse_that_a_back_end_does_not_survive_is_told() {
    let scratch = Scratch::new("victim");
    let path = scratch.path("a");
    let victim = net(&[&unix(&path), "echo:"]);
    let deeds = ["--name", "silence"].repeat(4);
    let args = ["-q", "guest", "--socket", &path, "--timeout", "2", "abuse"];
    let mut abuse = Running::new(&mut vvu(&[&args, deeds.as_slice()].concat()));
    assert!(abuse.line().ends_with(" ok\n"));
    drop(victim);
    let (code, said) = abuse.end();
    assert_eq!(code, 1, "{said}");
    // The deeds after it are not even tried.
    let failures = said.lines().filter(|line| line.contains("no back-end"));
    assert_eq!(failures.count(), 1, "{said}");
}

/// DPDK's vhost library, which sends every frame back with its addresses exchanged; `None`, said
/// aloud, if it is not installed.
fn testpmd(socket: &str) -> Option<Running> {
    const PROGRAM: &str = "dpdk-testpmd";
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "{PROGRAM} is not installed"
        );
        eprintln!("SKIPPED: {PROGRAM} is not installed (Debian's package dpdk-dev)");
        return None;
    }
    let second = std::thread::available_parallelism().map_or(0, |n| 1.min(n.get() - 1));
    let mut command = Command::new(PROGRAM);
    command
        .args(["--no-huge", "--no-shconf", "--no-pci", "-m", "256"])
        .arg(format!("--lcores=0@0,1@{second}"))
        .arg(format!("--vdev=net_vhost0,iface={socket}"))
        .args([
            "--",
            "--forward-mode=macswap",
            "--auto-start",
            "--total-num-mbufs=4096",
        ])
        // It runs until somebody presses enter.
        .stdin(Stdio::piped())
        .stderr(Stdio::null());
    let running = Running::new(&mut command);
    until_listening(socket);
    Some(running)
}

#[test]
fn dpdk_serves_it_too() {
    let scratch = Scratch::new("dpdk");
    let path = scratch.path("x");
    let Some(_testpmd) = testpmd(&path) else {
        return;
    };
    for options in [
        &[][..],
        &["--no-mrg-rxbuf"],
        &["--no-event-idx", "--no-indirect", "--regions", "4"],
        &["--no-version-1"],
        &["--no-protocol-features"],
        &["--packed"],
        &["--packed", "--no-mrg-rxbuf", "--no-event-idx"],
        &["--packed", "--no-indirect", "--queue-size", "100"],
        &["--in-order"],
        &["--packed", "--in-order"],
    ] {
        let report = job(&path, &[&["verify", "--count", "3000"], options].concat());
        let account = &report["verify"];
        assert_eq!(
            (number(&account["sent"]), number(&account["received"])),
            (3000, 3000)
        );
    }
    let report = job(&path, &["ping", "--count", "100"]);
    assert_eq!(number(&report["ping"]["answered"]), 100);
    let report = job(&path, &["blast", "--count", "100000"]);
    assert_eq!(number(&report["blast"]["taken"]), 100_000);
    // What does not end DPDK 22.11: a file that shrinks would.
    job(
        &path,
        &["abuse", "--name", "garbage", "--name", "loop-of-two"],
    );
}
