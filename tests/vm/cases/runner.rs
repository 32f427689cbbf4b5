//! Runs a table of cases one after the other, with the machines that they share.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fmt};

use anyhow::{Context, Error, Result, bail};
use vvu_tests::{HostTrio, Lab, Trio, setup};

/// The machines that cases share. At most one line-up is up.
#[derive(Default)]
pub(crate) struct Stage {
    trio: Option<Trio>,
    stock: Option<Trio>,
    host: Option<HostTrio>,
    case: &'static str,
    logs: Option<PathBuf>,
}

/// What a case cannot run without on this machine.
#[derive(Debug)]
struct Missing(String);

impl Stage {
    /// An appliance between two neighbours.
    pub(crate) fn trio(&mut self) -> Result<&mut Trio> {
        if self.trio.is_none() {
            let lab = self.own_lab()?;
            if !lab.can_have_appliance()? {
                bail!(Missing(
                    "this QEMU has no virtio-vhost-user-pci; unset VVU_QEMU to build one that has"
                        .into()
                ));
            }
            self.trio = Some(Trio::boot(lab, 2)?);
        }
        self.trio.as_mut().context("the machines that just booted")
    }

    /// The same, none of whose VMMs is patched.
    pub(crate) fn stock(&mut self) -> Result<&mut Trio> {
        if self.stock.is_none() {
            self.clear();
            let lab = match Lab::stock(self.case) {
                Ok(lab) => lab,
                Err(error) => bail!(Missing(format!("there is no unpatched QEMU: {error:#}"))),
            };
            if !lab.can_have_served_functions()? {
                bail!(Missing(
                    "this QEMU has no vfio-user-pci; unset VVU_STOCK_QEMU to build one that has"
                        .into()
                ));
            }
            self.logs = Some(lab.logs().to_owned());
            self.stock = Some(Trio::boot_served(lab, 1)?);
        }
        self.stock.as_mut().context("the machines that just booted")
    }

    /// `vvu` on the host between two neighbours.
    pub(crate) fn host(&mut self) -> Result<&mut HostTrio> {
        if self.host.is_none() {
            self.host = Some(HostTrio::boot(self.own_lab()?)?);
        }
        self.host.as_mut().context("the machines that just booted")
    }

    /// An empty lab, for a case with machines of its own.
    pub(crate) fn own_lab(&mut self) -> Result<Lab> {
        self.clear();
        let lab = Lab::new(self.case)?;
        self.logs = Some(lab.logs().to_owned());
        Ok(lab)
    }

    /// Ends whatever is up.
    fn clear(&mut self) {
        (self.trio, self.stock, self.host) = (None, None, None);
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// A case's name and what it does.
pub(crate) type Case = (&'static str, fn(&mut Stage) -> Result<()>);

/// Runs the cases that the command line asks for.
pub(crate) fn run(cases: &[Case]) -> ExitCode {
    // Options of libtest, such as --nocapture, have no meaning here: output is never captured.
    let (options, filters): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|word| word.starts_with('-'));
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let cases: Vec<&Case> = cases.iter().filter(|(name, _)| wanted(name)).collect();
    if options.iter().any(|option| option == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let mut stage = Stage::default();
    let missing = setup::ensure_ready()
        .err()
        .map(|error| format!("{error:#}"));
    let mut failed = 0;
    for (name, case) in &cases {
        print!("test {name} ... ");
        // A test must not fail because nobody reads along.
        let _ = io::stdout().flush();
        let case_start = Instant::now();
        stage.case = name;
        let outcome = match &missing {
            None => case(&mut stage),
            Some(what) => Err(Missing(what.clone()).into()),
        };
        let Err(error) = outcome else {
            println!("ok ({:.1} s)", case_start.elapsed().as_secs_f64());
            continue;
        };
        failed += usize::from(!report(&error, &mut stage));
    }
    println!(
        "\n{} cases, {failed} failed, {:.0} s",
        cases.len(),
        start.elapsed().as_secs_f64()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Says what went wrong and clears the stage. Nothing may be skipped where somebody relies on the
/// outcome: with `CI` set a case that cannot run has failed.
fn report(error: &Error, stage: &mut Stage) -> bool {
    let skipped = error.is::<Missing>();
    let tolerated = skipped && env::var_os("CI").is_none();
    println!(
        "{}: {error:#}",
        if tolerated { "SKIPPED" } else { "FAILED" }
    );
    let logs = stage.logs.take();
    if let (false, Some(logs)) = (skipped, logs) {
        println!("     logs are in {}", logs.display());
    }
    *stage = Stage::default();
    tolerated
}
