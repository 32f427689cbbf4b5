//! Throughput, round trips and small frames in three machines.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vvu_tests::traffic::{self, Transfer};
use vvu_tests::{Guest, Lab, Trio, setup};

use crate::{say, table};

const MIB: u64 = 1 << 20;

/// One run of frames.
const WINDOW: Duration = Duration::from_secs(2);

/// Frames of one run of the kernel's generator.
const GENERATED: u64 = 200_000;

/// Length of a small frame without its checksum.
const SMALL: u16 = 60;

/// Patience with one transfer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the command line asks for.
pub(crate) struct Options {
    json: Option<PathBuf>,
    runs: usize,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options {
            json: None,
            runs: 5,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words
                .next()
                .with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--json" => options.json = Some(value.into()),
                "--runs" => {
                    options.runs = value.parse().with_context(|| format!("--runs {value}"))?
                }
                _ => bail!("bench does not know {word}"),
            }
        }
        ensure!(options.runs > 0, "--runs must be at least 1");
        Ok(options)
    }
}

/// One quantity, measured several times.
struct Series {
    what: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

impl Series {
    fn measure(
        what: &'static str,
        unit: &'static str,
        runs: usize,
        mut once: impl FnMut() -> Result<f64>,
    ) -> Result<Series> {
        say(what);
        let mut values = (0..runs)
            .map(|_| once())
            .collect::<Result<Vec<f64>>>()
            .context(what)?;
        values.sort_by(f64::total_cmp);
        Ok(Series { what, unit, values })
    }

    fn median(&self) -> f64 {
        self.values[self.values.len() / 2]
    }

    fn least(&self) -> f64 {
        self.values[0]
    }

    fn most(&self) -> f64 {
        self.values[self.values.len() - 1]
    }

    fn row(&self) -> Vec<String> {
        let spread = format!("{:.0} to {:.0}", self.least(), self.most());
        vec![
            self.what.to_owned(),
            format!("{:.0}", self.median()),
            spread,
            self.unit.to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({ "what": self.what, "unit": self.unit, "median": self.median(), "sorted": self.values })
    }
}

/// Boots, measures, and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_ready()?;
    let lab = Lab::new("bench")?;
    let accelerator = lab.accelerator().argument();
    say(&format!(
        "booting an appliance and two neighbours ({accelerator})"
    ));
    let mut trio = Trio::boot(lab, 1)?;
    let mut series = between_neighbours(&trio, options.runs)?;
    series.extend(with_appliance(&mut trio, options.runs)?);
    let mut rows = vec![
        ["what", "median", "spread", "unit"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(series.iter().map(Series::row));
    println!();
    table::print(&rows);
    if let Some(path) = &options.json {
        let all: Vec<Value> = series.iter().map(Series::json).collect();
        let text =
            serde_json::to_string_pretty(&json!({ "accelerator": accelerator, "series": all }))?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn between_neighbours(trio: &Trio, runs: usize) -> Result<Vec<Series>> {
    let stream =
        |from: &Guest, to: &Guest| Transfer::start_unchecked(from, to, 256 * MIB)?.finish(PATIENCE);
    Ok(vec![
        Series::measure("TCP, neighbour a to neighbour b", "Mbit/s", runs, || {
            stream(&trio.a, &trio.b)
        })?,
        Series::measure("TCP, neighbour b to neighbour a", "Mbit/s", runs, || {
            stream(&trio.b, &trio.a)
        })?,
        Series::measure("ping between neighbours, 56 bytes", "us", runs, || {
            let report = traffic::ping(&trio.a, &trio.b, 56, 200)?;
            report
                .median()
                .map(|micros| micros as f64)
                .context("no replies")
        })?,
    ])
}

fn with_appliance(trio: &mut Trio, runs: usize) -> Result<Vec<Series>> {
    // Nobody owns this address: frames to it end in the appliance.
    const NOWHERE: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0xff];
    let a = &trio.a;
    trio.vvu.stop()?;
    trio.vvu = serve_a(trio, "null:")?;
    let mut series = vec![
        Series::measure(
            "60-byte frames, neighbour to appliance, packet socket",
            "kpps",
            runs,
            || Ok(traffic::blast(a, NOWHERE, SMALL, WINDOW)?.kpps()),
        )?,
        Series::measure(
            "60-byte frames, neighbour to appliance, pktgen",
            "kpps",
            runs,
            || Ok(traffic::pktgen(a, NOWHERE, SMALL, GENERATED, 0)?.kpps()),
        )?,
        Series::measure(
            "60-byte frames, neighbour to appliance, pktgen with reused buffers",
            "kpps",
            runs,
            || Ok(traffic::pktgen(a, NOWHERE, SMALL, GENERATED, 1000)?.kpps()),
        )?,
    ];
    trio.vvu.stop()?;
    trio.vvu = serve_a(trio, &format!("gen:size={SMALL}"))?;
    series.push(Series::measure(
        "60-byte frames, appliance to neighbour",
        "kpps",
        runs,
        || Ok(traffic::count(a, WINDOW)?.kpps()),
    )?);
    Ok(series)
}

/// Starts `vvu` between neighbour a and another port, and waits until frames flow to it.
fn serve_a(trio: &Trio, other: &str) -> Result<vvu_tests::Job> {
    let function = trio
        .appliance
        .functions()
        .next()
        .context("the appliance has no function")?;
    let vvu = vvu_tests::start_vvu_with(
        &trio.appliance,
        &[format!("vvu:{function}"), other.to_owned()],
    )?;
    // The neighbour's VMM tries to reconnect every tenth of a second.
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!vvu.has_ended(), "vvu has ended: {}", vvu.printed());
    Ok(vvu)
}
