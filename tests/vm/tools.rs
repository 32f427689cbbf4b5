//! Programs of this machine for a guest with disks, and the libraries that they need.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Their names, and the Debian packages that have them.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("fio", "fio"),
    ("mke2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("sg_inq", "sg3-utils"),
    ("sg_vpd", "sg3-utils"),
    ("sg_luns", "sg3-utils"),
    ("sg_turs", "sg3-utils"),
    ("sg_readcap", "sg3-utils"),
    ("sg_modes", "sg3-utils"),
    ("sg_opcodes", "sg3-utils"),
    ("sg_persist", "sg3-utils"),
    ("sg_unmap", "sg3-utils"),
    ("sg_verify", "sg3-utils"),
    ("sg_write_same", "sg3-utils"),
    ("sg_compare_and_write", "sg3-utils"),
    ("sg_get_lba_status", "sg3-utils"),
    ("sg_rtpg", "sg3-utils"),
    ("sg_sync", "sg3-utils"),
    ("sg_start", "sg3-utils"),
];

/// Where they are, whatever `PATH` says.
const MORE_PATHS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Libraries that are taken along. fio wants many more, some 80 MB of them, for storage that is in
/// no guest: of those only the names are there.
const LIBRARIES: &[&str] = &[
    "libaio.so",
    "libblkid.so",
    "libc.so",
    "libcom_err.so",
    "libe2p.so",
    "libext2fs.so",
    "libm.so",
    "libnuma.so",
    "libpthread.so",
    "libsgutils2",
    "libuuid.so",
    "libz.so",
];

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Files of an image: a path in it, and what is there.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = MORE_PATHS.into_iter().map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path)
        .chain(more)
        .map(|directory| directory.join(program));
    candidates.find(|file| file.is_file())
}

/// All programs and libraries. `scratch` is a directory for what is made on the way.
pub(crate) fn collect(scratch: &Path) -> Result<Files> {
    let mut files = Files::new();
    let (mut undefined, mut stubs) = (BTreeSet::new(), BTreeSet::new());
    let mut defined = BTreeSet::new();
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    files.insert(LOADER[1..].into(), read(LOADER.as_ref())?);
    for (name, package) in PROGRAMS {
        let path = find(name).with_context(|| format!("there is no {name} (package {package})"))?;
        files.insert(format!("bin/{name}"), read(&path)?);
        for (library, found) in libraries(&path)? {
            if !LIBRARIES.iter().any(|kept| library.starts_with(kept)) {
                stubs.insert(library);
                undefined.extend(symbols(&path, "--undefined-only")?);
            } else if let Entry::Vacant(place) = files.entry(format!("lib/{library}")) {
                defined.extend(symbols(&found, "--defined-only")?);
                place.insert(read(&found)?);
            }
        }
    }
    if !stubs.is_empty() {
        let missing = undefined.difference(&defined);
        let stub = stub(scratch, missing.map(String::as_str))?;
        files.extend(
            stubs
                .into_iter()
                .map(|name| (format!("lib/{name}"), stub.clone())),
        );
    }
    Ok(files)
}

/// The libraries that a program names itself, and where they are.
fn libraries(program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let named = output("readelf", [OsStr::new("-dW"), program.as_os_str()])?;
    let named: Vec<&str> = named
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.strip_suffix(']'))
        .collect();
    let found = output("ldd", [program])?;
    let mut all = Vec::new();
    for name in named {
        let path = found
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(" => "))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("{} needs {name}, which is not there", program.display()))?;
        all.push((name.to_owned(), path.into()));
    }
    Ok(all)
}

/// Dynamic symbols: names, each with its version behind an `@`, if it has one.
fn symbols(file: &Path, which: &str) -> Result<BTreeSet<String>> {
    let listed = output("nm", [OsStr::new("-D"), which.as_ref(), file.as_os_str()])?;
    let names = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace().rev();
        let name = words.next()?;
        // One that may be missing.
        (words.next()? != "w").then(|| name.replace("@@", "@"))
    });
    Ok(names.collect())
}

/// A library that has these functions, none of which may be called.
fn stub<'a>(scratch: &Path, names: impl Iterator<Item = &'a str>) -> Result<Vec<u8>> {
    let mut text = ".text\n".to_owned();
    let mut versions: BTreeMap<&str, String> = BTreeMap::new();
    for symbol in names {
        let (name, version) = symbol.split_once('@').unwrap_or((symbol, "NONE"));
        text += &format!(".globl {name}\n.type {name}, @function\n{name}:\n");
        *versions.entry(version).or_default() += &format!("{name}; ");
    }
    text += "ud2\n";
    let versions = versions.iter();
    let script: String = versions
        .map(|(name, symbols)| format!("{name} {{ {symbols}}};\n"))
        .collect();
    let file = |name: &str, text: &str| {
        let path = scratch.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let (source, script) = (file("stub.s", &text)?, file("stub.map", &script)?);
    let library = scratch.join("stub.so");
    let script = format!("-Wl,--version-script={}", script.display());
    let arguments = [
        OsStr::new("-shared"),
        "-nostdlib".as_ref(),
        script.as_ref(),
        "-o".as_ref(),
        library.as_os_str(),
        source.as_os_str(),
    ];
    output("cc", arguments)?;
    fs::read(&library).with_context(|| format!("reading {}", library.display()))
}

fn output<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).output();
    let output = output.with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Packages of what is missing.
pub(crate) fn missing() -> Vec<&'static str> {
    let missing = PROGRAMS.iter().filter(|(name, _)| find(name).is_none());
    let mut packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}
