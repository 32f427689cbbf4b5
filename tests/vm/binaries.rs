//! The static programs that run in guests, built once per process.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

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

/// The workspace links statically (`.cargo/config.toml`), so what cargo builds can be `/init`.
fn build(package: &str, program: &str) -> Result<PathBuf> {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--quiet",
            "--release",
            "-p",
            package,
            "--bin",
            program,
        ])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not build {program} of {package}"
    );
    let built = output
        .stdout
        .split(|byte| *byte == b'\n')
        .find_map(|line| executable(line, program));
    built.with_context(|| format!("cargo does not say where {program} is"))
}

/// Where a program is, if this line of cargo's is about it.
fn executable(line: &[u8], program: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_slice(line).ok()?;
    (message["target"]["name"] == program)
        .then(|| message["executable"].as_str().map(PathBuf::from))?
}
