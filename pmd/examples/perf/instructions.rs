//! Instructions per packet by callgrind, compared with those in docs/performance.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use vvu_pmd::net::{NetConfig, feature as net};
use vvu_pmd::vring::feature as ring;

use crate::callgrind::{self, cell_done, measured_poll};
use crate::rig::{BUFFER, Guest, Rig, mac};

/// What may be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare with the table in docs/performance.md; fail if a cell grew
    #[arg(long)]
    check: bool,
    /// Put the table into docs/performance.md
    #[arg(long, conflicts_with = "check")]
    accept: bool,
    /// Run the cells, under callgrind
    #[arg(long, hide = true)]
    inner: bool,
}

const SIZES: [usize; 3] = [64, 256, 1518];

/// Rounds before counting: all buffers were used once, and what is learnt is learnt.
const WARM_UP: usize = 16;
/// Rounds counted.
const ROUNDS: usize = 64;

/// How much a cell may grow before it fails: compilers, and what a C library's memcpy does on
/// other processors, differ by less.
const MARGIN: f64 = 1.05;

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

/// Name of a row, and instructions per packet by size.
type Table = BTreeMap<(String, String), Vec<f64>>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.inner {
        return run_cells();
    }
    let found = under_callgrind()?;
    let text = emit(&found);
    print!("{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
    let document = std::fs::read_to_string(&path).context("docs/performance.md")?;
    let (before, recorded, after) = split(&document)?;
    if args.accept {
        std::fs::write(&path, format!("{before}{text}{after}"))?;
    }
    if args.check && cfg!(target_arch = "x86_64") {
        compare(&found, &parse(recorded)?)?;
    }
    Ok(())
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
fn under_callgrind() -> anyhow::Result<Table> {
    let counts = callgrind::count(&["instructions", "--inner"])?;
    let mut counts = counts.chunks_exact(SIZES.len());
    let mut table = Table::new();
    for (driver, _) in drivers() {
        for (_, way) in WAYS {
            let row = counts.next().context("a cell is missing")?;
            table.insert((driver.into(), way.into()), row.to_vec());
        }
    }
    Ok(table)
}

const BEGIN: &str = "<!-- ./run perf instructions --accept -->\n";
const END: &str = "<!-- end -->\n";

/// What is before the table in the document, the table, and what is behind it.
fn split(document: &str) -> anyhow::Result<(&str, &str, &str)> {
    let found = document.find(BEGIN).map(|at| at + BEGIN.len());
    let ends = found.and_then(|start| Some((start, start + document[start..].find(END)?)));
    let (start, end) = ends.context("docs/performance.md has no place for the table")?;
    Ok((&document[..start], &document[start..end], &document[end..]))
}

fn emit(table: &Table) -> String {
    let mut text = String::from("| rings | |");
    for size in SIZES {
        let _ = write!(text, " {size} |");
    }
    text += "\n|---|---|---|---|---|\n";
    for (driver, _) in DRIVERS {
        for (_, way) in WAYS {
            if let Some(row) = table.get(&(driver.into(), way.into())) {
                let _ = write!(text, "| {driver} | {way} |");
                for cell in row {
                    let _ = write!(text, " {cell:.1} |");
                }
                text.push('\n');
            }
        }
    }
    text
}

fn parse(text: &str) -> anyhow::Result<Table> {
    let mut table = Table::new();
    for line in text.lines().skip(2) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [driver, way, numbers @ ..] = cells.as_slice() else {
            bail!("no row of instructions: {line:?}");
        };
        let numbers = numbers.iter().map(|n| n.parse::<f64>());
        let numbers = numbers.collect::<Result<_, _>>();
        let numbers = numbers.with_context(|| format!("no row of instructions: {line:?}"))?;
        table.insert(((*driver).into(), (*way).into()), numbers);
    }
    Ok(table)
}

fn compare(found: &Table, recorded: &Table) -> anyhow::Result<()> {
    let mut wrong = String::new();
    for ((driver, way), row) in found {
        let known = recorded.get(&(driver.clone(), way.clone()));
        for (column, (size, now)) in SIZES.iter().zip(row).enumerate() {
            match known.and_then(|known| known.get(column)) {
                Some(known) if *now <= known * MARGIN => {}
                Some(known) => {
                    let percent = (now / known - 1.0) * 100.0;
                    let _ = writeln!(
                        wrong,
                        "{driver}, {way}, {size} bytes: {now:.1} instructions per packet, \
                         {percent:.1} % more than the {known:.1} recorded"
                    );
                }
                None => {
                    let _ = writeln!(wrong, "{driver}, {way}, {size} bytes: not recorded yet");
                }
            }
        }
    }
    for key in recorded.keys().filter(|key| !found.contains_key(*key)) {
        let _ = writeln!(
            wrong,
            "{}, {}: recorded, but cannot be had any more",
            key.0, key.1
        );
    }
    ensure!(
        wrong.is_empty(),
        "{wrong}If that has to be (or the compiler is another): ./run perf instructions --accept, \
         and say why in the commit"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table(cell: f64) -> Table {
        Table::from([(("split".into(), "g2b".into()), vec![cell, 20.0, 30.0])])
    }

    #[test]
    fn what_grew_is_named() {
        assert!(compare(&table(10.4), &table(10.0)).is_ok());
        assert!(compare(&table(5.0), &table(10.0)).is_ok());
        let error = compare(&table(10.6), &table(10.0)).unwrap_err().to_string();
        assert!(error.contains("split, g2b, 64 bytes: 10.6"), "{error}");
        assert!(!error.contains("256 bytes"), "{error}");
        let error = compare(&table(1.0), &Table::new()).unwrap_err().to_string();
        assert!(error.contains("not recorded"), "{error}");
        let error = compare(&Table::new(), &table(1.0)).unwrap_err().to_string();
        assert!(error.contains("cannot be had"), "{error}");
    }

    #[test]
    fn the_table_is_read_as_it_was_written() {
        let document = format!("before\n{BEGIN}{}{END}after\n", emit(&table(10.0)));
        let (before, text, after) = split(&document).unwrap();
        assert!(before.starts_with("before") && after.ends_with("after\n"));
        assert_eq!(parse(text).unwrap(), table(10.0));
        assert!(split("no table").is_err());
        assert!(parse("| |\n|---|\n| split | g2b | many |").is_err());
    }

    #[test]
    fn every_cell_forwards_what_is_sent() {
        for (_, features) in drivers() {
            for (way, _) in WAYS {
                assert!(run_cell(way, features, 64).unwrap() > 0);
            }
        }
    }
}
