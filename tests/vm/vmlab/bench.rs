//! Throughput, round trips and small frames in three machines.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vvu_tests::traffic::{self, Transfer};
use vvu_tests::{Guest, Lab, NO_OFFLOADS, Trio, setup};

use crate::{say, table};

const MIB: u64 = 1 << 20;

/// One run of frames.
const WINDOW: Duration = Duration::from_secs(2);

/// Frames of one run of the kernel's generator.
const GENERATED: u64 = 200_000;

/// Length of a small frame without its checksum.
const SMALL: u16 = 60;

/// A datagram that fits an ordinary frame.
const DATAGRAM: u16 = 1400;

/// Nobody owns this address: frames to it end in the appliance.
const NOWHERE: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0xff];

/// Patience with one transfer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the command line asks for.
pub(crate) struct Options {
    json: Option<PathBuf>,
    runs: usize,
    stock: bool,
    only: String,
    vvu: Option<PathBuf>,
    packed: bool,
    offloads: bool,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options {
            json: None,
            runs: 5,
            stock: false,
            only: String::new(),
            vvu: None,
            packed: false,
            offloads: true,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.with_context(|| format!("{word} needs a value"))
            };
            match word.as_str() {
                "--json" => options.json = Some(value()?.into()),
                "--runs" => {
                    let runs = value()?;
                    options.runs = runs.parse().with_context(|| format!("--runs {runs}"))?
                }
                "--stock" => options.stock = true,
                "--only" => options.only = value()?.clone(),
                "--vvu" => options.vvu = Some(value()?.into()),
                "--rings" => options.packed = choice(word, value()?, ["split", "packed"])?,
                "--offloads" => options.offloads = choice(word, value()?, ["off", "on"])?,
                _ => bail!("bench does not know {word}"),
            }
        }
        ensure!(options.runs > 0, "--runs must be at least 1");
        ensure!(
            !options.stock || options.vvu.is_none(),
            "--stock and --vvu are two comparisons; choose one"
        );
        Ok(options)
    }

    /// Properties of the neighbours' cards.
    fn properties(&self) -> String {
        let packed = if self.packed { "on" } else { "off" };
        let offloads = match self.offloads {
            true => String::new(),
            false => format!(",{NO_OFFLOADS}"),
        };
        format!("packed={packed}{offloads}")
    }
}

/// Which of two words it is: whether the second.
fn choice(option: &str, word: &str, words: [&str; 2]) -> Result<bool> {
    let place = words.iter().position(|one| *one == word);
    place
        .map(|place| place == 1)
        .with_context(|| format!("{option} takes {} or {}, not {word}", words[0], words[1]))
}

/// A quantity, and how it is measured once.
struct Quantity {
    what: &'static str,
    unit: &'static str,
    once: fn(&Trio) -> Result<f64>,
}

/// Quantities by what `vvu` connects neighbour a with: b, or another kind of port.
const GROUPS: [(Option<&str>, &[Quantity]); 3] = [
    (
        None,
        &[
            Quantity {
                what: "TCP, neighbour a to neighbour b",
                unit: "Mbit/s",
                once: |trio| stream(&trio.a, &trio.b),
            },
            Quantity {
                what: "TCP, neighbour b to neighbour a",
                unit: "Mbit/s",
                once: |trio| stream(&trio.b, &trio.a),
            },
            Quantity {
                what: "ping between neighbours, 56 bytes",
                unit: "us",
                once: ping,
            },
            Quantity {
                what: "TCP, one byte there and back",
                unit: "us",
                once: |trio| ask(trio, false),
            },
            Quantity {
                what: "UDP, one byte there and back",
                unit: "us",
                once: |trio| ask(trio, true),
            },
            Quantity {
                what: "UDP of 1400 bytes, neighbour a to neighbour b, what arrives",
                unit: "Mbit/s",
                once: |trio| flood(trio, 1),
            },
            Quantity {
                what: "the same, sent 40 at a time (UDP_SEGMENT)",
                unit: "Mbit/s",
                once: |trio| flood(trio, 40),
            },
        ],
    ),
    (
        Some("null:"),
        &[
            Quantity {
                what: "60-byte frames, neighbour to appliance, packet socket",
                unit: "kpps",
                once: |trio| Ok(traffic::blast(&trio.a, NOWHERE, SMALL, WINDOW)?.kpps()),
            },
            Quantity {
                what: "60-byte frames, neighbour to appliance, pktgen",
                unit: "kpps",
                once: |trio| Ok(traffic::pktgen(&trio.a, NOWHERE, SMALL, GENERATED, 0)?.kpps()),
            },
            Quantity {
                what: "60-byte frames, neighbour to appliance, pktgen with reused buffers",
                unit: "kpps",
                once: |trio| Ok(traffic::pktgen(&trio.a, NOWHERE, SMALL, GENERATED, 1000)?.kpps()),
            },
        ],
    ),
    (
        Some("gen:size=60"),
        &[Quantity {
            what: "60-byte frames, appliance to neighbour",
            unit: "kpps",
            once: |trio| Ok(traffic::count(&trio.a, WINDOW)?.kpps()),
        }],
    ),
];

/// A quantity's values in one line-up, sorted.
struct Series(Vec<f64>);

impl Series {
    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn spread(&self) -> String {
        format!("{:.0} to {:.0}", self.0[0], self.0[self.0.len() - 1])
    }
}

/// Line-ups and what they are called.
type LineUps = Vec<(&'static str, Trio)>;

/// Boots, measures, and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_ready()?;
    let lab = Lab::new("bench")?;
    let accelerator = lab.accelerator().argument();
    say(&format!(
        "booting an appliance and two neighbours ({accelerator})"
    ));
    let properties = options.properties();
    let ours = Trio::boot_with(lab, 1, &properties)?;
    say(&format!(
        "features in a and b: {:#x}, {:#x}",
        ours.a.features()?,
        ours.b.features()?
    ));
    let mut trios: LineUps = match options.vvu {
        None => vec![("patched", ours)],
        Some(_) => vec![("this vvu", ours)],
    };
    if let Some(vvu) = &options.vvu {
        say(&format!("booting the same again with {}", vvu.display()));
        let other = Trio::boot_with(Lab::with_vvu("bench-other", vvu)?, 1, &properties)?;
        let features = other.a.features()?;
        say(&format!("features in its neighbours: {features:#x}"));
        // First, so that the ratio is of this one to that one.
        trios.insert(0, ("the other", other));
    }
    if options.stock {
        say("booting the same again without a patch");
        trios.push((
            "vfio-user",
            Trio::boot_served(Lab::stock("bench-stock")?, 1)?,
        ));
    }
    let mut rows = vec![head(&trios)];
    let mut all: Vec<Value> = Vec::new();
    for (other, quantities) in GROUPS {
        let wanted = |quantity: &&Quantity| quantity.what.contains(&options.only);
        let quantities: Vec<&Quantity> = quantities.iter().filter(wanted).collect();
        if let (Some(other), false) = (other, quantities.is_empty()) {
            for (_, trio) in &mut trios {
                serve_a(trio, other)?;
            }
        }
        for quantity in quantities {
            let series = measure(quantity, options.runs, &trios)?;
            rows.push(row(quantity, &series));
            for ((line_up, _), series) in trios.iter().zip(&series) {
                all.push(json!({
                    "what": quantity.what, "line-up": line_up, "unit": quantity.unit,
                    "median": series.median(), "sorted": series.0,
                }));
            }
        }
    }
    println!();
    table::print(&rows);
    for (_, trio) in &mut trios {
        for function in &mut trio.functions {
            println!("  {}", function.summary()?);
        }
    }
    if let Some(path) = &options.json {
        let text =
            serde_json::to_string_pretty(&json!({ "accelerator": accelerator, "series": all }))?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Measures in all line-ups in turn.
fn measure(quantity: &Quantity, runs: usize, trios: &LineUps) -> Result<Vec<Series>> {
    say(quantity.what);
    let mut series: Vec<Series> = trios.iter().map(|_| Series(Vec::new())).collect();
    for _ in 0..runs {
        for ((_, trio), series) in trios.iter().zip(&mut series) {
            series.0.push((quantity.once)(trio).context(quantity.what)?);
        }
    }
    for one in &mut series {
        one.0.sort_by(f64::total_cmp);
    }
    Ok(series)
}

fn head(trios: &LineUps) -> Vec<String> {
    let mut words = vec!["what".to_owned(), "unit".to_owned()];
    for (line_up, _) in trios {
        words.extend([(*line_up).to_owned(), "spread".to_owned()]);
    }
    if trios.len() > 1 {
        words.push("ratio".to_owned());
    }
    words
}

fn row(quantity: &Quantity, series: &[Series]) -> Vec<String> {
    let mut words = vec![quantity.what.to_owned(), quantity.unit.to_owned()];
    for one in series {
        words.extend([format!("{:.0}", one.median()), one.spread()]);
    }
    if let [one, other] = series {
        words.push(format!("{:.2}", other.median() / one.median()));
    }
    words
}

fn stream(from: &Guest, to: &Guest) -> Result<f64> {
    Transfer::start_unchecked(from, to, 256 * MIB)?.finish(PATIENCE)
}

fn ping(trio: &Trio) -> Result<f64> {
    let report = traffic::ping(&trio.a, &trio.b, 56, 200)?;
    let median = report.median().context("no replies")?;
    Ok(median as f64)
}

/// Median round trip of one byte and its answer, as applications see it.
fn ask(trio: &Trio, udp: bool) -> Result<f64> {
    let report = traffic::ask(&trio.a, &trio.b, udp, 1, 500)?;
    let median = report.median().context("no answers")?;
    Ok(median as f64)
}

fn flood(trio: &Trio, burst: u16) -> Result<f64> {
    let report = traffic::udp_flood(&trio.a, &trio.b, DATAGRAM, burst, WINDOW)?;
    Ok(report.bytes as f64 * 8.0 / report.micros.max(1) as f64)
}

/// Lets `vvu` serve neighbour a and another port from now on, and waits until frames flow.
fn serve_a(trio: &mut Trio, other: &str) -> Result<()> {
    trio.vvu.stop()?;
    let function = trio
        .appliance
        .functions()
        .next()
        .context("the appliance has no function")?;
    let ports = [format!("vvu:{function}"), other.to_owned()];
    trio.vvu = vvu_tests::start_vvu_with(&trio.appliance, &ports)?;
    // The neighbour's VMM tries to reconnect every tenth of a second.
    std::thread::sleep(Duration::from_secs(2));
    ensure!(
        !trio.vvu.has_ended(),
        "vvu has ended: {}",
        trio.vvu.printed()
    );
    Ok(())
}
