//! A child process that never outlives us and whose output is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running child. Dropping it kills it.
///
/// The kernel kills it too when the thread that started it ends, however that happens
/// (`PR_SET_PDEATHSIG`, by way of setpriv(1)); so start it from a thread that stays.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    log_start: usize,
}

impl Process {
    /// Starts a program with standard output and error in the file `log`.
    pub fn start(name: &str, program: &Path, arguments: &[String], log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let log_start = file.metadata()?.len() as usize;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("running setpriv --pdeathsig KILL {}", program.display()))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            log_start,
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the program has printed so far. What an earlier one left in the same log is not its own.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let own = bytes.get(self.log_start..).unwrap_or_default();
        String::from_utf8_lossy(own).into_owned()
    }

    /// Waits until it has printed a text since it was started.
    pub fn wait_for_text(&mut self, text: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.output().contains(text) {
            if let Some(status) = self.ended()? {
                bail!(
                    "{} ended with {status}: {}",
                    self.name,
                    self.output().trim()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "{} has not said {text:?} within {patience:?}: {}",
                self.name,
                self.output()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGTERM, and waits for that.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.pid())?), Signal::SIGTERM)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("{} did not end within {patience:?} of SIGTERM", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
