//! The machines that cases share.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use vvu_tests::runner::{self, Missing};
use vvu_tests::{Disks, HostTrio, Lab, Quartet, Trio, setup};

/// What is there when a case begins. At most one line-up is up.
#[derive(Default)]
pub(crate) struct Stage {
    trio: Option<Trio>,
    stock: Option<Trio>,
    host: Option<HostTrio>,
    quartet: Option<Quartet>,
    disks: Option<Disks>,
    disks_via: Option<Disks>,
    case: String,
    logs: Option<PathBuf>,
}

impl Stage {
    /// An appliance between two neighbours.
    pub(crate) fn trio(&mut self) -> Result<&mut Trio> {
        if self.trio.is_none() {
            let lab = self.own_lab()?;
            has_appliance(&lab)?;
            self.trio = Some(Trio::boot(lab, 2)?);
        }
        self.trio.as_mut().context("the machines that just booted")
    }

    /// An appliance between three neighbours whose cards differ.
    pub(crate) fn quartet(&mut self) -> Result<&mut Quartet> {
        if self.quartet.is_none() {
            self.end_all();
            let lab = match Lab::newer(&self.case) {
                Ok(lab) => lab,
                Err(error) => bail!(Missing(format!("there is no newer kernel: {error:#}"))),
            };
            self.logs = Some(lab.logs().to_owned());
            has_appliance(&lab)?;
            self.quartet = Some(Quartet::boot(lab)?);
        }
        let quartet = self.quartet.as_mut();
        quartet.context("the machines that just booted")
    }

    /// The same, none of whose VMMs is patched.
    pub(crate) fn stock(&mut self) -> Result<&mut Trio> {
        if self.stock.is_none() {
            let lab = self.stock_lab()?;
            self.stock = Some(Trio::boot_served(lab, 1)?);
        }
        self.stock.as_mut().context("the machines that just booted")
    }

    /// An empty lab with a QEMU that nobody patched.
    pub(crate) fn stock_lab(&mut self) -> Result<Lab> {
        self.end_all();
        let lab = match Lab::stock(&self.case) {
            Ok(lab) => lab,
            Err(error) => bail!(Missing(format!("there is no unpatched QEMU: {error:#}"))),
        };
        if !lab.can_have_served_functions()? {
            bail!(Missing(
                "this QEMU has no vfio-user-pci; unset VVU_STOCK_QEMU to build one that has".into()
            ));
        }
        self.logs = Some(lab.logs().to_owned());
        Ok(lab)
    }

    /// `vvu` on the host between two neighbours.
    pub(crate) fn host(&mut self) -> Result<&mut HostTrio> {
        if self.host.is_none() {
            self.host = Some(HostTrio::boot(self.own_lab()?)?);
        }
        self.host.as_mut().context("the machines that just booted")
    }

    /// A guest whose disks programs on the host serve.
    pub(crate) fn disks(&mut self) -> Result<&mut Disks> {
        if self.disks.is_none() {
            let lab = self.lab_with_disks()?;
            self.disks = Some(Disks::on_host(lab)?);
        }
        self.disks.as_mut().context("the machines that just booted")
    }

    /// A guest whose disks programs in an appliance serve.
    pub(crate) fn disks_via(&mut self) -> Result<&mut Disks> {
        if self.disks_via.is_none() {
            let lab = self.lab_with_disks()?;
            has_appliance(&lab)?;
            self.disks_via = Some(Disks::through_appliance(lab)?);
        }
        let disks = self.disks_via.as_mut();
        disks.context("the machines that just booted")
    }

    /// An empty lab, with what guests with disks need.
    pub(crate) fn lab_with_disks(&mut self) -> Result<Lab> {
        if let Err(error) = setup::ensure_ready_for_disks() {
            bail!(Missing(format!("{error:#}")));
        }
        self.own_lab()
    }

    /// An empty lab, for a case with machines of its own.
    pub(crate) fn own_lab(&mut self) -> Result<Lab> {
        self.end_all();
        let lab = Lab::new(&self.case)?;
        self.logs = Some(lab.logs().to_owned());
        Ok(lab)
    }

    /// Ends whatever is up.
    pub(crate) fn end_all(&mut self) {
        (self.trio, self.stock, self.host) = (None, None, None);
        (self.quartet, self.disks, self.disks_via) = (None, None, None);
    }
}

fn has_appliance(lab: &Lab) -> Result<()> {
    if !lab.can_have_appliance()? {
        bail!(Missing(
            "this QEMU has no virtio-vhost-user-pci; unset VVU_QEMU to build one that has".into()
        ));
    }
    Ok(())
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
