//! Reservations of a unit in a file, so that a restart does not lose them.
//!
//! The file is replaced as a whole: whoever reads it finds the old state or the new one. A thread
//! of its own writes it, because that takes as long as the disk likes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use thiserror::Error;

use super::target::{Reservations, TextError};

/// Why reservations cannot be kept.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file cannot be read or written.
    #[error("reservations in {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is not a file of reservations.
    #[error(
        "{path} holds no reservations: {source}; remove it if nothing in it is wanted",
        path = path.display()
    )]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TextError,
    },
}

/// What is to be written, and who wants to know whether it was.
struct Order {
    text: String,
    done: Box<dyn FnOnce(io::Result<()>) + Send>,
}

/// A file of reservations.
#[derive(Debug)]
pub struct Store {
    boot: String,
    first: Reservations,
    orders: mpsc::Sender<Order>,
}

/// Longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Names the time since the last loss of power, as far as this machine knows.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}

impl Store {
    /// The file at `path`. It need not be there, but it must be possible to write it.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let failed = |source| StoreError::Io {
            path: path.into(),
            source,
        };
        let boot = boot();
        let first = match read(path) {
            Ok(text) => {
                Reservations::from_text(&text, &boot).map_err(|source| StoreError::Text {
                    path: path.into(),
                    source,
                })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reservations::default(),
            Err(error) => return Err(failed(error)),
        };
        replace(path, &first.to_text(&boot)).map_err(failed)?;
        let (orders, theirs) = mpsc::channel::<Order>();
        let path = path.to_owned();
        let write = move || {
            for Order { text, done } in theirs {
                let result = replace(&path, &text);
                if let Err(error) = &result {
                    let file = path.display();
                    tracing::error!(%file, %error, "reservations could not be written");
                }
                done(result);
            }
        };
        let name = "reservations".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(write);
        thread.map_err(|source| StoreError::Io {
            path: PathBuf::new(),
            source,
        })?;
        Ok(Arc::new(Self {
            boot,
            first,
            orders,
        }))
    }

    /// What was in the file.
    pub(super) fn first(&self) -> Reservations {
        self.first.clone()
    }

    /// Has `all` written. `done` hears, on another thread, when it was; never, if the process ends
    /// before.
    pub(super) fn save(
        &self,
        all: &Reservations,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        let order = Order {
            text: all.to_text(&self.boot),
            done: Box::new(done),
        };
        if let Err(mpsc::SendError(order)) = self.orders.send(order) {
            (order.done)(Err(io::ErrorKind::BrokenPipe.into()));
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Puts a file with `text` in the place of the one at `path`.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // The new name must be on the medium, too.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vvu-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_file_is_made_read_and_replaced() {
        let folder = folder("store");
        let path = folder.join("state");
        let store = Store::open(&path).unwrap();
        assert_eq!(store.first(), Reservations::default());
        let text = std::fs::read_to_string(&path).unwrap();
        let (told, hears) = mpsc::channel();
        store.save(&Reservations::default(), move |result| {
            told.send(result).unwrap()
        });
        hears.recv().unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);

        std::fs::write(&path, "something else").unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("state") && error.contains("something else"),
            "{error}"
        );
        assert!(Store::open(&folder.join("no/such")).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
