//! The static programs that run in guests, built once per process.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest agent.
pub fn agent() -> Result<PathBuf> {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    once(&AGENT, || build("vvu-tests", "vvu-agent"))
}

/// The product. `VVU_BIN` may name a static program to use instead of building it.
pub fn vvu() -> Result<PathBuf> {
    static VVU: OnceLock<PathBuf> = OnceLock::new();
    once(&VVU, || match env::var_os("VVU_BIN") {
        Some(program) => Ok(program.into()),
        None => build("vvu-apps", "vvu"),
    })
}

/// The top of the repository.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The directory of build products.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

fn once(cell: &OnceLock<PathBuf>, make: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    if let Some(made) = cell.get() {
        return Ok(made.clone());
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made).clone())
}

/// Other flags than the rest of the workspace, so another target directory: neither rebuilds the other.
fn build(package: &str, program: &str) -> Result<PathBuf> {
    let directory = target().join("guest");
    let manifest = repository().join("Cargo.toml");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--target", TARGET, "-p", package, "--bin", program])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "cargo could not build {program} of {package}");
    Ok(directory.join(TARGET).join("release").join(program))
}
