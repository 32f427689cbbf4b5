//! A room for virtual machines under test.
//!
//! A [`Lab`] owns a scratch directory and everything that was started in it. Its guests are QEMU
//! processes whose whole userland is one static program, the agent (`vm/agent`), which runs
//! commands and traffic for the host over a serial port. A test reads like prose:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use vvu_tests::{Lab, start_vvu, traffic};
//!
//! let lab = Lab::new("ping")?;
//! let appliance = lab.appliance().functions(2).boot()?;
//! let a = lab.neighbour("a").via(&appliance, 0).mtu(9000).boot()?;
//! let b = lab.neighbour("b").via(&appliance, 1).mtu(9000).boot()?;
//! let switch = start_vvu(&appliance)?;
//! let report = traffic::ping(&a, &b, 1472, 10)?;
//! assert_eq!(report.lost(), 0);
//! switch.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! | file | what lives there |
//! |---|---|
//! | `lab` | [`Lab`]: the scratch directory, the builders of its guests, programs on the host |
//! | `guest`, `job` | [`Guest`]: one VM: boot, reset, kill, hot-add memory; [`Job`]: a program in it |
//! | `channel` | the host's end of the agent's serial port |
//! | `wire` | what host and agent say to each other |
//! | `traffic` | ping, TCP and UDP with checked contents, frame blasts between guests |
//! | `card` | what a guest says of its interface: features, counters |
//! | `firmware` | a disk that firmware can boot |
//! | `disks` | the usual line-up of a guest with disks and what serves them |
//! | `trio` | the usual line-ups of two or three neighbours and one back-end |
//! | `store`, `tools` | guests with disks, and what they have to use them |
//! | `served` | functions that a process on the host serves over vfio-user |
//! | `qemu`, `accel`, `qmp` | command lines, the choice of KVM or TCG, the monitor |
//! | `process` | a child that dies with us and whose output is kept |
//! | `image`, `cpio`, `kernel`, `binaries` | what a guest boots from |
//! | `setup` | what the machine must have, and how to get it |
//! | `runner` | tables of cases, one line for each |
//!
//! | variable | what it decides |
//! |---|---|
//! | `VVU_QEMU` | a patched QEMU to use instead of the one that `qemu-patches/build` makes |
//! | `VVU_STOCK_QEMU` | the same for the QEMU that nobody patched |
//! | `VVU_BIN` | a static `vvu` to use instead of building it |
//! | `VVU_ACCEL` | `kvm` or `tcg`, without probing |
//! | `VVU_CACHE` | where downloads are kept, else `$XDG_CACHE_HOME/vvu` or `~/.cache/vvu` |
//! | `VVU_TEST_KERNEL` | an unpacked kernel package (with `bin/busybox`, if you like) where there is no apt |
//! | `CI` | if set, a case that cannot run here has failed |

#![forbid(unsafe_code)]

pub mod accel;
pub mod binaries;
mod card;
mod channel;
mod cpio;
mod disks;
mod firmware;
mod guest;
mod image;
mod job;
mod kernel;
mod lab;
mod process;
mod qemu;
mod qmp;
pub mod runner;
mod served;
pub mod setup;
mod store;
mod tools;
pub mod traffic;
mod trio;
pub mod wire;

pub use card::Counters;
pub use disks::{DISK, Disks, Server};
pub use firmware::bootable_disk;
pub use guest::Guest;
pub use job::{Job, Output};
pub use lab::{Appliance, Lab, Neighbour};
pub use process::Process;
pub use qemu::Qemu;
pub use qmp::Qmp;
pub use served::ServedFunction;
pub use store::Store;
pub use trio::{HostTrio, NO_OFFLOADS, Quartet, Trio, start_vvu, start_vvu_with};
