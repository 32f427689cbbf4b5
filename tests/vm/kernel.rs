//! A Debian kernel and its modules, from the package and without installing it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The meta package that names the kernel of the day. The cloud flavour boots fastest.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The same of a later release, which Debian 12 has beside its own.
const NEWER: &str = "linux-image-6.12-cloud-amd64";

/// The first kernel whose virtio-net segments UDP.
const FIRST_WITH_USO: (u32, u32) = (6, 2);

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The compressed kernel that QEMU's `-kernel` takes.
    pub vmlinuz: PathBuf,
    modules: PathBuf,
}

/// A kernel module: its name and its object file's contents.
pub(crate) struct Module {
    /// Name as in `/proc/modules`, with underscores.
    pub name: String,
    /// The object file.
    pub image: Vec<u8>,
}

impl Kernel {
    /// The kernel from the cache, or downloaded into it.
    ///
    /// `VVU_TEST_KERNEL` may name a directory with an unpacked kernel package instead.
    pub(crate) fn get() -> Result<Kernel> {
        match std::env::var_os("VVU_TEST_KERNEL") {
            Some(directory) => Kernel::unpacked(directory.as_ref()),
            None => Kernel::packaged(KERNEL),
        }
    }

    /// A kernel that knows every offload; else an error that says what was found.
    pub(crate) fn newer() -> Result<Kernel> {
        let kernel = match std::env::var_os("VVU_TEST_KERNEL") {
            Some(_) => Kernel::get(),
            // Later releases of Debian have none but a new one.
            None => Kernel::packaged(NEWER).or_else(|_| Kernel::get()),
        }?;
        let name = kernel.vmlinuz.to_string_lossy();
        ensure!(
            version(&name).is_some_and(|version| version >= FIRST_WITH_USO),
            "{name} is too old: it must be of release {}.{} or later",
            FIRST_WITH_USO.0,
            FIRST_WITH_USO.1
        );
        Ok(kernel)
    }

    fn packaged(meta: &str) -> Result<Kernel> {
        Kernel::unpacked(&with_fresh_index(|| package(&kernel_package(meta)?))?)
    }

    fn unpacked(root: &Path) -> Result<Kernel> {
        let vmlinuz = only_entry(&root.join("boot"), "vmlinuz-")?;
        let modules = only_entry(&root.join("lib/modules"), "")?;
        Ok(Kernel { vmlinuz, modules })
    }

    /// The named modules and everything they need, in the order in which they can be loaded.
    /// Modules built into the kernel are left out.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut loader = Loader {
            files: Vec::new(),
            seen: HashSet::new(),
            order: Vec::new(),
        };
        collect_objects(&self.modules.join("kernel"), &mut loader.files)?;
        let builtin = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        loader.seen.extend(builtin.lines().map(module_name));
        for name in names {
            loader.require(name)?;
        }
        Ok(loader.order)
    }
}

struct Loader {
    files: Vec<PathBuf>,
    seen: HashSet<String>,
    order: Vec<Module>,
}

impl Loader {
    fn require(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let file = self
            .files
            .iter()
            .find(|file| module_name(&file.to_string_lossy()) == name)
            .with_context(|| format!("the kernel package has no module {name}"))?;
        let image = object(file).with_context(|| format!("reading {}", file.display()))?;
        for dependency in dependencies(&image) {
            self.require(&dependency)?;
        }
        self.order.push(Module { name, image });
        Ok(())
    }
}

/// What `modinfo -F depends` prints: the string `depends=a,b` of the section `.modinfo`.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = image[start + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `.../vmlinuz-6.12.117+deb12-cloud-amd64` -> (6, 12).
fn version(vmlinuz: &str) -> Option<(u32, u32)> {
    let mut parts = vmlinuz.rsplit_once("vmlinuz-")?.1.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A module's object file, which later releases compress.
fn object(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        return bytes_of(Command::new("xz").arg("-dc").arg(file));
    }
    Ok(fs::read(file)?)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn collect_objects(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect_objects(&path, files)?;
        } else if [".ko", ".ko.xz"]
            .iter()
            .any(|end| path.to_string_lossy().ends_with(end))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
    found.with_context(|| format!("{} has no {prefix}*", directory.display()))
}

/// A statically linked busybox, for people who look around in a guest, and for its `ip`.
pub(crate) fn busybox() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("VVU_TEST_KERNEL") {
        let unpacked = Path::new(&directory).join("bin/busybox");
        if unpacked.exists() {
            return Ok(unpacked);
        }
    }
    Ok(with_fresh_index(|| package("busybox-static"))?.join("bin/busybox"))
}

/// Where downloads and builds are kept between runs.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("VVU_CACHE").map(PathBuf::from);
    let base =
        base.or_else(|| Some(PathBuf::from(std::env::var_os("XDG_CACHE_HOME")?).join("vvu")));
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/vvu")));
    let directory = base
        .context("none of VVU_CACHE, XDG_CACHE_HOME and HOME is set")?
        .join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Tries again with a fresh package index: an old one names versions that are gone.
fn with_fresh_index<T>(fetch: impl Fn() -> Result<T>) -> Result<T> {
    fetch().or_else(|stale| {
        let update = stdout_of(Command::new("apt-get").args(["update", "-qq"]));
        update.map_err(|_| stale.context("is apt's index fresh? (apt-get update)"))?;
        fetch()
    })
}

fn kernel_package(meta: &str) -> Result<String> {
    let depends = stdout_of(Command::new("apt-cache").args(["depends", meta]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| {
        format!("apt-cache knows no {meta}; is this Debian, and did apt-get update run?")
    })?;
    Ok(package.to_owned())
}

/// The contents of a Debian package, unpacked in the cache under its name and version.
fn package(name: &str) -> Result<PathBuf> {
    let policy = stdout_of(Command::new("apt-cache").args(["policy", name]))?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .with_context(|| format!("apt knows no package {name}; run apt-get update"))?;
    let home = cache()?.join(format!("{name}_{}", version.replace(':', "%")));
    if home.exists() {
        return Ok(home);
    }
    let scratch = tempfile::tempdir_in(cache()?)?;
    let wanted = format!("{name}={version}");
    stdout_of(
        Command::new("apt-get")
            .args(["download", "-qq", &wanted])
            .current_dir(scratch.path()),
    )?;
    let archive = only_entry(scratch.path(), name)?;
    let unpacked = scratch.path().join("unpacked");
    stdout_of(
        Command::new("dpkg-deb")
            .arg("-x")
            .args([&archive, &unpacked]),
    )?;
    // Another process may have been faster; its copy is as good.
    if fs::rename(&unpacked, &home).is_err() {
        ensure!(
            home.exists(),
            "cannot move {} to {}",
            unpacked.display(),
            home.display()
        );
    }
    Ok(home)
}

fn stdout_of(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(bytes_of(command)?)?)
}

fn bytes_of(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_the_modinfo_section() {
        let image = b"..license=GPL\0depends=virtio,virtio_ring\0retpoline=Y\0";
        assert_eq!(dependencies(image), ["virtio", "virtio_ring"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
    }

    #[test]
    fn a_module_has_the_name_of_its_file() {
        assert_eq!(
            module_name("kernel/drivers/vfio/pci/vfio-pci.ko.xz"),
            "vfio_pci"
        );
    }

    #[test]
    fn a_kernel_tells_its_release_by_its_file() {
        let file = "/cache.d/boot/vmlinuz-6.12.117+deb12-cloud-amd64";
        assert_eq!(version(file), Some((6, 12)));
        assert_eq!(version("/boot/vmlinuz-custom"), None);
    }
}
