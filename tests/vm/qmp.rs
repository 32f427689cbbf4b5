//! The part of the QEMU Machine Protocol that a lab needs: one command, one answer.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A monitor connection. QEMU greets when its main loop runs, which is after it has found its
/// vhost-user back-end; so the greeting is awaited by the first command.
#[derive(Debug)]
pub struct Qmp {
    monitor: BufReader<UnixStream>,
    log: File,
    greeted: bool,
}

impl Qmp {
    /// Takes over a connection that QEMU has just opened.
    pub fn new(monitor: UnixStream, log: File) -> Result<Qmp> {
        monitor.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Qmp {
            monitor: BufReader::new(monitor),
            log,
            greeted: false,
        })
    }

    /// Carries out one command and returns its result; events on the way are only logged.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        if !self.greeted {
            self.line().context("QEMU's greeting")?;
            self.greeted = true;
            self.execute("qmp_capabilities", json!({}))?;
        }
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.log, "> {request}")?;
        writeln!(self.monitor.get_mut(), "{request}")?;
        loop {
            let mut answer = self
                .line()
                .with_context(|| format!("waiting for the answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{request}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.monitor.read_line(&mut line)? == 0 {
            bail!("QEMU has closed its monitor");
        }
        write!(self.log, "< {line}")?;
        Ok(serde_json::from_str(&line)?)
    }
}
