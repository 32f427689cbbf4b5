//! The static programs that run in guests, built once per process.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The guest agent.
pub fn agent() -> Result<PathBuf> {
    built("vvu-agent")
}

/// The product. `VVU_BIN` may name a static program to use instead of building it.
pub fn vvu() -> Result<PathBuf> {
    env::var_os("VVU_BIN").map_or_else(|| built("vvu"), |program| Ok(program.into()))
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

/// Where cargo has put a program.
fn built(program: &str) -> Result<PathBuf> {
    static MESSAGES: OnceLock<Vec<Value>> = OnceLock::new();
    let messages = match MESSAGES.get() {
        Some(messages) => messages,
        None => {
            let messages = build()?;
            MESSAGES.get_or_init(|| messages)
        }
    };
    let message = messages
        .iter()
        .find(|message| message["target"]["name"] == program && message["executable"].is_string());
    let path = message.and_then(|message| message["executable"].as_str());
    Ok(path
        .with_context(|| format!("cargo does not say where {program} is"))?
        .into())
}

/// Builds both packages at once, as `./run` does: asked for one of them, cargo would choose other
/// features of what they share, and build that again. The workspace links statically
/// (`.cargo/config.toml`), so the result can be `/init`.
fn build() -> Result<Vec<Value>> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "-p", "vvu-tests"]);
    if env::var_os("VVU_BIN").is_none() {
        cargo.args(["-p", "vvu-apps"]);
    }
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not build the guests' programs"
    );
    let lines = output.stdout.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}
