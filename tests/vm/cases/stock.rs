//! The same switch where no VMM is patched: `vvu device` on the host serves the appliance's
//! functions over vfio-user.

use std::time::Duration;

use anyhow::{Result, ensure};
use vvu_tests::ServedFunction;

use crate::appliance;
use crate::runner::Stage;

/// `vvu` looks at its functions at least once a second.
const NOTICED: Duration = Duration::from_secs(10);

/// A neighbour's firmware and kernel find its network card in this time.
const BOOT: Duration = Duration::from_secs(60);

/// Pings of every size, and streams whose checksums are compared, in both directions.
pub(crate) fn stock_switch(stage: &mut Stage) -> Result<()> {
    let trio = stage.stock()?;
    appliance::ping_both_ways(trio)?;
    appliance::stream_both_ways(trio)
}

/// See `idle_and_wake`. Once a second `vvu` looks whether its functions are still there, and each
/// of those registers is read by way of another process.
pub(crate) fn stock_idle(stage: &mut Stage) -> Result<()> {
    appliance::idle(stage.stock()?, 6.0)
}

/// See `vvu_killed`.
pub(crate) fn stock_vvu_killed(stage: &mut Stage) -> Result<()> {
    appliance::kill_vvu(stage.stock()?)
}

/// See `neighbour_killed`. The new VMM finds its memory's file as the old one left it.
pub(crate) fn stock_neighbour_killed(stage: &mut Stage) -> Result<()> {
    appliance::kill_neighbour(stage.stock()?)
}

/// What serves a function dies: the appliance lives on and `vvu` says what it lost. The VMM does not
/// come back to a function that was served anew.
pub(crate) fn stock_device_killed(stage: &mut Stage) -> Result<()> {
    let trio = stage.stock()?;
    trio.functions[0].process.kill()?;
    trio.vvu
        .wait_for_text("front-end gone reason=the device does not answer", NOTICED)?;
    trio.appliance.read("/proc/uptime")?;
    ensure!(
        !trio.vvu.has_ended(),
        "vvu has ended: {}",
        trio.vvu.printed()
    );
    stage.end_all();
    Ok(())
}

/// A neighbour with other memory than the file that its function was started with is refused, and
/// the log says why. `vvu` on the host drives the function.
pub(crate) fn stock_other_memory(stage: &mut Stage) -> Result<()> {
    let lab = stage.stock_lab()?;
    let mut function = ServedFunction::start(&lab, "a")?;
    let ports = [
        format!("vfio-user:{}", function.vfio_user().display()),
        "null:".to_owned(),
    ];
    let mut vvu = lab.vvu(&ports)?;
    let _neighbour = lab.neighbour("a").unix(function.socket()).boot()?;
    function
        .process
        .wait_for_text("and this device can show", BOOT)?;
    ensure!(
        vvu.ended()?.is_none() && function.process.ended()?.is_none(),
        "a process has ended: {}{}",
        vvu.output(),
        function.process.output()
    );
    Ok(())
}
