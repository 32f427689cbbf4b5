//! The lab for people.
//!
//! ```text
//! vmlab demo [--verbose]              boot three machines and show them talking
//! vmlab bench [--json FILE] [--runs N] the same machines, measured;
//!             [--stock] [--only WORD]  in turn with a line-up whose VMMs are not patched; only
//!                                      what has this word in its name
//!             [--vvu PROGRAM]          in turn with a line-up of this `vvu`, a static program
//!             [--rings split|packed] [--offloads on|off]
//!                                      what the neighbours' cards have
//! vmlab setup                         install, or name, what a lab needs
//! ```

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use vvu_tests::setup;

const USAGE: &str = "usage: vmlab demo [--verbose]
       vmlab bench [--json FILE] [--runs N] [--stock] [--only WORD]
             [--vvu PROGRAM] [--rings split|packed] [--offloads on|off]
       vmlab setup";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmlab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let Some((verb, options)) = words.split_first() else {
        bail!("{USAGE}");
    };
    match verb.as_str() {
        "demo" => demo::run(&demo::Options::parse(options)?),
        "bench" => bench::run(&bench::Options::parse(options)?),
        "setup" => setup::ensure_ready(),
        _ => bail!("unknown verb {verb}\n{USAGE}"),
    }
}

/// Says what goes on, away from the results on standard output.
fn say(what: &str) {
    eprintln!("-- {what}");
}
