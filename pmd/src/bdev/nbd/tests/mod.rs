#![allow(clippy::unwrap_used)]

mod cruel;
mod pure;
mod qemu;
mod server;

use std::path::Path;
use std::time::Duration;

use super::{Config, Server};

/// The default export of the server at `path`.
fn at(path: &Path) -> Config {
    Config::new(Server::Unix(path.to_owned()), "")
}

/// The same, with little patience.
fn impatient(path: &Path) -> Config {
    Config {
        timeout: Duration::from_secs(1),
        ..at(path)
    }
}

/// A folder that goes with the value.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvu-nbd-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
