//! A program that runs in a guest.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::channel::{Channel, End};
use crate::wire::Request;

/// Longest command, unless the caller knows better.
pub(crate) const COMMAND: Duration = Duration::from_secs(30);

/// What a finished program left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Exit code, absent when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A program that runs in a guest.
pub struct Job {
    name: String,
    channel: Arc<Channel>,
    id: u32,
}

impl Job {
    pub(crate) fn new(name: String, channel: Arc<Channel>, id: u32) -> Job {
        Job { name, channel, id }
    }

    /// Its process id in the guest.
    pub fn pid(&self) -> Result<u32> {
        let known = self
            .channel
            .wait(self.id, Instant::now() + COMMAND, |call| match &call.end {
                Some(End::Failed(why)) => Some(Err(why.clone())),
                _ => call.pid.map(Ok),
            });
        match known {
            Some(Ok(pid)) => Ok(pid),
            Some(Err(why)) => bail!("{}: {why}", self.name),
            None => bail!("{} did not start", self.name),
        }
    }

    /// Whether it has ended, in whatever way.
    pub fn has_ended(&self) -> bool {
        self.channel
            .wait(self.id, Instant::now(), |call| call.end.clone())
            .is_some()
    }

    /// Everything it has printed so far, standard error first.
    pub fn printed(&self) -> String {
        let all = self.channel.wait(self.id, Instant::now(), |call| {
            let bytes = [call.stderr.as_slice(), call.stdout.as_slice()].concat();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        });
        all.unwrap_or_default()
    }

    /// Waits until it has printed a text.
    pub fn wait_for_text(&self, text: &str, patience: Duration) -> Result<()> {
        let contains = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let found = self
            .channel
            .wait(self.id, Instant::now() + patience, |call| {
                let found = contains(&call.stderr) || contains(&call.stdout);
                (found || call.end.is_some()).then_some(found)
            });
        ensure!(
            found == Some(true),
            "{} did not print {text:?} within {patience:?}: {}",
            self.name,
            self.printed()
        );
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self, patience: Duration) -> Result<Output> {
        let ended = self
            .channel
            .wait(self.id, Instant::now() + patience, |call| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                Some((call.end.clone()?, text(&call.stdout), text(&call.stderr)))
            });
        match ended {
            Some((End::Exited { code, .. }, stdout, stderr)) => Ok(Output {
                code,
                stdout,
                stderr,
            }),
            Some((End::Done, stdout, stderr)) => Ok(Output {
                code: Some(0),
                stdout,
                stderr,
            }),
            Some((End::Failed(why), ..)) => bail!("{}: {why}", self.name),
            Some((End::Lost, ..)) => bail!("{} was lost: the guest was reset or ended", self.name),
            None => bail!(
                "{} did not end within {patience:?}; it printed: {}",
                self.name,
                self.printed()
            ),
        }
    }

    /// Waits for its end and reads its report.
    pub fn report<T: DeserializeOwned>(&self, patience: Duration) -> Result<T> {
        let output = self.wait(patience)?;
        ensure!(
            output.code == Some(0),
            "{} failed: {}",
            self.name,
            output.stderr.trim()
        );
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("{} reported {}", self.name, output.stdout))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let id = self.channel.request(
            &Request::Signal {
                pid: self.pid()?,
                signal,
            },
            None,
        )?;
        let sent = Job::new(
            format!("signal {signal} to {}", self.name),
            self.channel.clone(),
            id,
        );
        sent.wait(COMMAND).map(drop)
    }

    /// Ends it with SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.signal(nix::libc::SIGKILL)?;
        self.wait(COMMAND).map(drop)
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub fn stop(&self) -> Result<Output> {
        self.signal(nix::libc::SIGTERM)?;
        self.wait(COMMAND)
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
