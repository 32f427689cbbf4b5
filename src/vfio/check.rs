//! What is looked at before a function is opened, and what the kernel's errors mean.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{VfioError, VfioOptions};
use crate::pci::sysfs::{FunctionInfo, Group, Sysfs, VFIO_DRIVER};

const UNSAFE_INTERRUPTS: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";

/// Refuses what cannot work or must not be done; the function's group otherwise.
pub(super) fn before(info: &FunctionInfo, options: VfioOptions) -> Result<Group, VfioError> {
    let address = info.address;
    let driver = info.driver.clone();
    if driver.as_deref() != Some(VFIO_DRIVER) {
        return Err(VfioError::OtherDriver { address, driver });
    }
    let group = info.group.clone().ok_or(VfioError::NoGroup(address))?;
    let node = format!("/dev/vfio/noiommu-{}", group.number);
    if group.noiommu || Path::new(&node).exists() {
        return Err(match options.allow_noiommu {
            false => VfioError::NoIommu(address),
            true => VfioError::NoIommuUnsupported(address),
        });
    }
    interrupts(
        &fs::read_to_string(UNSAFE_INTERRUPTS).unwrap_or_default(),
        options,
    )?;
    Ok(group)
}

fn interrupts(parameter: &str, options: VfioOptions) -> Result<(), VfioError> {
    if parameter.trim() != "Y" {
        return Ok(());
    }
    if !options.allow_unsafe_interrupts {
        return Err(VfioError::UnsafeInterrupts);
    }
    tracing::warn!("interrupts of devices are not isolated, as allowed");
    Ok(())
}

/// What an error of vfio-ioctls means for a person.
pub(super) fn explain(
    error: vfio_ioctls::VfioError,
    info: &FunctionInfo,
    group: &Group,
    sysfs: &Sysfs,
) -> VfioError {
    use vfio_ioctls::VfioError as Kernel;
    let address = info.address;
    match &error {
        Kernel::OpenContainer(source) => {
            node_error(source, "/dev/vfio/vfio".into()).unwrap_or(VfioError::Kernel(error))
        }
        Kernel::OpenGroup(source, _) if source.raw_os_error() == Some(libc::EBUSY) => {
            VfioError::Busy(address)
        }
        Kernel::OpenGroup(source, number) => {
            let node = Path::new("/dev/vfio").join(number);
            node_error(source, node).unwrap_or(VfioError::Kernel(error))
        }
        Kernel::GroupGetDeviceFD(source) if source.errno() == libc::EBUSY => {
            VfioError::Busy(address)
        }
        Kernel::GroupViable => VfioError::NotViable {
            address,
            group: group.number,
            others: others(info, group, sysfs),
        },
        Kernel::ContainerSetIOMMU(source) if source.errno() == libc::EPERM => {
            VfioError::NoRemapping(address)
        }
        _ => VfioError::Kernel(error),
    }
}

fn node_error(source: &std::io::Error, node: PathBuf) -> Option<VfioError> {
    match source.kind() {
        ErrorKind::NotFound => Some(VfioError::NoNode(node)),
        ErrorKind::PermissionDenied => Some(VfioError::Permission(node)),
        _ => None,
    }
}

/// The other functions of the group that keep it from being used.
fn others(info: &FunctionInfo, group: &Group, sysfs: &Sysfs) -> String {
    let others: Vec<_> = group
        .members
        .iter()
        .filter(|member| **member != info.address)
        .filter_map(|member| {
            let driver = sysfs.info(*member).ok()?.driver?;
            (driver != VFIO_DRIVER).then(|| format!("{member} ({driver})"))
        })
        .collect();
    match others.is_empty() {
        true => "other functions".to_owned(),
        false => others.join(", "),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pci::{Address, ConfigSpace};

    fn info(driver: Option<&str>, group: Option<Group>) -> FunctionInfo {
        FunctionInfo {
            address: "00:05.0".parse().unwrap(),
            space: ConfigSpace::new(vec![]),
            driver: driver.map(str::to_owned),
            driver_override: None,
            group,
        }
    }

    fn group(noiommu: bool) -> Group {
        let other: Address = "00:06.0".parse().unwrap();
        Group {
            number: 987_654,
            noiommu,
            members: vec!["00:05.0".parse().unwrap(), other],
        }
    }

    #[test]
    fn what_cannot_work_is_said_beforehand() {
        let say = |info: &FunctionInfo, options| before(info, options).unwrap_err().to_string();
        let safe = VfioOptions::default();
        let told = say(&info(Some("virtio-pci"), Some(group(false))), safe);
        assert!(
            told.contains("virtio-pci") && told.contains("vvu bind 0000:00:05.0"),
            "{told}"
        );
        assert!(say(&info(None, None), safe).contains("nobody"));
        let told = say(&info(Some(VFIO_DRIVER), None), safe);
        assert!(told.contains("intel_iommu=on"), "{told}");
        let told = say(&info(Some(VFIO_DRIVER), Some(group(true))), safe);
        assert!(told.contains("--allow-noiommu"), "{told}");
        let allowed = VfioOptions {
            allow_noiommu: true,
            ..safe
        };
        let told = say(&info(Some(VFIO_DRIVER), Some(group(true))), allowed);
        assert!(told.contains("not supported"), "{told}");
    }

    #[test]
    fn unsafe_interrupts_are_asked_for_by_name() {
        let safe = VfioOptions::default();
        assert!(interrupts("N\n", safe).is_ok());
        assert!(interrupts("", safe).is_ok());
        assert!(matches!(
            interrupts("Y\n", safe),
            Err(VfioError::UnsafeInterrupts)
        ));
        let allowed = VfioOptions {
            allow_unsafe_interrupts: true,
            ..safe
        };
        assert!(interrupts("Y\n", allowed).is_ok());
    }

    #[test]
    fn errors_of_the_kernel_are_explained() {
        use std::io::Error;
        use vfio_ioctls::VfioError as Kernel;
        use vmm_sys_util::errno::Error as Errno;
        let info = info(Some(VFIO_DRIVER), Some(group(false)));
        let sysfs = Sysfs::at("/nowhere");
        let say = |error| explain(error, &info, &group(false), &sysfs).to_string();
        let io = Error::from_raw_os_error;
        for (error, word) in [
            (Kernel::OpenContainer(io(libc::ENOENT)), "modprobe"),
            (Kernel::OpenContainer(io(libc::EACCES)), "permission"),
            (Kernel::OpenGroup(io(libc::EBUSY), "9".into()), "in use"),
            (
                Kernel::OpenGroup(io(libc::EACCES), "9".into()),
                "/dev/vfio/9",
            ),
            (Kernel::GroupViable, "group 987654"),
            (
                Kernel::ContainerSetIOMMU(Errno::new(libc::EPERM)),
                "--allow-unsafe-interrupts",
            ),
            (Kernel::GroupGetDeviceFD(Errno::new(libc::EBUSY)), "in use"),
            (Kernel::VfioApiVersion, "API version"),
        ] {
            let told = say(error);
            assert!(told.contains(word), "{told}");
        }
    }
}
