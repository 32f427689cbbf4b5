//! Disks of a real guest: what was written stays, whoever is killed.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vvu_tests::Disks;

use crate::runner::Stage;

/// Requests are under way after this.
const LOAD: Duration = Duration::from_millis(1500);

/// Files and file systems on a virtio-blk disk: all that is read is what was written.
pub(crate) fn disk_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks()?, "vda")
}

fn files(disks: &Disks, disk: &str) -> Result<()> {
    disks.make_and_mount(disk)?;
    // Writes with flushes between them, then all is read; then blocks of the same file are
    // discarded, and others written.
    let writing = [
        "--rw=randwrite",
        "--size=8M",
        "--bsrange=4k-64k",
        "--fsync=64",
        "--fallocate=none",
    ];
    disks.finish_fio(&disks.start_fio("/mnt/a", &writing)?)?;
    let mixed = [
        "--rw=randrw",
        "--size=8M",
        "--bs=4k",
        "--verify_backlog=256",
    ];
    let mixed = disks.start_fio("/mnt/b", &mixed)?;
    disks.guest.run(&["rm", "/mnt/a"])?;
    disks.finish_fio(&mixed)?;
    disks.unmount_and_check(disk)?;
    trims(disks, disk)?;
    disks.no_errors()
}

/// Discards and writes at random, on the disk itself.
fn trims(disks: &Disks, disk: &str) -> Result<()> {
    let device = format!("/dev/{disk}");
    let trims = [
        "--rw=randtrimwrite",
        "--offset=64M",
        "--size=8M",
        "--bs=16k",
    ];
    disks.finish_fio(&disks.start_fio(&device, &trims)?)
}

/// The guest loses its power under load: what it was told to be there is there.
pub(crate) fn disk_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks()?, "vda")
}

fn power_cut(disks: &mut Disks, disk: &str) -> Result<()> {
    disks.make_and_mount(disk)?;
    // Not read there: it is when the power is back.
    let safe = ["--rw=randwrite", "--size=8M", "--bs=8k", "--end_fsync=1"];
    disks.finish_fio(&disks.start_fio("/mnt/safe", &[&safe[..], &["--do_verify=0"]].concat())?)?;
    disks.guest.run(&["sync"])?;
    let lost = disks.start_fio(
        "/mnt/lost",
        &["--rw=randwrite", "--size=96M", "--bs=4k", "--fsync=16"],
    )?;
    thread::sleep(LOAD);
    ensure!(!lost.has_ended(), "there is no load");
    disks.guest.kill_and_boot()?;
    disks.guest.ready()?;
    // The journal is played back.
    disks.mount(disk)?;
    disks.finish_fio(&disks.start_fio("/mnt/safe", &[&safe[..], &["--verify_only"]].concat())?)?;
    disks.unmount_and_check(disk)?;
    disks.no_errors()
}

/// The same disk, through an appliance.
pub(crate) fn vvu_disk_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks_via()?, "vda")
}

/// The guest loses its power, through an appliance.
pub(crate) fn vvu_disk_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks_via()?, "vda")
}
