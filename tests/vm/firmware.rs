//! A disk that firmware can boot, and that tells what firmware read of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Bytes that the boot sector reads at once.
const STEP: usize = 64 * 512;
/// Where it has the number of such reads.
const COUNT: usize = 508;

/// What it says before and behind the sum.
const BEFORE: &str = "booted, sum ";
const BEHIND: &str = " end";

/// A disk of `reads` times 32 KiB, bootable and else full of bytes that differ, and what its boot
/// sector must say of it.
pub fn bootable_disk(scratch: &Path, reads: u16) -> Result<(Vec<u8>, String)> {
    let mut disk: Vec<u8> = (0..usize::from(reads) * STEP)
        .map(|n| (n ^ (n >> 9).wrapping_mul(37)) as u8)
        .collect();
    let sector = boot_sector(scratch)?;
    ensure!(
        sector.len() == 512,
        "the boot sector has {} bytes",
        sector.len()
    );
    disk[..512].copy_from_slice(&sector);
    disk[COUNT..COUNT + 2].copy_from_slice(&reads.to_le_bytes());
    let (words, _) = disk.as_chunks::<4>();
    let sum = words.iter().fold(0u32, |sum, word| {
        sum.rotate_left(1).wrapping_add(u32::from_le_bytes(*word))
    });
    Ok((disk, format!("{BEFORE}{sum:08x}{BEHIND}")))
}

fn boot_sector(scratch: &Path) -> Result<Vec<u8>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/boot.s");
    let (object, sector) = (scratch.join("boot.o"), scratch.join("boot.bin"));
    let mut compile = Command::new("cc");
    compile
        .args(["-c", "-x", "assembler", "-o"])
        .args([&object, &source]);
    let mut link = Command::new("ld");
    link.args([
        "-m",
        "elf_x86_64",
        "-Ttext=0x7c00",
        "--oformat=binary",
        "-o",
    ])
    .args([&sector, &object]);
    for command in [&mut compile, &mut link] {
        let status = command
            .status()
            .with_context(|| format!("running {command:?}"))?;
        ensure!(status.success(), "{command:?} failed");
    }
    fs::read(&sector).with_context(|| format!("reading {}", sector.display()))
}
