//! Clients that do as they please.
