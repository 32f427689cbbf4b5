//! `--disk`: one small language for everything that can be a disk.
//!
//! A disk is written `kind:ADDRESS,option=value,...`; all kinds and options are in docs/storage.md.

mod before;
mod nbd;
#[cfg(feature = "rbd")]
mod rbd;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use vvu_pmd::bdev::file::{File, FileConfig};
use vvu_pmd::bdev::nbd::Nbd;
#[cfg(feature = "rbd")]
use vvu_pmd::bdev::rbd::{Rbd, RbdConfig};
use vvu_pmd::bdev::{Disk, DiskError, Geometry, Mem, Null};

use self::before::Before;
use self::nbd::NbdSpec;
use crate::port::Options;

/// What is behind a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Nothing: reads return anything, writes go nowhere.
    Null { size: u64 },
    /// Memory of this process.
    Mem { size: u64 },
    /// A file or a block device.
    File(FileConfig),
    /// What a server exports.
    Nbd(NbdSpec),
    /// An image in a Ceph cluster.
    #[cfg(feature = "rbd")]
    Rbd(RbdConfig),
}

/// One `--disk`, parsed, with its own text as its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    pub(crate) name: String,
    kind: Kind,
    /// Bytes of a logical block; the disk's own if there is none.
    block: Option<u32>,
    before: Before,
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            format!("{text:?} has no kind; write file:PATH, nbd:HOST, rbd:POOL/IMAGE, mem:SIZE or null:SIZE")
        })?;
        let mut parts = rest.split(',');
        let target = parts.next().unwrap_or_default();
        let mut options = Options::new(parts)?;
        let before = Before::take(&mut options)?;
        // Others have the blocks that they have.
        let block = match scheme {
            "file" | "mem" | "null" => options.take("block", block)?,
            _ => None,
        };
        let kind = match scheme {
            "file" => Kind::File(FileConfig {
                read_only: before.is_read_only(),
                ..file(target, block, &mut options)?
            }),
            "nbd" => Kind::Nbd(NbdSpec::take(target, &mut options)?),
            #[cfg(feature = "rbd")]
            "rbd" => Kind::Rbd(RbdConfig {
                read_only: before.is_read_only(),
                ..rbd::take(target, &mut options)?
            }),
            #[cfg(not(feature = "rbd"))]
            "rbd" => {
                return Err(
                    "this vvu was built without Ceph: build it with --features rbd, as                      docs/storage.md says"
                        .into(),
                );
            }
            "null" => Kind::Null {
                size: bytes(target)?,
            },
            "mem" => Kind::Mem {
                size: bytes(target)?,
            },
            _ => {
                return Err(format!(
                    "{scheme:?} is not a kind of disk; there are file, nbd, rbd, mem and null"
                ));
            }
        };
        options.finish(&format!("{scheme}: disk"))?;
        Ok(Self {
            name: format!("{scheme}:{target}"),
            kind,
            block,
            before,
        })
    }
}

impl DiskSpec {
    /// Opens it; for reading only if `read_only` says so, too. A file that others have locked is
    /// waited for so long.
    pub(crate) fn open(
        &self,
        read_only: bool,
        patience: Duration,
    ) -> Result<Arc<dyn Disk>, DiskError> {
        let unfit = |reason| DiskError::Unfit {
            disk: self.name.clone(),
            reason,
        };
        let mut geometry = Geometry::default();
        if let Some(block) = self.block {
            geometry.logical_block = block;
        }
        let disk: Arc<dyn Disk> = match &self.kind {
            Kind::Null { size } => Arc::new(Null::new(&self.name, *size, geometry)),
            Kind::Mem { size } => Arc::new(Mem::new(&self.name, *size, geometry)?),
            Kind::File(config) => Arc::new(File::open(FileConfig {
                read_only: config.read_only || read_only,
                patience,
                ..config.clone()
            })?),
            Kind::Nbd(spec) => Nbd::open(&self.name, spec.config().map_err(unfit)?)?,
            #[cfg(feature = "rbd")]
            Kind::Rbd(config) => Rbd::open(
                &self.name,
                RbdConfig {
                    read_only: config.read_only || read_only,
                    ..config.clone()
                },
            )?,
        };
        Ok(self.before.wrap(disk, read_only))
    }

    /// What it is in, if that is a file, and whether that is only read.
    fn place(&self) -> Option<(Place, bool)> {
        match &self.kind {
            Kind::File(config) => Some((Place::of(&config.path), config.read_only)),
            _ => None,
        }
    }
}

/// What tells one file from all others, however it is called.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    File {
        device: u64,
        number: u64,
    },
    Device(u64),
    /// It is not there yet.
    Path(PathBuf),
}

impl Place {
    fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(about) if about.file_type().is_block_device() => Self::Device(about.rdev()),
            Ok(about) => Self::File {
                device: about.dev(),
                number: about.ino(),
            },
            Err(_) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
                Self::Path(folder.join(path.file_name().unwrap_or_default()))
            }
        }
    }
}

/// Refuses disks in one file, unless all of them only read it.
pub(crate) fn refuse_twice<'a>(disks: impl Iterator<Item = &'a DiskSpec>) -> Result<(), String> {
    let mut places: BTreeMap<Place, (&DiskSpec, bool)> = BTreeMap::new();
    for disk in disks {
        let Some((place, reads)) = disk.place() else {
            continue;
        };
        if let Some((other, both)) = places.insert(place, (disk, reads))
            && !(reads && both)
        {
            return Err(format!(
                "{} and {} are the same file: that is one disk, for as many ports as want it, \
                 unless both are readonly",
                other.name, disk.name
            ));
        }
    }
    Ok(())
}

/// A file, and how it is used.
fn file(target: &str, block: Option<u32>, options: &mut Options<'_>) -> Result<FileConfig, String> {
    if target.is_empty() {
        return Err("file: needs a path, as in file:/srv/disk.img".into());
    }
    let new = FileConfig::new(Path::new(target));
    Ok(FileConfig {
        direct: options.switch("direct")?.unwrap_or(new.direct),
        sqpoll: options.switch("sqpoll")?.unwrap_or(new.sqpoll),
        write_back: options.take("cache", cache)?.unwrap_or(new.write_back),
        discard: options.switch("discard")?.unwrap_or(new.discard),
        create: options.take("size", bytes)?,
        block,
        ..new
    })
}

/// Whether writes may be done before they are safe.
fn cache(text: &str) -> Result<bool, String> {
    match text {
        "back" => Ok(true),
        "through" => Ok(false),
        _ => Err(format!("{text:?} is neither back nor through")),
    }
}

/// Size of a block.
fn block(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(block @ (512 | 1024 | 2048 | 4096)) => Ok(block),
        _ => Err(format!("{text:?} is none of 512, 1024, 2048 and 4096")),
    }
}

/// A number of bytes, as people write it: 64M, 10G.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size such as 64M or 10G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
    if bytes == 0 || !bytes.is_multiple_of(4096) {
        return Err(format!("{text:?} is not a multiple of 4096 bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_of_disk() {
        let parse = |text: &str| text.parse::<DiskSpec>().unwrap();
        let disk = parse("mem:64M,block=4096");
        assert_eq!((&*disk.name, disk.block), ("mem:64M", Some(4096)));
        assert_eq!(disk.kind, Kind::Mem { size: 64 << 20 });
        assert_eq!(parse("null:1T").kind, Kind::Null { size: 1 << 40 });
        let file = FileConfig {
            direct: true,
            sqpoll: true,
            write_back: false,
            discard: false,
            create: Some(10 << 30),
            ..FileConfig::new(Path::new("/srv/a=b.img"))
        };
        let text = "file:/srv/a=b.img,direct=on,sqpoll,cache=through,discard=off,size=10G";
        assert_eq!(parse(text).kind, Kind::File(file));
        assert_eq!(parse(text).name, "file:/srv/a=b.img");
        let Kind::File(file) = parse("file:/a,readonly,iops=5").kind else {
            panic!("a file");
        };
        assert!(file.read_only);
        let nbd = parse("nbd:storage:1234,export=a,cache=through,mbps=5");
        assert!(matches!(nbd.kind, Kind::Nbd(_)));
        assert_eq!(nbd.name, "nbd:storage:1234");
    }

    #[test]
    fn a_file_is_one_disk() {
        let folder = std::env::temp_dir().join(format!("vvu-twice-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let at = folder.display();
        let check = |all: &[String]| {
            let all: Vec<DiskSpec> = all.iter().map(|text| text.parse().unwrap()).collect();
            refuse_twice(all.iter())
        };
        let [new, again] = [
            format!("file:{at}/a"),
            format!("file:{at}/../{}/a", {
                folder.file_name().unwrap().display()
            }),
        ];
        let reads = |text: &str| format!("{text},readonly");
        // Whether it is there or not, and by whatever name.
        for name in ["nothing", "a"] {
            std::fs::write(folder.join(name), b"").unwrap();
            for other in [&new, &again] {
                let error = check(&[new.clone(), "mem:4M".into(), other.clone()]).unwrap_err();
                assert!(error.contains("same file"), "{error}");
            }
            assert!(check(&[reads(&new), again.clone()]).is_err());
            assert_eq!(check(&[reads(&new), reads(&again)]), Ok(()));
        }
        std::os::unix::fs::symlink("a", folder.join("b")).unwrap();
        assert!(check(&[new.clone(), format!("file:{at}/b")]).is_err());
        assert_eq!(check(&[new, format!("file:{at}/nothing")]), Ok(()));
        assert_eq!(check(&["mem:4M".into(), "mem:4M".into()]), Ok(()));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn nonsense_is_explained() {
        for (text, reason) in [
            ("disk.img", "write file:PATH"),
            ("nfs:/a", "not a kind of disk"),
            ("nbd:storage,block=512", "a nbd: disk has no option"),
            ("nbd:storage:port", "is not HOST"),
            ("file:", "needs a path"),
            ("file:/a,direct=yes", "on or off"),
            ("file:/a,cache=none", "neither back nor through"),
            ("file:/a,mtu=3", "a file: disk has no option \"mtu\""),
            ("mem:", "not a size"),
            ("mem:0", "not a multiple"),
            ("mem:1000", "not a multiple"),
            ("mem:99999999T", "not a size"),
            ("mem:1G,direct", "has no option"),
            ("null:1G,block=513", "none of 512"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
