//! The same program on the host, over AF_UNIX.

use std::time::Duration;

use anyhow::{Result, ensure};
use vvu_tests::traffic;

use crate::runner::Stage;

const MIB: u64 = 1 << 20;

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

/// `vvu` dies without a word and is started again; the neighbours are not touched.
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
    Ok(())
}
