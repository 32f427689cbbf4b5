//! Servers that do as they please.
