//! A table of docs/performance.md that is measured, kept and compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};

/// How much a cell may grow before it fails: compilers, and what a C library's memcpy does on
/// other processors, differ by less.
const MARGIN: f64 = 1.05;

const END: &str = "<!-- end -->\n";

/// What to do with a table that was measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Keep {
    /// Compare with the table in docs/performance.md; fail if a cell grew
    #[arg(long)]
    check: bool,
    /// Put the table into docs/performance.md
    #[arg(long, conflicts_with = "check")]
    accept: bool,
}

/// Name of a row, and instructions by column.
pub(crate) type Cells = BTreeMap<(String, String), Vec<f64>>;

/// What a table looks like.
#[derive(Debug)]
pub(crate) struct Shape {
    /// The command that measures it: `./run perf` and this.
    pub(crate) command: &'static str,
    /// Names of the rows, in order.
    pub(crate) rows: Vec<(&'static str, &'static str)>,
    /// Heads of the columns...
    pub(crate) columns: &'static [&'static str],
    /// ...and what a cell counts instructions of.
    pub(crate) of: &'static str,
}

impl Shape {
    /// Prints the table, and keeps it or compares it.
    pub(crate) fn finish(&self, found: &Cells, keep: &Keep) -> anyhow::Result<()> {
        let text = self.emit(found);
        print!("{text}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        let document = std::fs::read_to_string(&path).context("docs/performance.md")?;
        let (before, recorded, after) = self.split(&document)?;
        if keep.accept {
            std::fs::write(&path, format!("{before}{text}{after}"))?;
        }
        if keep.check && cfg!(target_arch = "x86_64") {
            self.compare(found, &parse(recorded)?)?;
        }
        Ok(())
    }

    /// What is before the table in the document, the table, and what is behind it.
    fn split<'d>(&self, document: &'d str) -> anyhow::Result<(&'d str, &'d str, &'d str)> {
        let begin = format!("<!-- ./run perf {} --accept -->\n", self.command);
        let found = document.find(&begin).map(|at| at + begin.len());
        let ends = found.and_then(|start| Some((start, start + document[start..].find(END)?)));
        let (start, end) = ends.context("docs/performance.md has no place for the table")?;
        Ok((&document[..start], &document[start..end], &document[end..]))
    }

    fn emit(&self, cells: &Cells) -> String {
        let mut text = String::from("| rings | |");
        for column in self.columns {
            let _ = write!(text, " {column} |");
        }
        text += "\n|---|---|";
        text += &"---|".repeat(self.columns.len());
        text.push('\n');
        for (driver, way) in &self.rows {
            if let Some(row) = cells.get(&((*driver).into(), (*way).into())) {
                let _ = write!(text, "| {driver} | {way} |");
                for cell in row {
                    let _ = write!(text, " {cell:.1} |");
                }
                text.push('\n');
            }
        }
        text
    }

    fn compare(&self, found: &Cells, recorded: &Cells) -> anyhow::Result<()> {
        let (mut wrong, of) = (String::new(), self.of);
        for ((driver, way), row) in found {
            let known = recorded.get(&(driver.clone(), way.clone()));
            for (number, (column, now)) in self.columns.iter().zip(row).enumerate() {
                match known.and_then(|known| known.get(number)) {
                    Some(known) if *now <= known * MARGIN => {}
                    Some(known) => {
                        let percent = (now / known - 1.0) * 100.0;
                        let _ = writeln!(
                            wrong,
                            "{driver}, {way}, {column}: {now:.1} instructions per {of}, \
                             {percent:.1} % more than the {known:.1} recorded"
                        );
                    }
                    None => {
                        let _ = writeln!(wrong, "{driver}, {way}, {column}: not recorded yet");
                    }
                }
            }
        }
        for key in recorded.keys().filter(|key| !found.contains_key(*key)) {
            let _ = writeln!(
                wrong,
                "{}, {}: recorded, but cannot be had any more",
                key.0, key.1
            );
        }
        ensure!(
            wrong.is_empty(),
            "{wrong}If that has to be (or the compiler is another): ./run perf {} --accept, and \
             say why in the commit",
            self.command
        );
        Ok(())
    }
}

fn parse(text: &str) -> anyhow::Result<Cells> {
    let mut table = Cells::new();
    for line in text.lines().skip(2) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [driver, way, numbers @ ..] = cells.as_slice() else {
            bail!("no row of instructions: {line:?}");
        };
        let numbers = numbers.iter().map(|n| n.parse::<f64>());
        let numbers = numbers.collect::<Result<_, _>>();
        let numbers = numbers.with_context(|| format!("no row of instructions: {line:?}"))?;
        table.insert(((*driver).into(), (*way).into()), numbers);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shape() -> Shape {
        Shape {
            command: "it",
            rows: vec![("split", "g2b")],
            columns: &["64", "256", "1518"],
            of: "packet",
        }
    }

    fn cells(cell: f64) -> Cells {
        Cells::from([(("split".into(), "g2b".into()), vec![cell, 20.0, 30.0])])
    }

    #[test]
    fn what_grew_is_named() {
        let compare = |found: &Cells, recorded: &Cells| shape().compare(found, recorded);
        assert!(compare(&cells(10.4), &cells(10.0)).is_ok());
        assert!(compare(&cells(5.0), &cells(10.0)).is_ok());
        let error = compare(&cells(10.6), &cells(10.0)).unwrap_err().to_string();
        assert!(error.contains("split, g2b, 64: 10.6"), "{error}");
        assert!(!error.contains("256"), "{error}");
        let error = compare(&cells(1.0), &Cells::new()).unwrap_err().to_string();
        assert!(error.contains("not recorded"), "{error}");
        let error = compare(&Cells::new(), &cells(1.0)).unwrap_err().to_string();
        assert!(error.contains("cannot be had"), "{error}");
    }

    #[test]
    fn the_table_is_read_as_it_was_written() {
        let begin = "<!-- ./run perf it --accept -->\n";
        let text = shape().emit(&cells(10.0));
        let document = format!("before\n{begin}{text}{END}after\n");
        let shape = shape();
        let (before, text, after) = shape.split(&document).unwrap();
        assert!(before.starts_with("before") && after.ends_with("after\n"));
        assert_eq!(parse(text).unwrap(), cells(10.0));
        assert!(shape.split("no table").is_err());
        assert!(parse("| |\n|---|\n| split | g2b | many |").is_err());
    }
}
