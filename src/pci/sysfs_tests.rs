#![allow(clippy::unwrap_used)]
use std::os::unix::fs::symlink;

use super::super::ConfigBuilder;
use super::*;

/// A tree like /sys, and a kernel that acts on what is written to it.
struct Tree {
    root: vmm_sys_util::tempdir::TempDir,
    /// A path that cannot be written, and the error.
    broken: Option<(&'static str, i32)>,
    written: Vec<String>,
}

const VVU: &str = "0000:00:05.0";

impl Tree {
    fn new() -> Self {
        let root = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let tree = Self {
            root,
            broken: None,
            written: Vec::new(),
        };
        for driver in [VFIO_DRIVER, "virtio-pci", "e1000"] {
            tree.dir(&format!("bus/pci/drivers/{driver}"));
        }
        let vvu = ConfigBuilder::new(0x107d)
            .virtio(1, 0, 4, (0, 0x38), &[])
            .virtio(2, 0, 4, (0x100, 16), &[4])
            .virtio(3, 0, 4, (0x200, 1), &[])
            .virtio(4, 0, 4, (0x300, 24), &[])
            .virtio(6, 0, 0, (0, 0x1000), &[4])
            .virtio(7, 0, 0, (0x1000, 4), &[])
            .memory(1, 2, (0, 0x1000));
        tree.function(VVU, vvu.build(), Some("virtio-pci"), Some(3));
        let other = ConfigBuilder::new(0x1041).build();
        tree.function("0000:00:01.0", other, Some("virtio-pci"), Some(4));
        tree
    }

    fn dir(&self, path: &str) -> PathBuf {
        let path = self.root.as_path().join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn function(&self, address: &str, config: Vec<u8>, driver: Option<&str>, group: Option<u32>) {
        let path = self.dir(&format!("bus/pci/devices/{address}"));
        fs::write(path.join("config"), config).unwrap();
        fs::write(path.join("driver_override"), "(null)\n").unwrap();
        if let Some(driver) = driver {
            symlink(format!("../../drivers/{driver}"), path.join("driver")).unwrap();
        }
        if let Some(group) = group {
            let members = self.dir(&format!("kernel/iommu_groups/{group}/devices"));
            symlink(&path, members.join(address)).unwrap();
            let target = format!("../../../../kernel/iommu_groups/{group}");
            symlink(target, path.join("iommu_group")).unwrap();
        }
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.root.as_path())
    }

    fn info(&self) -> FunctionInfo {
        self.sysfs().info(VVU.parse().unwrap()).unwrap()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), SysfsError> {
        let sysfs = self.sysfs();
        sysfs.apply_with(VVU.parse().unwrap(), plan, &mut |step| self.write(step))
    }

    /// What the kernel does.
    fn write(&mut self, step: &Step) -> io::Result<()> {
        let path = step.path.strip_prefix(self.root.as_path()).unwrap();
        let path = path.to_str().unwrap();
        self.written.push(format!("{path}={}", step.value.trim()));
        if let Some((broken, errno)) = self.broken
            && path == broken
        {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let function = self.sysfs().path(VVU.parse().unwrap());
        let parts: Vec<_> = path.split('/').collect();
        match parts[..] {
            [.., "driver_override"] => fs::write(&step.path, &step.value),
            [.., "unbind"] => fs::remove_file(function.join("driver")),
            [.., driver, "bind"] => {
                let chosen = self.info().driver_override;
                if chosen.is_some_and(|chosen| chosen != driver) {
                    return Err(io::Error::from_raw_os_error(libc::ENODEV));
                }
                symlink(format!("../../drivers/{driver}"), function.join("driver"))
            }
            [.., "drivers_probe"] => symlink("../../drivers/virtio-pci", function.join("driver")),
            _ => panic!("{path}"),
        }
    }
}

#[test]
fn lists_what_is_and_what_may_be() {
    let tree = Tree::new();
    // Readable up to byte 64: by id only.
    let head = |id| ConfigBuilder::new(id).build()[..64].to_vec();
    tree.function("0000:00:06.0", head(0x1058), None, None);
    tree.function("0000:00:07.0", head(0x107f), None, None);
    tree.function("0000:00:08.0", head(0x1041), None, None);
    let list = |extra: &[u16]| -> Vec<String> {
        let found = tree.sysfs().list(extra).unwrap();
        found.iter().map(|info| info.address.to_string()).collect()
    };
    assert_eq!(list(&[]), [VVU, "0000:00:06.0"]);
    assert_eq!(list(&[0x107f]), [VVU, "0000:00:06.0", "0000:00:07.0"]);
    let info = tree.info();
    assert_eq!(info.driver.as_deref(), Some("virtio-pci"));
    assert_eq!(info.driver_override, None);
    assert_eq!(
        info.group,
        Some(Group {
            number: 3,
            noiommu: false,
            members: vec![VVU.parse().unwrap()]
        })
    );
    assert!(matches!(
        tree.sysfs().info("0000:00:1f.0".parse().unwrap()),
        Err(SysfsError::NoFunction(_))
    ));
}

#[test]
fn binds_and_gives_back() {
    let mut tree = Tree::new();
    let plan = tree.sysfs().plan_bind(&tree.info()).unwrap();
    let shell = plan.steps().next().unwrap().to_string();
    assert!(shell.starts_with("echo vfio-pci > /"), "{shell}");
    tree.apply(&plan).unwrap();
    assert_eq!(
        tree.written,
        [
            "bus/pci/devices/0000:00:05.0/driver_override=vfio-pci",
            "bus/pci/drivers/virtio-pci/unbind=0000:00:05.0",
            "bus/pci/drivers/vfio-pci/bind=0000:00:05.0",
        ]
    );
    let bound = tree.info();
    assert_eq!(bound.driver.as_deref(), Some(VFIO_DRIVER));
    assert_eq!(tree.sysfs().plan_bind(&bound).unwrap().steps().count(), 0);

    let plan = tree.sysfs().plan_unbind(&bound, None).unwrap();
    tree.apply(&plan).unwrap();
    let free = tree.info();
    assert_eq!(free.driver.as_deref(), Some("virtio-pci"));
    assert_eq!(free.driver_override, None);

    let plan = tree.sysfs().plan_unbind(&free, Some("e1000")).unwrap();
    tree.apply(&plan).unwrap();
    assert_eq!(tree.info().driver.as_deref(), Some("e1000"));
    assert!(matches!(
        tree.sysfs().plan_unbind(&free, Some("nvme")),
        Err(SysfsError::NoDriver(_))
    ));
}

#[test]
fn a_failed_bind_leaves_everything_as_it_was() {
    for (broken, errno, hint) in [
        (
            "bus/pci/devices/0000:00:05.0/driver_override",
            libc::EACCES,
            "root",
        ),
        ("bus/pci/drivers/virtio-pci/unbind", libc::ENOENT, "away"),
        ("bus/pci/drivers/vfio-pci/bind", libc::EINVAL, "IOMMU"),
        ("bus/pci/drivers/vfio-pci/bind", libc::EBUSY, "stop it"),
    ] {
        let mut tree = Tree::new();
        tree.broken = Some((broken, errno));
        let plan = tree.sysfs().plan_bind(&tree.info()).unwrap();
        let error = tree.apply(&plan).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
        let info = tree.info();
        assert_eq!(info.driver.as_deref(), Some("virtio-pci"), "{broken}");
        assert_eq!(info.driver_override, None, "{broken}");
    }
}

#[test]
fn a_missing_driver_is_named() {
    let tree = Tree::new();
    let vfio = tree.root.as_path().join("bus/pci/drivers/vfio-pci");
    fs::remove_dir_all(vfio).unwrap();
    let error = tree.sysfs().plan_bind(&tree.info()).unwrap_err();
    assert!(error.to_string().contains("modprobe vfio-pci"));
}
