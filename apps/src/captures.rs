//! `--pcap`: what passes a port, written to a file, from the start or when a signal asks for it.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use vvu_pmd::backend::{PortId, Workers};
use vvu_pmd::port::capture::Recorder;

use crate::port::{Options, PortSpec, path};

/// One `--pcap`: what passes a port, and the file it is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaptureSpec {
    /// The port's name, or its number among the options.
    port: String,
    file: PathBuf,
    snap: u32,
    /// Does not begin by itself.
    paused: bool,
}

impl CaptureSpec {
    /// Which of `ports` is meant.
    fn find(&self, ports: &[PortSpec]) -> Result<usize, String> {
        if let Ok(number) = self.port.parse()
            && number < ports.len()
        {
            return Ok(number);
        }
        let named = |(_, port): &(usize, &PortSpec)| port.name == self.port;
        let mut found = ports.iter().enumerate().filter(named);
        match (found.next(), found.next()) {
            (Some((number, _)), None) => Ok(number),
            (Some(_), Some(_)) => Err(format!(
                "several ports are called {}; give the number of one, from 0",
                self.port
            )),
            (None, _) => {
                let names = ports.iter().enumerate();
                let names: Vec<_> = names
                    .map(|(n, port)| format!("{n}: {}", port.name))
                    .collect();
                Err(format!(
                    "there is no port {}; there are {}",
                    self.port,
                    names.join(", ")
                ))
            }
        }
    }
}

impl FromStr for CaptureSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, rest) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} is not PORT=FILE, such as unix:/run/a.sock=a.pcapng")
        })?;
        let mut parts = rest.split(',');
        let file = path(parts.next().unwrap_or_default())?;
        let mut options = Options::new(parts)?;
        let snap = options.take("snap", |value| match value.parse() {
            Ok(snap @ 14..=Recorder::SNAP) => Ok(snap),
            _ => Err(format!(
                "{value:?} is not a number from 14 to {}",
                Recorder::SNAP
            )),
        })?;
        let paused = options.flag("paused")?;
        match options.first() {
            None => Ok(Self {
                port: port.to_owned(),
                file,
                snap: snap.unwrap_or(Recorder::SNAP),
                paused,
            }),
            Some(key) => Err(format!(
                "there is no option {key:?} here, only snap=BYTES and paused"
            )),
        }
    }
}

/// All captures, each of a port of its own.
pub(crate) struct Captures<'a> {
    /// What is asked for, and the port's place among the options.
    all: Vec<(&'a CaptureSpec, usize)>,
    ports: &'a [PortSpec],
    running: bool,
}

impl<'a> Captures<'a> {
    /// Those of `specs`. Two of one port would leave one file empty.
    pub(crate) fn new(specs: &'a [CaptureSpec], ports: &'a [PortSpec]) -> anyhow::Result<Self> {
        let mut all: Vec<(&CaptureSpec, usize)> = Vec::new();
        for capture in specs {
            let port = capture.find(ports).map_err(anyhow::Error::msg)?;
            let twice =
                |(other, of): &(&CaptureSpec, usize)| *of == port || other.file == capture.file;
            if all.iter().any(twice) {
                bail!(
                    "--pcap gives port {} or file {} twice",
                    ports[port].name,
                    capture.file.display()
                );
            }
            all.push((capture, port));
        }
        Ok(Self {
            all,
            ports,
            running: false,
        })
    }

    /// Begins those that are not to wait; `ids` are the ports.
    pub(crate) fn start(&mut self, workers: &Workers, ids: &[PortId]) -> anyhow::Result<()> {
        self.begin(workers, ids, |capture| !capture.paused)
    }

    /// Ends all captures if any runs, otherwise begins all, with empty files.
    pub(crate) fn toggle(&mut self, workers: &Workers, ids: &[PortId]) -> anyhow::Result<()> {
        if !self.running {
            tracing::info!(captures = self.all.len(), "captures begin");
            return self.begin(workers, ids, |_| true);
        }
        self.running = false;
        for (_, port) in &self.all {
            let ended = workers.stop_capture(ids[*port]);
            ended.with_context(|| format!("capture of port {}", self.ports[*port].name))?;
        }
        tracing::info!("captures end");
        Ok(())
    }

    fn begin(
        &mut self,
        workers: &Workers,
        ids: &[PortId],
        which: impl Fn(&CaptureSpec) -> bool,
    ) -> anyhow::Result<()> {
        for (capture, port) in &self.all {
            if which(capture) {
                self.running = true;
                workers
                    .start_capture(ids[*port], &capture.file, capture.snap)
                    .with_context(|| format!("capture of port {}", self.ports[*port].name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn captures_name_a_port() {
        let ports = ["null:", "unix:/run/a.sock", "null:"].map(|text| text.parse().unwrap());
        let find = |text: &str| text.parse::<CaptureSpec>().unwrap().find(&ports);
        assert_eq!(find("unix:/run/a.sock=a.pcapng"), Ok(1));
        assert_eq!(find("2=a=b.pcapng,snap=96"), Ok(2));
        assert!(find("null=a").unwrap_err().contains("several ports"));
        assert!(find("3=a").unwrap_err().contains("1: unix:/run/a.sock"));
        let spec: CaptureSpec = "2=a=b.pcapng,snap=96".parse().unwrap();
        assert_eq!(
            (spec.file, spec.snap, spec.paused),
            ("a=b.pcapng".into(), 96, false)
        );
        assert!("2=a,paused".parse::<CaptureSpec>().unwrap().paused);
        for (text, reason) in [
            ("unix:/run/a.sock", "PORT=FILE"),
            ("1=", "cannot be empty"),
            ("1=a,snap=3", "14 to"),
            ("1=a,size=3", "snap=BYTES"),
            ("1=a,paused=1", "takes no value"),
        ] {
            let error = text.parse::<CaptureSpec>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
