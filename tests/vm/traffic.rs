//! Traffic between guests, and what came of it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::guest::Guest;
use crate::job::Job;
use crate::wire::{
    BlastReport, Datagrams, PingReport, Task, TcpReport, UdpReport, expected_checksum,
};

const PORT: u16 = 7700;

/// Where requests are answered.
const ECHO_PORT: u16 = 7701;

/// A guest that never answers is given up after this, on top of the time that the traffic takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Milliseconds until a reply counts as lost.
const REPLY_MS: u64 = 1000;

/// Sends `count` echo requests with `size` bytes of payload.
pub fn ping(from: &Guest, to: &Guest, size: u16, count: u32) -> Result<PingReport> {
    let task = Task::Ping {
        to: to.address()?,
        size,
        count,
        interval_ms: 1,
        timeout_ms: REPLY_MS,
    };
    from.task(task, PATIENCE + Duration::from_millis(REPLY_MS) * count)
}

/// Asks again and again until the first reply, for at most `patience`.
pub fn answers_within(from: &Guest, to: &Guest, patience: Duration) -> Result<bool> {
    const REPLY_MS: u64 = 100;
    let task = Task::Ping {
        to: to.address()?,
        size: 56,
        count: 1,
        interval_ms: 0,
        timeout_ms: REPLY_MS,
    };
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let report: PingReport = from.task(task.clone(), PATIENCE)?;
        if report.lost() == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A TCP stream under way.
pub struct Transfer {
    sender: Job,
    receiver: Job,
    seed: u64,
    bytes: u64,
    verify: bool,
}

impl Transfer {
    /// Starts to send a pseudo-random stream, with a checksum at both ends.
    pub fn start(from: &Guest, to: &Guest, bytes: u64) -> Result<Transfer> {
        Transfer::start_with(from, to, bytes, true)
    }

    /// Starts to send one block again and again, as fast as possible.
    pub fn start_unchecked(from: &Guest, to: &Guest, bytes: u64) -> Result<Transfer> {
        Transfer::start_with(from, to, bytes, false)
    }

    fn start_with(from: &Guest, to: &Guest, bytes: u64, verify: bool) -> Result<Transfer> {
        let seed = u64::from(u32::from(from.address()?)) << 32 | bytes;
        let receiver = to.start_task(Task::TcpReceive { port: PORT, verify })?;
        let sender = from.start_task(Task::TcpSend {
            to: to.address()?,
            port: PORT,
            bytes,
            seed,
            verify,
        })?;
        Ok(Transfer {
            sender,
            receiver,
            seed,
            bytes,
            verify,
        })
    }

    /// Whether both ends still work.
    pub fn is_running(&self) -> bool {
        !self.sender.has_ended() && !self.receiver.has_ended()
    }

    /// Waits for the stream's end, compares what arrived with what was sent, and returns Mbit/s.
    pub fn finish(self, patience: Duration) -> Result<f64> {
        let sent: TcpReport = self.sender.report(patience)?;
        let received: TcpReport = self.receiver.report(PATIENCE)?;
        ensure!(
            received.bytes == self.bytes,
            "{} of {} bytes arrived",
            received.bytes,
            self.bytes
        );
        if self.verify {
            let expected = expected_checksum(self.seed, self.bytes);
            ensure!(
                sent.checksum == expected,
                "the sender sent {:#x}, not {:#x}",
                sent.checksum,
                expected
            );
            ensure!(
                received.checksum == sent.checksum,
                "{:#x} arrived as {:#x}",
                sent.checksum,
                received.checksum
            );
        }
        Ok(received.bytes as f64 * 8.0 / received.micros.max(1) as f64)
    }
}

/// Sends a stream with checksums and returns Mbit/s.
pub fn tcp(from: &Guest, to: &Guest, bytes: u64) -> Result<f64> {
    Transfer::start(from, to, bytes)?.finish(PATIENCE)
}

/// Sends datagrams, each of which the receiver checks; the receiver's report. With `merge` its
/// kernel may hand over several at once.
pub fn udp(from: &Guest, to: &Guest, shape: Datagrams, merge: bool) -> Result<UdpReport> {
    let receiver = to.start_task(Task::UdpReceive {
        port: PORT,
        shape,
        merge,
    })?;
    let sender = from.start_task(Task::UdpSend {
        to: to.address()?,
        port: PORT,
        shape,
    })?;
    let sent: UdpReport = sender.report(PATIENCE)?;
    let received: UdpReport = receiver.report(PATIENCE)?;
    ensure!(
        received.wrong == 0 && (received.datagrams, received.bytes) == (sent.datagrams, sent.bytes),
        "of {} datagrams, {} bytes, there came {}, {} bytes; {} of them wrong",
        sent.datagrams,
        sent.bytes,
        received.datagrams,
        received.bytes,
        received.wrong
    );
    Ok(received)
}

/// Sends datagrams for some time, as many as the kernel takes; what arrived.
pub fn udp_flood(
    from: &Guest,
    to: &Guest,
    size: u16,
    burst: u16,
    time: Duration,
) -> Result<UdpReport> {
    let receiver = to.start_task(Task::UdpCount { port: PORT })?;
    receiver.pid()?;
    let sender = from.start_task(Task::UdpFlood {
        to: to.address()?,
        port: PORT,
        size,
        burst,
        millis: time.as_millis() as u64,
    })?;
    sender.report::<UdpReport>(PATIENCE + time)?;
    receiver.report(PATIENCE)
}

/// Requests of `size` bytes over one TCP connection, or as datagrams, one at a time.
pub fn ask(from: &Guest, to: &Guest, udp: bool, size: u16, count: u32) -> Result<PingReport> {
    let answering = to.start_task(Task::Echo {
        port: ECHO_PORT,
        udp,
    })?;
    let task = Task::Ask {
        to: to.address()?,
        port: ECHO_PORT,
        udp,
        size,
        count,
    };
    let report = from.task(task, PATIENCE)?;
    answering.wait(PATIENCE)?;
    Ok(report)
}

/// Sends small frames from a guest's interface for some time.
pub fn blast(from: &Guest, to: [u8; 6], size: u16, time: Duration) -> Result<BlastReport> {
    let task = Task::Blast {
        device: "eth0".into(),
        to,
        size,
        millis: time.as_millis() as u64,
    };
    from.task(task, PATIENCE + time)
}

/// Counts the frames that a guest's interface receives in some time.
pub fn count(guest: &Guest, time: Duration) -> Result<BlastReport> {
    let task = Task::Count {
        device: "eth0".into(),
        millis: time.as_millis() as u64,
    };
    guest.task(task, PATIENCE + time)
}

/// Sends small frames with the kernel's packet generator, which sends each buffer `clones` times again.
pub fn pktgen(
    from: &Guest,
    to: [u8; 6],
    size: u16,
    count: u64,
    clones: u32,
) -> Result<BlastReport> {
    const THREAD: &str = "/proc/net/pktgen/kpktgend_0";
    const DEVICE: &str = "/proc/net/pktgen/eth0";
    let order = |file: &str, text: &str| from.write(file, format!("{text}\n").as_bytes(), 0o600);
    order(THREAD, "rem_device_all")?;
    order(THREAD, "add_device eth0")?;
    let mac = to.map(|byte| format!("{byte:02x}")).join(":");
    for setting in [
        format!("pkt_size {size}"),
        format!("count {count}"),
        format!("clone_skb {clones}"),
        format!("dst_mac {mac}"),
        "delay 0".to_owned(),
    ] {
        order(DEVICE, &setting)?;
    }
    order("/proc/net/pktgen/pgctrl", "start")?;
    // The order may return before a generator on a slow processor has begun.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = from.read(DEVICE)?;
        if let Some(report) = pktgen_report(&result) {
            return Ok(report);
        }
        ensure!(Instant::now() < deadline, "pktgen is not done: {result}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// `Result: OK: 12345(c12000+d345) usec, 300000 (60byte,0frags)`; until a run has ended, the result
/// is that of the last setting.
fn pktgen_report(text: &str) -> Option<BlastReport> {
    let result = text.split_once("Result: OK: ")?.1;
    let micros = result.split('(').next()?.parse().ok()?;
    let frames = result
        .split_once("usec, ")?
        .1
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    Some(BlastReport { frames, micros })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_pktgen_is_understood() {
        let text =
            "Params: count 9\nResult: OK: 2000(c1990+d10) usec, 300 (60byte,0frags)\n  150000pps";
        assert_eq!(
            pktgen_report(text),
            Some(BlastReport {
                frames: 300,
                micros: 2000
            })
        );
    }
}
