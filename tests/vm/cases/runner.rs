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
        self.host = None;
        if self.trio.is_none() {
            let lab = self.lab()?;
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

    /// `vvu` on the host between two neighbours.
    pub(crate) fn host(&mut self) -> Result<&mut HostTrio> {
        self.trio = None;
        if self.host.is_none() {
            self.host = Some(HostTrio::boot(self.lab()?)?);
        }
        self.host.as_mut().context("the machines that just booted")
    }

    /// An empty lab, for a case with machines of its own.
    pub(crate) fn own_lab(&mut self) -> Result<Lab> {
        self.trio = None;
        self.host = None;
        self.lab()
    }

    fn lab(&mut self) -> Result<Lab> {
        let lab = Lab::new(self.case)?;
        self.logs = Some(lab.logs().to_owned());
        Ok(lab)
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
