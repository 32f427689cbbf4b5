//! The same switch where no VMM is patched: `vvu device` on the host serves the appliance's
//! functions over vfio-user.

use anyhow::Result;

use crate::appliance;
use crate::runner::Stage;

/// Pings of every size, and streams whose checksums are compared, in both directions.
pub(crate) fn stock_switch(stage: &mut Stage) -> Result<()> {
    let trio = stage.stock()?;
    appliance::ping_both_ways(trio)?;
    appliance::stream_both_ways(trio)
}

/// See `idle_and_wake`.
pub(crate) fn stock_idle(stage: &mut Stage) -> Result<()> {
    appliance::idle(stage.stock()?)
}

/// See `vvu_killed`.
pub(crate) fn stock_vvu_killed(stage: &mut Stage) -> Result<()> {
    appliance::kill_vvu(stage.stock()?)
}

/// See `neighbour_killed`. The new VMM finds its memory's file as the old one left it.
pub(crate) fn stock_neighbour_killed(stage: &mut Stage) -> Result<()> {
    appliance::kill_neighbour(stage.stock()?)
}
