//! What vvu promises, seen in real virtual machines.
//!
//! `cargo test -p vvu-tests --test vm [-- FILTER...]`. The cases share booted machines and run in
//! the order of the table; a case that fails leaves its logs in `target/vm-logs/<case>` and the
//! next one starts with fresh machines.

mod appliance;
mod disks;
mod host;
mod offloads;
mod refusals;
mod runner;
mod stock;

use std::process::ExitCode;

fn main() -> ExitCode {
    runner::run(&[
        ("pings_of_every_size", appliance::pings_of_every_size),
        ("tcp_both_ways", appliance::tcp_both_ways),
        ("two_queue_pairs", appliance::two_queue_pairs),
        ("idle_and_wake", appliance::idle_and_wake),
        ("vvu_killed", appliance::vvu_killed),
        ("neighbour_reboots", appliance::neighbour_reboots),
        ("neighbour_killed", appliance::neighbour_killed),
        (
            "memory_added_under_load",
            appliance::memory_added_under_load,
        ),
        ("appliance_reset", appliance::appliance_reset),
        ("packed_rings", offloads::packed_rings),
        ("long_frames_cross", offloads::long_frames_cross),
        ("plain_neighbour", offloads::plain_neighbour),
        ("all_queues", offloads::all_queues),
        ("long_datagrams_cross", offloads::long_datagrams_cross),
        ("refusals", refusals::refusals),
        ("no_iommu", refusals::no_iommu),
        ("window_too_small", refusals::window_too_small),
        ("stock_switch", stock::stock_switch),
        ("stock_idle", stock::stock_idle),
        ("stock_vvu_killed", stock::stock_vvu_killed),
        ("stock_neighbour_killed", stock::stock_neighbour_killed),
        ("stock_device_killed", stock::stock_device_killed),
        ("stock_other_memory", stock::stock_other_memory),
        ("host_switch", host::host_switch),
        ("host_switch_killed", host::host_switch_killed),
        ("disk_files", disks::disk_files),
        ("disk_grows", disks::disk_grows),
        ("scsi_files", disks::scsi_files),
        ("scsi_tools", disks::scsi_tools),
        ("disk_power_cut", disks::disk_power_cut),
        ("scsi_power_cut", disks::scsi_power_cut),
        ("disk_vvu_killed", disks::disk_vvu_killed),
        ("disk_firmware", disks::disk_firmware),
        ("vvu_disk_files", disks::vvu_disk_files),
        ("vvu_disk_grows", disks::vvu_disk_grows),
        ("vvu_scsi_files", disks::vvu_scsi_files),
        ("vvu_disk_power_cut", disks::vvu_disk_power_cut),
        ("vvu_scsi_power_cut", disks::vvu_scsi_power_cut),
        ("vvu_disk_vvu_killed", disks::vvu_disk_vvu_killed),
    ])
}
