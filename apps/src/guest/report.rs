//! What a guest says about its work, to people and to programs.

use std::fmt;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::machine::Flow;

/// A line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Line {
    /// How it goes, every second with `--progress`.
    Progress(Progress),
    /// How it went, at the end.
    Report(Box<Report>),
}

impl Line {
    pub(crate) fn print(&self) {
        if let Ok(text) = serde_json::to_string(self) {
            println!("{text}");
        }
    }
}

/// What was done since the start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) seconds: f64,
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_packets: u64,
    pub(crate) received_bytes: u64,
}

/// A job's result.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) job: String,
    /// Whether all was as it should be.
    pub(crate) ok: bool,
    /// If not, what was wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) reason: Option<String>,
    /// CPU time of this process.
    pub(crate) cpu_seconds: f64,
    /// How often it connected to the back-end.
    pub(crate) connections: u64,
    /// virtio features in use.
    pub(crate) features: String,
    /// A network card's address.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) mac: String,
    /// A disk's bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) capacity: Option<u64>,
    #[serde(flatten)]
    pub(crate) total: Progress,
    #[serde(flatten)]
    pub(crate) details: Details,
}

/// What only this job has to say.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Details {
    /// Nothing.
    #[default]
    None,
    Ping(Latency),
    Blast(Blasted),
    Sink(Sunk),
    Verify(Account),
    Abuse(Abused),
    Disk(DiskLoad),
    #[serde(rename = "verify_disk")]
    VerifyDisk(DiskAccount),
}

/// Round trips, in nanoseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    /// Without an answer because the connection broke.
    pub(crate) interrupted: u64,
    pub(crate) min: u64,
    pub(crate) mean: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Latency {
    pub(super) fn of(times: &Histogram, lost: u64, interrupted: u64) -> Self {
        Self {
            answered: times.total(),
            lost,
            interrupted,
            min: times.min(),
            mean: times.mean(),
            p50: times.percentile(50.0),
            p90: times.percentile(90.0),
            p99: times.percentile(99.0),
            max: times.max(),
        }
    }
}

/// A blast.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Blasted {
    /// Length of a frame.
    pub(crate) size: usize,
    /// Frames that the back-end took.
    pub(crate) taken: u64,
    /// Time for them.
    pub(crate) blast_seconds: f64,
    /// Frames that a `sink` at the other side says to have received.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) arrived: Option<u64>,
}

/// What arrived at a sink.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sunk {
    /// Frames of a blast.
    pub(crate) blasts: u64,
    /// Probes answered.
    pub(crate) answered: u64,
    /// Frames of neither kind.
    pub(crate) others: u64,
}

/// Every frame accounted for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Account {
    /// Frames sent to the other side, and their bytes.
    pub(crate) sent: u64,
    pub(crate) data_bytes_sent: u64,
    /// Frames of the other side that arrived as they should, and their bytes.
    pub(crate) received: u64,
    pub(crate) data_bytes_received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) corrupt: u64,
    /// Frames that came as they were sent, although longer than any Ethernet's.
    #[serde(default)]
    pub(crate) long: u64,
    /// On their way when a connection broke: may be lost, or come twice.
    pub(crate) interrupted: u64,
    /// Frames of others.
    pub(crate) foreign: u64,
    /// How many of ours the other side misses or got wrong.
    pub(crate) missed_by_other_side: u64,
    /// Whether the back-end sends our own frames back.
    pub(crate) loops: bool,
    pub(crate) seed: u64,
}

/// Requests of one kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DiskLoad {
    pub(crate) requests: u64,
    /// Bytes of those that were done.
    pub(crate) bytes: u64,
    /// Time for them.
    pub(crate) load_seconds: f64,
    /// Requests that were refused, or brought what they should not.
    pub(crate) failed: u64,
    pub(crate) latency: Latency,
}

/// Every block accounted for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DiskAccount {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) discards: u64,
    pub(crate) zeroings: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    /// Requests that were refused.
    pub(crate) failed: u64,
    /// Blocks that held something else than they must.
    pub(crate) corrupt: u64,
    pub(crate) seed: u64,
}

/// Deeds and their outcome.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Abused {
    pub(crate) done: u64,
    /// Whether frames came back when all was honest.
    pub(crate) echoes: bool,
    /// Deeds after which the back-end did not serve an honest connection, and why not.
    pub(crate) failed: Vec<(String, String)>,
}

/// Keeps time, and says every second how it goes if somebody wants to know.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    next: Option<Instant>,
    json: bool,
    last: (Flow, Flow),
}

const SECOND: Duration = Duration::from_secs(1);

impl Clock {
    pub(super) fn new(progress: bool, json: bool) -> Self {
        let start = Instant::now();
        Self {
            start,
            next: progress.then(|| start + SECOND),
            json,
            last: Default::default(),
        }
    }

    /// Once a second, says how it goes. Returns when it will next.
    pub(super) fn tick(&mut self, sent: Flow, received: Flow) -> Option<Instant> {
        let now = Instant::now();
        let due = self.next.filter(|next| now >= *next);
        if due.is_some() {
            self.next = Some(now + SECOND);
            if self.json {
                Line::Progress(self.total(sent, received)).print();
            } else {
                let since = |now: Flow, then: Flow| Rate(now.packets - then.packets, SECOND);
                println!(
                    "{:4} s   sent {:>12}   received {:>12}",
                    (now - self.start).as_secs(),
                    since(sent, self.last.0).to_string(),
                    since(received, self.last.1).to_string(),
                );
                self.last = (sent, received);
            }
        }
        self.next
    }

    pub(super) fn total(&self, sent: Flow, received: Flow) -> Progress {
        Progress {
            seconds: self.start.elapsed().as_secs_f64(),
            sent_packets: sent.packets,
            sent_bytes: sent.bytes,
            received_packets: received.packets,
            received_bytes: received.bytes,
        }
    }
}

/// CPU time that this process has used, in seconds.
pub(crate) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A number of things per time, as people read it.
pub(crate) struct Rate(pub(crate) u64, pub(crate) Duration);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.0 as f64 / self.1.as_secs_f64().max(1e-9);
        let (value, unit) = match rate {
            rate if rate >= 1e6 => (rate / 1e6, "M/s"),
            rate if rate >= 1e4 => (rate / 1e3, "k/s"),
            rate => (rate, "/s"),
        };
        // As many digits as say something.
        let digits = if unit == "/s" { 0 } else { 2 };
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

/// Nanoseconds, as people read them.
pub(crate) struct Nanos(pub(crate) u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self.0 {
            n if n < 10_000 => format!("{:.2} us", n as f64 / 1e3),
            n if n < 10_000_000 => format!("{:.0} us", n as f64 / 1e3),
            n => format!("{:.1} ms", n as f64 / 1e6),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.details {
            Details::None => {}
            Details::Ping(times) => {
                writeln!(
                    f,
                    "{} answered, {} lost{}",
                    times.answered,
                    times.lost,
                    also(times.interrupted)
                )?;
                writeln!(
                    f,
                    "round trip: min {}, p50 {}, p90 {}, p99 {}, max {}, mean {}",
                    Nanos(times.min),
                    Nanos(times.p50),
                    Nanos(times.p90),
                    Nanos(times.p99),
                    Nanos(times.max),
                    Nanos(times.mean),
                )?;
            }
            Details::Blast(blast) => {
                let time = Duration::from_secs_f64(blast.blast_seconds.max(0.0));
                let bits = blast.taken * blast.size as u64 * 8;
                writeln!(
                    f,
                    "{} frames of {} bytes taken: {}, {:.2} Gbit/s",
                    blast.taken,
                    blast.size,
                    Rate(blast.taken, time),
                    bits as f64 / time.as_secs_f64().max(1e-9) / 1e9
                )?;
                if let Some(arrived) = blast.arrived {
                    let share = arrived as f64 * 100.0 / blast.taken.max(1) as f64;
                    writeln!(f, "{arrived} of them arrived ({share:.1} %)")?;
                }
            }
            Details::Sink(sink) => writeln!(
                f,
                "received {} frames of blasts, {} probes, {} others",
                sink.blasts, sink.answered, sink.others
            )?,
            Details::Verify(account) => write_account(f, account)?,
            Details::Disk(load) => write_load(f, load)?,
            Details::VerifyDisk(account) => {
                writeln!(
                    f,
                    "{} reads, {} writes, {} flushes, {} discards, {} zeroed; {} failed",
                    account.reads,
                    account.writes,
                    account.flushes,
                    account.discards,
                    account.zeroings,
                    account.failed
                )?;
                writeln!(
                    f,
                    "corrupt blocks: {} (seed {})",
                    account.corrupt, account.seed
                )?;
            }
            Details::Abuse(abuse) => writeln!(
                f,
                "{} deeds, {} of them with consequences for others",
                abuse.done,
                abuse.failed.len()
            )?,
        }
        let (sent, received, things) = match self.capacity {
            None => ("sent", "received", "frames"),
            Some(_) => ("wrote", "read", "requests"),
        };
        write!(
            f,
            "{:.2} s, {:.2} s of CPU; {sent} {} {things}, {} bytes; {received} {} {things}, {} bytes",
            self.total.seconds,
            self.cpu_seconds,
            self.total.sent_packets,
            self.total.sent_bytes,
            self.total.received_packets,
            self.total.received_bytes
        )
    }
}

fn also(interrupted: u64) -> String {
    match interrupted {
        0 => String::new(),
        n => format!(", {n} interrupted by a reconnect"),
    }
}

fn write_load(f: &mut fmt::Formatter<'_>, load: &DiskLoad) -> fmt::Result {
    let time = Duration::from_secs_f64(load.load_seconds.max(0.0));
    let mega = load.bytes as f64 / time.as_secs_f64().max(1e-9) / 1e6;
    let rate = Rate(load.requests, time);
    writeln!(
        f,
        "{} requests, {} failed: {rate}, {mega:.1} MB/s",
        load.requests, load.failed
    )?;
    let times = &load.latency;
    writeln!(
        f,
        "each: min {}, p50 {}, p90 {}, p99 {}, max {}, mean {}",
        Nanos(times.min),
        Nanos(times.p50),
        Nanos(times.p90),
        Nanos(times.p99),
        Nanos(times.max),
        Nanos(times.mean),
    )
}

fn write_account(f: &mut fmt::Formatter<'_>, account: &Account) -> fmt::Result {
    let from = match account.loops {
        true => "came back",
        false => "came from the other side",
    };
    writeln!(
        f,
        "{} frames sent, {} {from}",
        account.sent, account.received
    )?;
    write!(
        f,
        "lost {}, duplicated {}, reordered {}, corrupt {}",
        account.lost, account.duplicated, account.reordered, account.corrupt
    )?;
    if !account.loops {
        write!(
            f,
            ", missed by the other side {}",
            account.missed_by_other_side
        )?;
    }
    writeln!(f, "{} (seed {})", also(account.interrupted), account.seed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_survive_a_round_trip() {
        let report = Report {
            job: "verify".into(),
            ok: true,
            details: Details::Verify(Account {
                sent: 7,
                ..Account::default()
            }),
            ..Report::default()
        };
        for line in [
            Line::Report(report.into()),
            Line::Progress(Progress::default()),
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'));
            let back: Line = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), text);
        }
    }

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!(Rate(12_300_000, SECOND).to_string(), "12.30 M/s");
        assert_eq!(Rate(123, SECOND).to_string(), "123 /s");
        assert_eq!(Nanos(1500).to_string(), "1.50 us");
        assert_eq!(Nanos(12_345_678).to_string(), "12.3 ms");
    }
}
