//! The connection: four states, nine events, one table without holes.
//!
//! | | initial | served (driver there) | open (front-end there) | connected |
//! |---|---|---|---|---|
//! | driver comes | served | - | connected | - |
//! | driver goes | - | initial | - | initial, nobody told |
//! | front-end comes | open | connected | - | - |
//! | front-end goes | - | - | initial | initial, driver told |
//! | sending fails | - | - | - | initial, driver told |
//! | reset | - | initial | - | initial, nobody told |
//! | front-end breaks a rule | - | - | - | initial, driver told |
//! | driver breaks a rule | - | - | - | initial, driver told |
//! | device broken | - | initial | - | initial, nobody told |
//!
//! A front-end that waits survives what the driver does; one that was served does not.

/// Who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkState {
    /// Nobody.
    #[default]
    Initial,
    /// The driver (BACKEND_UP).
    Served,
    /// A front-end.
    Open,
    /// Both.
    Connected,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkEvent {
    DriverUp,
    DriverDown,
    Opened,
    Closed,
    SendFailed,
    Reset,
    FrontEndViolation,
    DriverViolation,
    Broken,
}

impl std::fmt::Display for LinkEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DriverUp => "the driver came",
            Self::DriverDown => "the driver ended it",
            Self::Opened => "a front-end came",
            Self::Closed => "the front-end went",
            Self::SendFailed => "the front-end cannot be reached",
            Self::Reset => "the device was reset",
            Self::FrontEndViolation => "the front-end broke a rule",
            Self::DriverViolation => "the driver broke a rule",
            Self::Broken => "the driver's queues make no sense",
        })
    }
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// A connection begins.
    Begin,
    /// The connection ends; the driver is told by a configuration interrupt.
    EndTold,
    /// The connection ends, and who caused it knows.
    EndSilent,
}

use Action::{Begin, EndSilent, EndTold, Nothing};
use LinkState::{Connected, Initial, Open, Served};

impl LinkState {
    /// The table.
    pub(super) fn on(self, event: LinkEvent) -> (Self, Action) {
        match (event, self) {
            (LinkEvent::DriverUp, Initial) => (Served, Nothing),
            (LinkEvent::DriverUp, Open) | (LinkEvent::Opened, Served) => (Connected, Begin),
            (LinkEvent::DriverDown | LinkEvent::Reset | LinkEvent::Broken, Served) => {
                (Initial, Nothing)
            }
            (LinkEvent::DriverDown | LinkEvent::Reset | LinkEvent::Broken, Connected) => {
                (Initial, EndSilent)
            }
            (LinkEvent::Opened, Initial) => (Open, Nothing),
            (LinkEvent::Closed, Open) => (Initial, Nothing),
            (
                LinkEvent::Closed
                | LinkEvent::SendFailed
                | LinkEvent::FrontEndViolation
                | LinkEvent::DriverViolation,
                Connected,
            ) => (Initial, EndTold),
            (_, state) => (state, Nothing),
        }
    }

    /// Whether the driver is there.
    pub(super) fn has_driver(self) -> bool {
        matches!(self, Served | Connected)
    }
}
