//! An encrypted connection. The library does no I/O: bytes are carried here, as far as they go.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::error::NbdError;
use super::stream::{receive, transmit};

/// Whom to believe, and who we are.
#[derive(Clone)]
pub struct TlsConfig {
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsConfig").field(&self.name).finish()
    }
}

impl TlsConfig {
    /// From `directory`, with the files that QEMU calls the same: `ca-cert.pem`, whose
    /// certificates vouch for the server, and, if there, `client-cert.pem` with `client-key.pem`.
    /// The server's certificate must be for `name`, a host's name or address.
    pub fn from_directory(directory: &Path, name: &str) -> Result<Self, NbdError> {
        let file = |name: &str| directory.join(name);
        let unreadable = |name: &str, error: &dyn fmt::Display| {
            NbdError::Tls(format!("{}: {error}", file(name).display()))
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&file("ca-cert.pem")).map_err(|e| unreadable("ca-cert.pem", &e))? {
            roots
                .add(root)
                .map_err(|error| unreadable("ca-cert.pem", &error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| NbdError::Tls(error.to_string()))?
            .with_root_certificates(roots);
        let client = if file("client-cert.pem").exists() {
            let chain = certificates(&file("client-cert.pem"))
                .map_err(|error| unreadable("client-cert.pem", &error))?;
            let key = PrivateKeyDer::from_pem_file(file("client-key.pem"))
                .map_err(|error| unreadable("client-key.pem", &error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unreadable("client-cert.pem", &error))?
        } else {
            builder.with_no_client_auth()
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| NbdError::Tls(format!("{name:?} is no name or address of a host")))?;
        Ok(Self {
            client: Arc::new(client),
            name,
        })
    }
}

fn certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

/// One end of an encrypted connection.
#[derive(Debug)]
pub(super) struct Tls(ClientConnection);

impl Tls {
    pub(super) fn new(config: &TlsConfig) -> Result<Self, NbdError> {
        ClientConnection::new(Arc::clone(&config.client), config.name.clone())
            .map(Self)
            .map_err(|error| NbdError::Tls(error.to_string()))
    }

    /// See [`Stream::read`](super::stream::Stream::read).
    pub(super) fn read(
        &mut self,
        fd: &OwnedFd,
        room: &mut [u8],
    ) -> Result<Option<usize>, NbdError> {
        loop {
            match self.0.reader().read(room) {
                Ok(0) => return Err(NbdError::Closed),
                Ok(n) => return Ok(Some(n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(NbdError::Closed),
            }
            match self.0.read_tls(&mut Socket(fd)) {
                Ok(0) => return Err(NbdError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(source) => return Err(failed("cannot receive", source)),
            }
            if let Err(error) = self.0.process_new_packets() {
                // The server shall hear why.
                let _ = self.push(fd);
                return Err(NbdError::Tls(error.to_string()));
            }
            self.push(fd)?;
        }
    }

    /// See [`Stream::write`](super::stream::Stream::write).
    pub(super) fn write(&mut self, fd: &OwnedFd, bytes: &[u8]) -> Result<Option<usize>, NbdError> {
        let taken = self.0.writer().write(bytes);
        let taken = taken.map_err(|source| failed("cannot encrypt", source))?;
        self.push(fd)?;
        Ok((taken > 0).then_some(taken))
    }

    /// Sends what is encrypted, as much as goes.
    pub(super) fn push(&mut self, fd: &OwnedFd) -> Result<(), NbdError> {
        while self.0.wants_write() {
            match self.0.write_tls(&mut Socket(fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(source) => return Err(failed("cannot send", source)),
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str, source: io::Error) -> NbdError {
    NbdError::Io { what, source }
}

/// A socket as the library wants to see it.
struct Socket<'a>(&'a OwnedFd);

fn carried(result: Result<Option<usize>, NbdError>) -> io::Result<usize> {
    match result {
        Ok(Some(n)) => Ok(n),
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Err(NbdError::Closed) => Ok(0),
        Err(NbdError::Io { source, .. }) => Err(source),
        Err(other) => Err(io::Error::other(other)),
    }
}

impl Read for Socket<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        carried(receive(self.0, room))
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        carried(transmit(self.0, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
