//! The machines that cases share.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use vvu_tests::runner::{self, Missing};
use vvu_tests::{HostTrio, Lab, Trio, setup};

/// What is there when a case begins. At most one line-up is up.
#[derive(Default)]
pub(crate) struct Stage {
    trio: Option<Trio>,
    host: Option<HostTrio>,
    case: String,
    logs: Option<PathBuf>,
}

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
        let lab = Lab::new(&self.case)?;
        self.logs = Some(lab.logs().to_owned());
        Ok(lab)
    }
}

impl runner::Stage for Stage {
    fn begin(&mut self, case: &str) -> Result<()> {
        static MISSING: OnceLock<Option<String>> = OnceLock::new();
        case.clone_into(&mut self.case);
        let missing =
            MISSING.get_or_init(|| setup::ensure_ready().err().map(|what| format!("{what:#}")));
        match missing {
            None => Ok(()),
            Some(what) => Err(Missing(what.clone()).into()),
        }
    }

    fn clear(&mut self, skipped: bool) {
        if let (false, Some(logs)) = (skipped, &self.logs) {
            println!("     logs are in {}", logs.display());
        }
        *self = Self::default();
    }
}

/// A case's name and what it does.
pub(crate) type Case = (&'static str, fn(&mut Stage) -> Result<()>);

/// Runs the cases that the command line asks for.
pub(crate) fn run(cases: &[Case]) -> ExitCode {
    let cases = cases.iter().map(|(name, case)| {
        (
            name.to_string(),
            Box::new(*case) as Box<dyn Fn(&mut Stage) -> _>,
        )
    });
    runner::run(&mut Stage::default(), cases.collect())
}
