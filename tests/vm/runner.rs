//! Runs a table of cases one after the other and says what came of each.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fmt};

use anyhow::{Error, Result};

/// What a case cannot run without on this machine.
#[derive(Debug)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// What cases share.
pub trait Stage {
    /// A case begins. An error is the case's outcome.
    fn begin(&mut self, case: &str) -> Result<()>;

    /// A case has failed, or could not run: the next one starts afresh. What helps to understand
    /// it is printed.
    fn clear(&mut self, skipped: bool);
}

/// A case's name and what it does.
pub type Case<S> = (String, Box<dyn Fn(&mut S) -> Result<()>>);

/// Runs the cases that the command line asks for.
pub fn run<S: Stage>(stage: &mut S, cases: Vec<Case<S>>) -> ExitCode {
    // Options of libtest, such as --nocapture, have no meaning here: output is never captured.
    let (options, filters): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|word| word.starts_with('-'));
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let cases: Vec<Case<S>> = cases.into_iter().filter(|(name, _)| wanted(name)).collect();
    if options.iter().any(|option| option == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let mut failed = 0;
    let mut skipped = 0;
    for (name, case) in &cases {
        print!("test {name} ... ");
        // A test must not fail because nobody reads along.
        let _ = io::stdout().flush();
        let case_start = Instant::now();
        let outcome = stage.begin(name).and_then(|()| case(stage));
        let Err(error) = outcome else {
            println!("ok ({:.1} s)", case_start.elapsed().as_secs_f64());
            continue;
        };
        match report(&error) {
            Verdict::Failed => failed += 1,
            Verdict::Skipped => skipped += 1,
        }
        stage.clear(error.is::<Missing>());
    }
    println!(
        "\n{} cases, {failed} failed, {skipped} skipped, {:.0} s",
        cases.len(),
        start.elapsed().as_secs_f64()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

enum Verdict {
    Failed,
    Skipped,
}

/// Says what went wrong. Nothing may be skipped where somebody relies on the outcome: with `CI`
/// set a case that cannot run has failed.
fn report(error: &Error) -> Verdict {
    if error.is::<Missing>() && env::var_os("CI").is_none() {
        println!("SKIPPED: {error:#}");
        return Verdict::Skipped;
    }
    println!("FAILED: {error:#}");
    Verdict::Failed
}
