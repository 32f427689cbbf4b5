//! Instructions per packet by callgrind, compared with those in docs/performance.md.

use anyhow::Context;
use vvu_pmd::net::{NetConfig, feature as net};
use vvu_pmd::vring::feature as ring;

use crate::callgrind::{self, cell_done, measured_poll};
use crate::rig::{BUFFER, Guest, Rig, mac};
use crate::table::{Cells, Keep, Shape};

/// What may be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    keep: Keep,
    /// Run the cells, under callgrind
    #[arg(long, hide = true)]
    inner: bool,
}

const SIZES: [usize; 3] = [64, 256, 1518];

/// Rounds before counting: all buffers were used once, and what is learnt is learnt.
const WARM_UP: usize = 16;
/// Rounds counted.
const ROUNDS: usize = 64;

/// Directions, named as in the tables beside DPDK.
#[derive(Debug, Clone, Copy)]
enum Way {
    G2b,
    B2g,
    Loop,
    Switch,
}

const WAYS: [(Way, &str); 4] = [
    (Way::G2b, "g2b"),
    (Way::B2g, "b2g"),
    (Way::Loop, "loop"),
    (Way::Switch, "switch"),
];

/// What drivers accept. A driver that accepts what is not offered has no cell.
const DRIVERS: [(&str, u64); 10] = [
    ("split", 0),
    ("split mergeable", net::MRG_RXBUF),
    ("split in-order", IN_ORDER),
    ("split mergeable in-order", IN_ORDER | net::MRG_RXBUF),
    ("split, as Linux", LINUX),
    ("packed", PACKED),
    ("packed mergeable", PACKED | net::MRG_RXBUF),
    ("packed in-order", PACKED | IN_ORDER),
    (
        "packed mergeable in-order",
        PACKED | IN_ORDER | net::MRG_RXBUF,
    ),
    ("packed, as Linux", PACKED | LINUX),
];

/// What Linux's driver accepts besides.
const LINUX: u64 = net::OFFLOADS | net::MRG_RXBUF | ring::EVENT_IDX | ring::INDIRECT_DESC;

/// VIRTIO_F_RING_PACKED and VIRTIO_F_IN_ORDER (VIRTIO 1.2, 6).
const PACKED: u64 = 1 << 34;
/// See [`PACKED`].
const IN_ORDER: u64 = 1 << 35;

/// Drivers that can be had, and their features.
fn drivers() -> impl Iterator<Item = (&'static str, u64)> {
    let card = NetConfig {
        mac: mac(0, 0),
        ..NetConfig::default()
    };
    let offered = card.features();
    let possible = DRIVERS.into_iter().filter(move |(_, f)| f & !offered == 0);
    possible.map(|(name, features)| (name, features | ring::VERSION_1 | net::MAC))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.inner {
        return run_cells();
    }
    let rows = DRIVERS
        .iter()
        .flat_map(|(driver, _)| WAYS.map(|(_, way)| (*driver, way)));
    let shape = Shape {
        command: "instructions",
        rows: rows.collect(),
        columns: &["64", "256", "1518"],
        of: "packet",
    };
    shape.finish(&under_callgrind()?, &args.keep)
}

fn run_cells() -> anyhow::Result<()> {
    for (_, features) in drivers() {
        for (way, _) in WAYS {
            for size in SIZES {
                let packets = run_cell(way, features, size)?;
                cell_done(packets);
            }
        }
    }
    Ok(())
}

/// Runs a cell. Returns the packets that were counted.
fn run_cell(way: Way, features: u64, size: usize) -> anyhow::Result<usize> {
    let mut rig = Rig::new()?;
    let mut guests = vec![rig.guest(features, BUFFER)?];
    match way {
        Way::G2b => rig.null(),
        Way::B2g => rig.generator(size, 0)?,
        Way::Loop => {
            rig.echo();
        }
        Way::Switch => guests.push(rig.guest(features, BUFFER)?),
    }
    let sends = !matches!(way, Way::B2g);
    // The neighbour, if there is one.
    let peer = |guest: &Guest| 1 - guest.number;
    let mut packets = 0;
    for round in 0..WARM_UP + ROUNDS {
        for guest in &mut guests {
            let addresses = [mac(peer(guest), 0), mac(guest.number, 0)];
            if sends {
                guest.send(size, || addresses);
            }
        }
        let before = rig.packets();
        if round < WARM_UP {
            rig.switch.poll(0);
        } else {
            measured_poll(&mut rig.switch);
            packets += rig.packets() - before;
        }
        for guest in &mut guests {
            guest.receive();
        }
    }
    rig.check()?;
    Ok(packets)
}

/// Runs all cells in a process of their own, and puts the counts together.
fn under_callgrind() -> anyhow::Result<Cells> {
    let counts = callgrind::count(&["instructions", "--inner"])?;
    let mut counts = counts.chunks_exact(SIZES.len());
    let mut table = Cells::new();
    for (driver, _) in drivers() {
        for (_, way) in WAYS {
            let row = counts.next().context("a cell is missing")?;
            table.insert((driver.into(), way.into()), row.to_vec());
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_cell_forwards_what_is_sent() {
        for (_, features) in drivers() {
            for (way, _) in WAYS {
                assert!(run_cell(way, features, 64).unwrap() > 0);
            }
        }
    }
}
