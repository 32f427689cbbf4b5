//! The connection's table: what docs/device.md says is what the device does.

use crate::model::LinkState::{self, Connected, Initial, Open, Served};
use crate::model::link::{Action, LinkEvent};

const DOCUMENT: &str = include_str!("../../../docs/device.md");
const CODE: &str = include_str!("../link.rs");

/// The rows, as they are written.
fn rows(text: &str, lead: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(lead));
    let begin = lines.skip_while(|line| !line.starts_with("| | initial |"));
    let table = begin.take_while(|line| line.starts_with('|'));
    table.map(str::to_owned).collect()
}

fn event(name: &str) -> LinkEvent {
    match name {
        "driver comes" => LinkEvent::DriverUp,
        "driver goes" => LinkEvent::DriverDown,
        "front-end comes" => LinkEvent::Opened,
        "front-end goes" => LinkEvent::Closed,
        "sending fails" => LinkEvent::SendFailed,
        "reset" => LinkEvent::Reset,
        "front-end breaks a rule" => LinkEvent::FrontEndViolation,
        "driver breaks a rule" => LinkEvent::DriverViolation,
        "device broken" => LinkEvent::Broken,
        _ => panic!("{name}: no such event"),
    }
}

fn outcome(cell: &str, state: LinkState) -> (LinkState, Action) {
    match cell {
        "-" => (state, Action::Nothing),
        "initial" => (Initial, Action::Nothing),
        "served" => (Served, Action::Nothing),
        "open" => (Open, Action::Nothing),
        "connected" => (Connected, Action::Begin),
        "initial, driver told" => (Initial, Action::EndTold),
        "initial, nobody told" => (Initial, Action::EndSilent),
        _ => panic!("{cell}: no such outcome"),
    }
}

#[test]
fn the_documented_table_is_the_device() {
    let table = rows(DOCUMENT, "");
    assert_eq!(table, rows(CODE, "//! "));
    assert_eq!(table.len(), 2 + 9);
    for row in &table[2..] {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for (state, cell) in [Initial, Served, Open, Connected]
            .into_iter()
            .zip(&cells[2..])
        {
            assert_eq!(state.on(event(cells[1])), outcome(cell, state), "{row}");
        }
    }
}
