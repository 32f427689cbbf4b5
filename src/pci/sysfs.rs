//! PCI functions as Linux shows them in /sys: what there is, who drives it, and how to change
//! that.
//!
//! Binding goes through `driver_override`, so that no other function changes hands and
//! virtio-pci, which claims every virtio function, does not take this one back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Address, ConfigSpace, KNOWN_IDS, NotVvu, Structures, VENDOR_VIRTIO};

/// The driver that lets a program drive a function.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// What can go wrong when looking at or changing /sys.
#[derive(Debug, Error)]
pub enum SysfsError {
    /// There is no function with this address.
    #[error("there is no PCI function {0}; `vvu list` shows those that could be meant")]
    NoFunction(Address),
    /// A file that should be readable is not.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel did not accept a change. What had been changed before was changed back.
    #[error("cannot write {value:?} to {}: {source}; {hint}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        source: io::Error,
        /// What can be done.
        hint: &'static str,
    },
    /// The driver is not there.
    #[error("the driver {0} is not loaded; load it first (modprobe {0})")]
    NoDriver(String),
    /// All writes were accepted, to no effect.
    #[error("{address} is now driven by {} instead of {wanted}; see the kernel's log",
            found.as_deref().unwrap_or("nobody"))]
    NotTaken {
        /// Which function.
        address: Address,
        /// The driver that should have it.
        wanted: String,
        /// The driver that has it.
        found: Option<String>,
    },
}

/// The IOMMU group of a function: what the kernel can tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub number: u32,
    /// There is no IOMMU behind it.
    pub noiommu: bool,
    /// All functions in it.
    pub members: Vec<Address>,
}

/// What /sys says about a function.
#[derive(Debug, Clone)]
pub struct FunctionInfo {
    /// Its address.
    pub address: Address,
    /// Its configuration space, as far as we may read it.
    pub space: ConfigSpace,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The only driver that may take it, if that is set.
    pub driver_override: Option<String>,
    /// Its IOMMU group.
    pub group: Option<Group>,
}

impl FunctionInfo {
    /// Its VVU structures, or why it is none.
    pub fn structures(&self) -> Result<Structures, NotVvu> {
        Structures::find(&self.space)
    }

    /// Whether it is a VVU function, or could be one for all that we may see: then its id must be
    /// one under which VVU functions are known, or one of `extra`.
    pub fn may_be_vvu(&self, extra: &[u16]) -> bool {
        let id = self.space.device();
        match self.structures() {
            Ok(_) => true,
            Err(NotVvu::Hidden) => {
                self.space.vendor() == VENDOR_VIRTIO
                    && (KNOWN_IDS.contains(&id) || extra.contains(&id))
            }
            Err(_) => false,
        }
    }
}

/// One write to a file in /sys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which file.
    pub path: PathBuf,
    /// What is written to it.
    pub value: String,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "echo {} > {}", self.value.trim(), self.path.display())
    }
}

/// A change of drivers: what to do, and how to undo each step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<(Step, Option<Step>)>,
    /// Who shall have the function afterwards; `None` for whoever wants it.
    wanted: Option<String>,
}

impl Plan {
    /// The steps, in order. Empty if there is nothing to do. Each displays as a shell command.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().map(|(step, _)| step)
    }
}

/// /sys, or a directory that looks like it.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// The tree under `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn bus(&self) -> PathBuf {
        self.root.join("bus/pci")
    }

    /// The directory of a function.
    pub fn path(&self, address: Address) -> PathBuf {
        self.bus().join("devices").join(address.to_string())
    }

    /// Addresses of all functions, sorted.
    pub fn addresses(&self) -> Result<Vec<Address>, SysfsError> {
        let path = self.bus().join("devices");
        let mut all = entries(&path).map_err(|source| SysfsError::Read { path, source })?;
        all.sort_unstable();
        Ok(all)
    }

    /// All functions that are, or may be, VVU functions; `extra` are further PCI device ids.
    /// Functions that vanish meanwhile are left out.
    pub fn list(&self, extra: &[u16]) -> Result<Vec<FunctionInfo>, SysfsError> {
        let mut found = Vec::new();
        for address in self.addresses()? {
            if let Ok(info) = self.info(address)
                && info.may_be_vvu(extra)
            {
                found.push(info);
            }
        }
        Ok(found)
    }

    /// Everything about one function.
    pub fn info(&self, address: Address) -> Result<FunctionInfo, SysfsError> {
        let path = self.path(address);
        let config = path.join("config");
        let bytes = fs::read(&config).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SysfsError::NoFunction(address),
            _ => SysfsError::Read {
                path: config,
                source,
            },
        })?;
        let driver_override = fs::read_to_string(path.join("driver_override"))
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty() && text != "(null)");
        Ok(FunctionInfo {
            address,
            space: ConfigSpace::new(bytes),
            driver: self.driver(address),
            driver_override,
            group: group(&path),
        })
    }

    fn driver(&self, address: Address) -> Option<String> {
        link_name(&self.path(address).join("driver"))
    }

    /// What it takes to give a function to vfio-pci.
    pub fn plan_bind(&self, info: &FunctionInfo) -> Result<Plan, SysfsError> {
        let driver = self.bus().join("drivers").join(VFIO_DRIVER);
        if !driver.exists() {
            return Err(SysfsError::NoDriver(VFIO_DRIVER.to_owned()));
        }
        let mut plan = Plan {
            steps: Vec::new(),
            wanted: Some(VFIO_DRIVER.to_owned()),
        };
        if info.driver.as_deref() == Some(VFIO_DRIVER) {
            return Ok(plan);
        }
        let name = info.address.to_string();
        let choose = self.path(info.address).join("driver_override");
        let before = info.driver_override.clone().unwrap_or("\n".to_owned());
        plan.steps
            .push((step(&choose, VFIO_DRIVER), Some(step(&choose, &before))));
        if let Some(old) = &info.driver {
            let old = self.bus().join("drivers").join(old);
            plan.steps.push((
                step(&old.join("unbind"), &name),
                Some(step(&old.join("bind"), &name)),
            ));
        }
        plan.steps.push((step(&driver.join("bind"), &name), None));
        Ok(plan)
    }

    /// What it takes to give a function back: to `driver`, or to whichever driver claims it.
    pub fn plan_unbind(
        &self,
        info: &FunctionInfo,
        driver: Option<&str>,
    ) -> Result<Plan, SysfsError> {
        let drivers = self.bus().join("drivers");
        if let Some(driver) = driver
            && !drivers.join(driver).exists()
        {
            return Err(SysfsError::NoDriver(driver.to_owned()));
        }
        let mut plan = Plan {
            steps: Vec::new(),
            wanted: driver.map(str::to_owned),
        };
        if driver.is_some() && info.driver.as_deref() == driver {
            return Ok(plan);
        }
        let name = info.address.to_string();
        let choose = self.path(info.address).join("driver_override");
        if let Some(before) = &info.driver_override {
            plan.steps
                .push((step(&choose, "\n"), Some(step(&choose, before))));
        }
        if let Some(old) = &info.driver {
            let old = drivers.join(old);
            plan.steps.push((
                step(&old.join("unbind"), &name),
                Some(step(&old.join("bind"), &name)),
            ));
        }
        let last = match driver {
            Some(driver) => drivers.join(driver).join("bind"),
            None => self.bus().join("drivers_probe"),
        };
        plan.steps.push((step(&last, &name), None));
        Ok(plan)
    }

    /// Does what a plan says. If a step fails, those before it are undone.
    pub fn apply(&self, address: Address, plan: &Plan) -> Result<(), SysfsError> {
        self.apply_with(address, plan, &mut |step| {
            fs::OpenOptions::new()
                .write(true)
                .open(&step.path)
                .and_then(|mut file| io::Write::write_all(&mut file, step.value.as_bytes()))
        })
    }

    fn apply_with(
        &self,
        address: Address,
        plan: &Plan,
        write: &mut dyn FnMut(&Step) -> io::Result<()>,
    ) -> Result<(), SysfsError> {
        let mut undo = Vec::new();
        let mut result = Ok(());
        for (step, back) in &plan.steps {
            if let Err(source) = write(step) {
                result = Err(SysfsError::Write {
                    hint: hint(&source),
                    path: step.path.clone(),
                    value: step.value.clone(),
                    source,
                });
                break;
            }
            undo.extend(back);
        }
        let found = self.driver(address);
        if let (Ok(()), Some(wanted)) = (&result, &plan.wanted)
            && found.as_ref() != Some(wanted)
        {
            result = Err(SysfsError::NotTaken {
                address,
                wanted: wanted.clone(),
                found,
            });
        }
        if result.is_err() {
            // In the order of the plan: the old driver takes the function back only when it is
            // no longer reserved for another.
            for step in undo {
                if let Err(error) = write(step) {
                    tracing::warn!(%step, %error, "cannot undo; do it by hand");
                }
            }
        }
        result
    }
}

fn step(path: &Path, value: &str) -> Step {
    Step {
        path: path.to_owned(),
        value: value.to_owned(),
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "only root may do this",
        Some(libc::EROFS) => "/sys is mounted read-only here, as containers have it",
        Some(libc::EBUSY) => "another driver or program has the function; stop it first",
        Some(libc::ENODEV | libc::EINVAL) => {
            "the driver does not take the function; vfio-pci needs an IOMMU (on Intel boot with \
             intel_iommu=on, in QEMU add -device intel-iommu)"
        }
        Some(libc::ENOENT) => "the function or its driver went away",
        _ => "see the kernel's log",
    }
}

fn group(function: &Path) -> Option<Group> {
    let path = function.join("iommu_group");
    let number = link_name(&path)?.parse().ok()?;
    let name = fs::read_to_string(path.join("name")).unwrap_or_default();
    let mut members = entries(&path.join("devices")).unwrap_or_default();
    members.sort_unstable();
    Some(Group {
        number,
        noiommu: name.trim() == "vfio-noiommu",
        members,
    })
}

/// PCI addresses among the names in a directory.
fn entries(path: &Path) -> io::Result<Vec<Address>> {
    let entries = fs::read_dir(path)?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
#[path = "sysfs_tests.rs"]
mod tests;
