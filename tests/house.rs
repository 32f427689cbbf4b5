//! The rules of the house that a program can check: floors, the ledger of unsafe code, and
//! documents that name what is really there.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// What a room may import, itself aside. The table of `docs/tour.md` in another form.
const SRC: &[(&str, &[&str])] = &[
    ("memory", &[]),
    ("pci", &["memory", "mmio"]),
    ("protocol", &[]),
    ("mmio", &["memory"]),
    ("vfio", &["memory", "mmio", "pci"]),
    ("vfio_user", &["memory", "mmio", "pci", "socket"]),
    ("notify", &["mmio"]),
    ("socket", &["protocol"]),
    ("virtqueue", &["memory", "pci"]),
    ("device", &["memory", "mmio", "notify", "pci", "virtqueue"]),
    ("virtio", &["memory", "notify"]),
    (
        "model",
        &[
            "memory",
            "mmio",
            "notify",
            "pci",
            "protocol",
            "socket",
            "vfio_user",
        ],
    ),
    (
        "transport",
        &["device", "memory", "notify", "protocol", "socket"],
    ),
    (
        "session",
        &["memory", "notify", "protocol", "transport", "virtio"],
    ),
];

/// The same for the data plane.
const PMD: &[(&str, &[&str])] = &[
    ("stats", &[]),
    ("vring", &[]),
    ("mempool", &[]),
    ("wake", &[]),
    ("bdev", &["mempool", "stats", "wake"]),
    ("queue", &["vring", "wake"]),
    ("blk", &["bdev", "queue", "stats", "vring", "wake"]),
    ("scsi", &["bdev", "queue", "stats", "vring", "wake"]),
    ("port", &["mempool", "stats", "vring", "wake"]),
    ("net", &["mempool", "port", "stats", "vring", "wake"]),
    (
        "worker",
        &["mempool", "net", "port", "stats", "vring", "wake"],
    ),
    (
        "backend",
        &[
            "blk", "mempool", "net", "port", "queue", "scsi", "stats", "vring", "wake", "worker",
        ],
    ),
];

/// The names after `crate::` in what is not test code.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.starts_with("//"));
    let mut names = BTreeSet::new();
    for line in lines {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            let inner = rest
                .strip_prefix('{')
                .map_or(vec![rest], |list| list.split(',').collect());
            for name in inner {
                let name: String = name
                    .trim()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                names.insert(name);
            }
        }
    }
    names
}

fn check_floors(folder: &str, table: &[(&str, &[&str])]) {
    let allowed: BTreeMap<_, _> = table.iter().copied().collect();
    let mut wrong = Vec::new();
    for path in files(folder, ".rs") {
        let name = relative(&path);
        let inner = name.strip_prefix(folder).unwrap().trim_start_matches('/');
        let room = inner.split('/').next().unwrap().trim_end_matches(".rs");
        if matches!(room, "lib" | "mock") || name.contains("test") {
            continue;
        }
        let Some(may) = allowed.get(room) else {
            wrong.push(format!(
                "{name}: the room {room} is not in the table of floors"
            ));
            continue;
        };
        for import in imports(&read(&path)) {
            if allowed.contains_key(import.as_str()) && import != room && !may.contains(&&*import) {
                wrong.push(format!("{name} imports {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn rooms_import_only_from_lower_floors() {
    check_floors("src", SRC);
    check_floors("pmd/src", PMD);
}

#[test]
fn only_the_vvu_transport_knows_the_device() {
    for path in files("src/transport", ".rs") {
        let name = relative(&path);
        if !name.starts_with("src/transport/vvu") {
            assert!(
                !imports(&read(&path)).contains("device"),
                "{name} imports device"
            );
        }
    }
}

#[test]
fn unsafe_code_is_where_the_ledger_says() {
    let ledger = read(&root().join("docs/safety.md"));
    let listed: BTreeSet<String> = ledger
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('`').nth(1).unwrap().to_owned())
        .filter(|name| name.ends_with(".rs"))
        .collect();
    let mut found = BTreeSet::new();
    for folder in ["src", "pmd", "apps", "tests"] {
        for path in files(folder, ".rs") {
            let text = read(&path);
            if text
                .lines()
                .any(|line| line.trim_start().starts_with("#![allow(unsafe_code)]"))
            {
                found.insert(relative(&path));
            } else if !path.ends_with("house.rs") {
                assert!(
                    !text.contains("allow(unsafe_code)"),
                    "{}: allow unsafe code for a whole file or not at all",
                    path.display()
                );
            }
        }
    }
    assert_eq!(found, listed, "left: the code, right: docs/safety.md");
}

#[test]
fn documents_name_what_is_there() {
    let mut documents = files("docs", ".md");
    for name in ["README.md", "CONTRIBUTING.md", "qemu-patches/README.md"] {
        documents.push(root().join(name));
    }
    let mut wrong = Vec::new();
    for document in documents {
        let text = read(&document);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !document.parent().unwrap().join(target).exists() {
                wrong.push(format!("{}: {target}", relative(&document)));
            }
        }
    }
    assert!(wrong.is_empty(), "links to nowhere: {wrong:#?}");
}

#[test]
fn every_request_is_documented() {
    let text = read(&root().join("docs/protocol.md"));
    for request in vvu::protocol::REQUESTS {
        let row = format!("| {} | {} |", request.number, request.name);
        assert!(text.contains(&row), "docs/protocol.md has no row {row:?}");
    }
}

/// A row of the tables of conformance: numbers of statements, names of tests, results.
struct Conformance {
    numbers: Vec<u32>,
    tests: Vec<String>,
    results: Vec<String>,
}

fn conformance_rows() -> Vec<Conformance> {
    let text = read(&root().join("docs/device.md"));
    let (_, tables) = text.split_once("\n## Conformance\n").unwrap();
    let rows = tables.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let numbers: Result<_, _> = cells.next()?.split(", ").map(str::parse).collect();
        let tests = cells.nth(1)?.split('`').skip(1).step_by(2);
        Some(Conformance {
            numbers: numbers.ok()?,
            tests: tests.map(str::to_owned).collect(),
            results: cells.map(str::to_owned).collect(),
        })
    });
    rows.collect()
}

/// Names of all functions in the programs of these folders.
fn functions(folders: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in folders.iter().flat_map(|folder| files(folder, ".rs")) {
        let text = read(&path);
        for (at, _) in text.match_indices("fn ") {
            let rest = &text[at + 3..];
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_');
            names.extend(name.take(1).map(str::to_owned));
        }
    }
    names
}

/// The number in the name of a conformance test.
fn statement(name: &str) -> Option<u32> {
    let (number, _) = name.strip_prefix('c')?.split_once('_')?;
    (number.len() == 2).then(|| number.parse().ok())?
}

#[test]
fn conformance_is_what_the_tables_say() {
    let rows = conformance_rows();
    let numbers: BTreeSet<u32> = rows.iter().flat_map(|row| row.numbers.clone()).collect();
    assert_eq!(numbers, (1..=36).collect(), "a row for each statement");

    let known = functions(&["src", "tests"]);
    let cases = functions(&["tests/conformance"]);
    let cases: BTreeSet<_> = cases
        .into_iter()
        .filter(|name| statement(name).is_some())
        .collect();
    let tables = read(&root().join("tests/conformance/device/mod.rs"));
    let (_, machines) = tables.split_once("MACHINE_CASES").unwrap();
    let machines: BTreeSet<_> = machines
        .split_whitespace()
        .map(|word| word.trim_end_matches(';'))
        .collect();
    let mut listed = BTreeSet::new();
    for Conformance {
        numbers,
        tests,
        results,
    } in &rows
    {
        assert!(!tests.is_empty(), "{numbers:?} has no test");
        for test in tests {
            assert!(known.contains(test), "{numbers:?}: there is no test {test}");
            if let Some(number) = statement(test) {
                assert!(
                    numbers.contains(&number),
                    "{test} is in the row of {numbers:?}"
                );
                listed.insert(test.clone());
            }
        }
        // The driver's cases run in four dialects, the device's on three devices, and what needs
        // a machine on the first of them.
        let everywhere = tests
            .iter()
            .all(|test| cases.contains(test) && !machines.contains(test.as_str()));
        let there = if everywhere { results.len() } else { 1 };
        let expected: Vec<_> = (0..results.len())
            .map(|at| if at < there { "ok" } else { "-" })
            .collect();
        assert_eq!(results, &expected, "{numbers:?}");
        let driver = numbers.iter().all(|number| *number <= 16) && !tests[0].contains("placement");
        assert_eq!(results.len(), if driver { 4 } else { 3 }, "{numbers:?}");
    }
    assert_eq!(
        cases, listed,
        "left: tests/conformance, right: docs/device.md"
    );
}
