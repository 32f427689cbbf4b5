//! Three machines, shown to somebody who sees them for the first time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use vvu_tests::traffic::{self, Transfer};
use vvu_tests::{Guest, Lab, Trio, setup};

use crate::{say, table};

const MIB: u64 = 1 << 20;

/// What the command line asks for.
pub(crate) struct Options {
    verbose: bool,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options { verbose: false };
        for word in words {
            match word.as_str() {
                "--verbose" => options.verbose = true,
                _ => bail!("demo does not know {word}"),
            }
        }
        Ok(options)
    }
}

/// Boots, shows, and cleans up.
pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    say("looking for what a lab needs");
    setup::ensure_ready()?;
    say("preparing QEMU, a Debian kernel and the guests' images");
    let lab = Lab::new("demo")?;
    ensure!(
        lab.can_have_appliance()?,
        "this QEMU has no virtio-vhost-user-pci; unset VVU_QEMU to build one that has"
    );
    say(&format!(
        "booting the appliance and its neighbours a and b ({})",
        lab.accelerator().argument()
    ));
    let mut trio = Trio::boot(lab, 1)?;
    say(&format!(
        "all three are up after {:.0} s, and a reaches b",
        start.elapsed().as_secs_f64()
    ));
    if options.verbose {
        for guest in [&trio.appliance, &trio.a, &trio.b] {
            println!("{}\n", guest.command_line());
        }
    }
    println!("\n   a {} ── vhost-user ──┐", trio.a.address()?);
    println!("                              ├─ appliance: vvu net (virtio-vhost-user, vfio-pci)");
    println!("   b {} ── vhost-user ──┘\n", trio.b.address()?);
    let mut rows = vec![["what", "from", "to", "result"].map(str::to_owned).to_vec()];
    for size in [56, 1472, 8972] {
        rows.push(ping(&trio.a, &trio.b, size)?);
    }
    for (from, to) in [(&trio.a, &trio.b), (&trio.b, &trio.a)] {
        rows.push(stream(from, to)?);
    }
    say("killing vvu in the appliance and starting it again");
    rows.push(kill_and_resume(&mut trio)?);
    println!();
    table::print(&rows);
    say(&format!(
        "done after {:.0} s; logs are in {}",
        start.elapsed().as_secs_f64(),
        trio.lab.logs().display()
    ));
    Ok(())
}

fn kill_and_resume(trio: &mut Trio) -> Result<Vec<String>> {
    trio.vvu.kill()?;
    let start = Instant::now();
    trio.restart_vvu()?;
    let resumed = traffic::answers_within(&trio.a, &trio.b, Duration::from_secs(20))?;
    ensure!(
        resumed,
        "traffic has not resumed; vvu says: {}",
        trio.vvu.printed()
    );
    let result = format!(
        "traffic resumed after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    Ok(row("vvu killed and started", &trio.a, &trio.b, result))
}

fn ping(from: &Guest, to: &Guest, size: u16) -> Result<Vec<String>> {
    say(&format!(
        "{} pings {} with {size} bytes",
        from.name(),
        to.name()
    ));
    let report = traffic::ping(from, to, size, 50)?;
    let median = report.median().unwrap_or_default() as f64 / 1000.0;
    let result = format!(
        "{} of {} replies, median {median:.2} ms",
        report.micros.len(),
        report.sent
    );
    Ok(row(&format!("ping {size} bytes"), from, to, result))
}

fn stream(from: &Guest, to: &Guest) -> Result<Vec<String>> {
    say(&format!(
        "{} sends {} 128 MiB over TCP, with checksums",
        from.name(),
        to.name()
    ));
    let rate = Transfer::start(from, to, 128 * MIB)?.finish(Duration::from_secs(120))?;
    Ok(row(
        "TCP 128 MiB",
        from,
        to,
        format!("{rate:.0} Mbit/s, checksums equal"),
    ))
}

fn row(what: &str, from: &Guest, to: &Guest, result: String) -> Vec<String> {
    vec![
        what.to_owned(),
        from.name().to_owned(),
        to.name().to_owned(),
        result,
    ]
}
