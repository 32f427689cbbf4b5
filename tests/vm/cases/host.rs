//! The same program on the host, over AF_UNIX.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vvu_tests::traffic;

use crate::runner::Stage;

const MIB: u64 = 1 << 20;

/// From a front-end's connection to the first ring, on the host's own processors.
const ATTACH: Duration = Duration::from_millis(100);

/// Pings of every size and checked streams, with `vvu` as socket server for one neighbour and as
/// client for the other.
pub(crate) fn host_switch(stage: &mut Stage) -> Result<()> {
    let host = stage.host()?;
    for size in [56, 1472, 8972] {
        let report = traffic::ping(&host.a, &host.b, size, 20)?;
        ensure!(
            report.lost() == 0,
            "{} of {} pings of {size} bytes were lost",
            report.lost(),
            report.sent
        );
    }
    traffic::tcp(&host.a, &host.b, 64 * MIB)?;
    traffic::tcp(&host.b, &host.a, 64 * MIB)?;
    Ok(())
}

/// `vvu` dies without a word and is started again; the neighbours are not touched, and attached
/// again in no time.
pub(crate) fn host_switch_killed(stage: &mut Stage) -> Result<()> {
    let host = stage.host()?;
    host.restart_vvu()?;
    let resumed = traffic::answers_within(&host.a, &host.b, Duration::from_secs(5))?;
    ensure!(
        resumed,
        "traffic has not resumed; vvu says: {}",
        host.vvu.output()
    );
    traffic::tcp(&host.a, &host.b, 16 * MIB)?;
    for port in ["a.sock", "b.sock"] {
        let time = attach_time(&host.vvu.output(), port)?;
        ensure!(
            time < ATTACH,
            "attaching to {port} took {time:?}, more than {ATTACH:?}"
        );
    }
    Ok(())
}

/// From the front-end's connection to the start of its first ring, by the times in the log. It
/// bounds our own share of it from above.
fn attach_time(log: &str, port: &str) -> Result<Duration> {
    let time_of = |event: &str| {
        let line = log
            .lines()
            .find(|line| line.contains(port) && line.contains(event));
        line.and_then(time_of_day)
            .with_context(|| format!("no {event:?} of {port} in the log: {log}"))
    };
    let (connected, started) = (time_of("front-end connected")?, time_of("ring started")?);
    started
        .checked_sub(connected)
        .context("the log's time goes backwards")
}

/// `2026-11-20T17:52:57.343155Z ...`
fn time_of_day(line: &str) -> Option<Duration> {
    let mut parts = line.split_once('T')?.1.split_once('Z')?.0.split(':');
    let hours: u32 = parts.next()?.parse().ok()?;
    let minutes: u32 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(
        Duration::from_secs((hours * 3600 + minutes * 60).into())
            + Duration::from_secs_f64(seconds),
    )
}
